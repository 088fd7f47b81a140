"""torchvision's classifiers as networks without a last layer: their names, input sizes, and what is cut off.

Any classifier of ``torchvision.models`` can be a backbone, and some video classifiers for volumes. The last linear layer (or 1 × 1
convolution, SqueezeNet) is found by running the network and replaced by the identity, so what it was given are the features.
``NAME:pooled`` takes the last feature map averaged over positions instead, where more linear layers follow it: 512 features of
``vgg16:pooled`` in place of 4096.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision import models

from hqtl_common.errors import ConfigError
from hqtl_common.specs import PreprocessSpec

__all__ = [
    "build_network",
    "cut_last_layer",
    "default_spec",
    "describe_backbones",
    "feature_width",
    "known_backbones",
    "last_layer",
    "published_weights",
    "weights_file",
]

# Video networks whose kernels take cubes of any size; their slices along time become slices along depth.
_VOLUME_NETWORKS = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d")
_DEPTH = 16
_POOLED = "pooled"
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}


@cache
def known_backbones() -> tuple[str, ...]:
    """Names of all networks, in order; ``:pooled`` may follow some of them."""
    return (*models.list_models(module=models), *_VOLUME_NETWORKS)


def published_weights(name: str) -> Any:
    """torchvision's entry of the weights it recommends for a network: ImageNet, or Kinetics-400 for a video network.

    Raises:
        ConfigError: An unknown name.
    """
    return models.get_model_weights(_base(name)).DEFAULT


def weights_file(name: str) -> Path:
    """Where torch keeps the published weights of a network, whether they are there or not.

    Raises:
        ConfigError: An unknown name.
    """
    file: str = published_weights(name).url.rpartition("/")[2]
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def describe_backbones() -> list[dict[str, Any]]:
    """What can be said of every network without building it, JSON-ready."""
    return [
        {
            "name": name,
            "input": "volume" if name in _VOLUME_NETWORKS else "image",
            "size": default_spec(name).size,
            "parameters": published_weights(name).meta["num_params"],
            "weights": weights_file(name).name,
            "found": weights_file(name).is_file(),
        }
        for name in known_backbones()
    ]


def default_spec(name: str, size: int | None = None, depth: int | None = None) -> PreprocessSpec:
    """The preprocessing that a network's published weights were made for.

    Images are resized whole where torchvision crops, and with the bilinear filter of this software.

    Args:
        name: See :func:`known_backbones`.
        size: Edge length in place of the network's own.
        depth: Slices of a volume in place of 16.

    Raises:
        ConfigError: An unknown name, or a depth for a network of flat images.
    """
    published, base = published_weights(name).transforms(), _base(name)
    if depth is not None and base not in _VOLUME_NETWORKS:
        raise ConfigError(f"a depth needs a network for volumes ({', '.join(_VOLUME_NETWORKS)}); {name} takes flat images")
    slices = (depth or _DEPTH) if base in _VOLUME_NETWORKS else None
    return PreprocessSpec(size or published.crop_size[0], tuple(published.mean), tuple(published.std), slices)


def build_network(name: str, spec: PreprocessSpec) -> nn.Module:
    """The whole network in eval mode with random weights from torch's generator.

    Raises:
        ConfigError: An unknown name, or an input size that the network cannot have.
    """
    base = _base(name)
    options = {"image_size": spec.size} if base.startswith("vit_") else _OPTIONS.get(base, {})
    try:
        network: nn.Module = models.get_model(base, weights=None, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} cannot take images of {spec.size} × {spec.size} pixels: {error}") from error
    return network.eval()


def last_layer(network: nn.Module, spec: PreprocessSpec) -> str:
    """Name of the linear layer or 1 × 1 convolution that runs last.

    Raises:
        ConfigError: The network does not run on pixels of this shape.
    """
    names: list[str] = []

    def is_linear(part: nn.Module) -> bool:
        return isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d | nn.Conv3d) and set(part.kernel_size) == {1})

    hooks = [
        part.register_forward_hook(lambda *_, name=name: names.append(name)) for name, part in network.named_modules() if is_linear(part)
    ]
    try:
        _output_shape(network, spec)
    finally:
        for hook in hooks:
            hook.remove()
    return names[-1]


def cut_last_layer(network: nn.Module, name: str, spec: PreprocessSpec) -> nn.Module:
    """Replace the last layer by the identity, or everything after the last feature map by its average; returns the network.

    Args:
        network: Of :func:`build_network`.
        name: As given there; says which of the two.
        spec: The preprocessing.

    Raises:
        ConfigError: ``:pooled`` of a network without separate parts, or see :func:`last_layer`.
    """
    if not name.endswith(f":{_POOLED}"):
        network.set_submodule(last_layer(network, spec), nn.Identity())
        return network.eval()
    if not all(isinstance(getattr(network, part, None), nn.Module) for part in ("features", "avgpool", "classifier")):
        raise ConfigError(f"the features of {_base(name)} are averages over positions already; leave out :{_POOLED}")
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return network.eval()


def feature_width(network: nn.Module, spec: PreprocessSpec) -> int:
    """F of a network without its last layer, found by running it.

    Raises:
        ConfigError: It does not run on pixels of this shape, or gives no vector per image.
    """
    shape = _output_shape(network, spec)
    if len(shape) != 2:
        raise ConfigError(f"a backbone must give a vector per image; this one gives an array of the shape {tuple(shape)}")
    return shape[1]


def _output_shape(network: nn.Module, spec: PreprocessSpec) -> torch.Size:
    with torch.no_grad(), _shapes_only():
        try:
            answer: torch.Tensor = network(torch.zeros(1, *spec.pixels_shape))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the network does not run on pixels of the shape {spec.pixels_shape}: {error}; choose another size"
            ) from error
    return answer.shape


@contextmanager
def _shapes_only() -> Iterator[None]:
    """torch follows shapes here without computing values; what goes wrong is raised, and not logged with a trace as well."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.setLevel(level)


def _base(name: str) -> str:
    """The network's name without ``:pooled``."""
    base, colon, variant = name.partition(":")
    if base in known_backbones() and variant == (_POOLED if colon else ""):
        return base
    if base in known_backbones():
        raise ConfigError(f"unknown variant {variant!r} of {base}; the only one is {base}:{_POOLED}")
    near = difflib.get_close_matches(base.lower(), known_backbones(), n=4)
    hint = f"did you mean {', '.join(near)}?" if near else "hqtl-train backbones lists the names"
    raise ConfigError(f"unknown backbone {name!r}; {hint}")
