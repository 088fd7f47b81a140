"""The frozen feature extractors: a torchvision classifier without its last layer."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision import models

from hqtl_common.errors import ConfigError, InputError

__all__ = ["BACKBONES", "Backbone", "load_backbone", "state_digest"]

_DOWNLOAD_TIMEOUT_S = 30.0


def _strip_resnet(network: Any) -> None:
    network.fc = nn.Identity()


def _strip_vgg(network: Any) -> None:
    network.classifier = network.classifier[:-1]


@dataclass(frozen=True, slots=True)
class _Architecture:
    feature_width: int
    strip: Callable[[Any], None]


BACKBONES: dict[str, _Architecture] = {
    "resnet18": _Architecture(512, _strip_resnet),
    "vgg16": _Architecture(4096, _strip_vgg),
}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen network in eval mode: pixels (B, 3, 224, 224) float32 → features (B, feature_width) float32.

    Args:
        name: torchvision's name.
        weights: ``imagenet``, ``none`` or ``custom``.
        digest: SHA-256 over names and values of all parameters and buffers.
        feature_width: F.
        network: The module; no parameter needs a gradient.
    """

    name: str
    weights: str
    digest: str
    feature_width: int
    network: nn.Module


def load_backbone(name: str, weights: str = "imagenet", seed: int = 0) -> Backbone:
    """A backbone by name.

    Args:
        name: A key of ``BACKBONES``.
        weights: ``imagenet`` (torchvision's loader: TORCH_HOME, else a download), ``none`` (random), or the path of a
            state dict of the torchvision model (``.pth`` or ``.safetensors``; the last layer may be absent).
        seed: Seed of random weights.

    Raises:
        ConfigError: An unknown name, or weights that cannot be had or do not fit; the message lists the ways out.
        InputError: The file given holds no weights.
    """
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None)
    if weights != "none":
        state = _imagenet_state(name) if weights == "imagenet" else _custom_state(Path(weights))
        _load_state(network, state, name, weights)
    BACKBONES[name].strip(network)
    network.eval().requires_grad_(False)
    kind = weights if weights in ("imagenet", "none") else "custom"
    return Backbone(name, kind, state_digest(network), BACKBONES[name].feature_width, network)


def state_digest(network: nn.Module) -> str:
    """SHA-256 (hex) over names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + b"\0" + np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _imagenet_state(name: str) -> dict[str, Any]:
    weights = models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)  # torch.hub's download has no timeout of its own
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces a download on standard output, which belongs to results
            return _tensors(weights.get_state_dict(progress=False, check_hash=True, weights_only=True), path)
    except Exception as error:  # damaged files raise many kinds
        if path.is_file():
            problem, way_out = f"{path} is damaged ({_brief(error)})", "Replace it"
        else:
            problem = f"{path.name} is not in {path.parent} and the download failed ({_brief(error)})"
            way_out = f"Put {path.name} there, or set TORCH_HOME to the folder whose hub/checkpoints holds it"
        raise ConfigError(
            f"the ImageNet weights of {name} cannot be had: {problem}. {way_out}, or give a state dict with --weights PATH, "
            "or use random weights with --weights none"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _custom_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"weights must be imagenet, none or the path of a state dict; there is no file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # otherwise a file could run code
    except Exception as error:  # damaged files raise many kinds
        raise InputError(f"{str(path)!r} is not a state dict of tensors: {_brief(error)}") from error
    return _tensors(loaded, path)


def _tensors(loaded: Any, path: Path) -> dict[str, Any]:
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise InputError(f"{str(path)!r} holds {type(loaded).__name__}, not a state dict of tensors")
    return state


def _brief(error: Exception) -> str:
    """torch explains at length, and advises to switch its protection off."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if len(text) < 120 else type(error).__name__


def _load_state(network: nn.Module, state: dict[str, Any], name: str, weights: str) -> None:
    last = list(network.state_dict())[-2:]  # weight and bias of the last layer, which is cut off
    body = {key: value for key, value in state.items() if key not in last}
    try:
        missing, unexpected = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"the weights {weights!r} do not fit {name}: {' '.join(str(error).split())}") from error
    absent = sorted(set(missing) - set(last))
    absent = [key for key in absent if not key.endswith("num_batches_tracked")]
    if absent or unexpected:
        raise ConfigError(f"the weights {weights!r} do not fit {name}: missing {absent[:5]}, unexpected {list(unexpected)[:5]}")
    undefined = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if undefined:
        raise ConfigError(f"the weights {weights!r} of {name} are not finite numbers in {', '.join(undefined[:5])}")
