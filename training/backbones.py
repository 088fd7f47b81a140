"""The frozen feature extractors: a torchvision classifier without its last layer, and where its weights come from."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.specs import PreprocessSpec
from training.architectures import build_network, cut_last_layer, default_spec, feature_width, last_layer, published_weights, weights_file

__all__ = ["Backbone", "load_backbone", "state_digest"]

_DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen network in eval mode: pixels (B, 3, S, S) or (B, 3, D, S, S) float32 → features (B, feature_width) float32.

    Args:
        name: torchvision's name, perhaps with ``:pooled``; see :mod:`training.architectures`.
        weights: ``imagenet``, ``kinetics`` (published weights of a video network), ``none``, ``custom``, or ``tuned``: trained
            further on a run's own images.
        digest: SHA-256 over names and values of all parameters and buffers.
        feature_width: F.
        network: The module; no parameter needs a gradient.
    """

    name: str
    weights: str
    digest: str
    feature_width: int
    network: nn.Module


def load_backbone(name: str, weights: str = "imagenet", seed: int = 0, spec: PreprocessSpec | None = None) -> Backbone:
    """A backbone by name.

    Args:
        name: See :func:`training.architectures.known_backbones`.
        weights: ``imagenet`` (the published ones by torchvision's loader: TORCH_HOME, else a download; Kinetics-400 for a video
            network), ``none`` (random), or the path of a state dict of the torchvision model (``.pth`` or ``.safetensors``;
            the last layer may be absent).
        seed: Seed of random weights.
        spec: The preprocessing (default: the network's own).

    Raises:
        ConfigError: An unknown name, or weights that cannot be had or do not fit; the message lists the ways out.
        InputError: The file given holds no weights.
    """
    spec = spec or default_spec(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(name, spec)
    if weights != "none":
        state = _published_state(name) if weights == "imagenet" else _custom_state(Path(weights))
        _load_state(network, state, name, weights, last_layer(network, spec))
    cut_last_layer(network, name, spec).requires_grad_(False)
    published = "imagenet" if spec.depth is None else "kinetics"
    kind = {"imagenet": published, "none": "none"}.get(weights, "custom")
    return Backbone(name, kind, state_digest(network), feature_width(network, spec), network)


def state_digest(network: nn.Module) -> str:
    """SHA-256 (hex) over names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + b"\0" + np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _published_state(name: str) -> dict[str, Any]:
    weights, path = published_weights(name), weights_file(name)
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
            f"the published weights of {name} cannot be had: {problem}. {way_out}, or give a state dict with --weights PATH, "
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


def _load_state(network: nn.Module, state: dict[str, Any], name: str, weights: str, last: str) -> None:
    spare = (f"{last}.", "aux1.", "aux2.", "AuxLogits.")  # the last layer is cut off; side outputs served the first training only
    body = {key: value for key, value in state.items() if not key.startswith(spare)}
    try:
        missing, unexpected = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"the weights {weights!r} do not fit {name}: {' '.join(str(error).split())}") from error
    absent = sorted(key for key in missing if not key.startswith(spare) and not key.endswith("num_batches_tracked"))
    if absent or unexpected:
        raise ConfigError(f"the weights {weights!r} do not fit {name}: missing {absent[:5]}, unexpected {list(unexpected)[:5]}")
    undefined = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if undefined:
        raise ConfigError(f"the weights {weights!r} of {name} are not finite numbers in {', '.join(undefined[:5])}")
