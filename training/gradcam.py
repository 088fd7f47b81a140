"""Where the network looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the backbone, through the head's own gradient.

The gradient of a class's logit runs back through post_net, the exact head, pre_net and whatever stands behind the backbone's last
feature map. Averaged over positions it weighs the map's channels; what their sum leaves above zero speaks for the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hqtl_common.errors import ConfigError
from hqtl_common.specs import PreprocessSpec
from training.model import HybridModel

__all__ = ["FeatureGradients", "feature_gradients", "heat_maps", "last_feature_map"]


@dataclass(frozen=True, slots=True)
class FeatureGradients:
    """What the last feature map held and what a class's logit owes to it.

    Args:
        activations: (B, K, *positions) float32.
        gradients: The same shape: derivative of the logit by every activation.
        expvals: (B, n) float64.
        logits: (B, C) float64.
        targets: (B,) the class whose logit was taken.
    """

    activations: Tensor
    gradients: Tensor
    expvals: Tensor
    logits: Tensor
    targets: Tensor


def last_feature_map(network: nn.Module, spec: PreprocessSpec) -> str:
    """Name of the part whose output is the last one with a value per position.

    Args:
        network: A backbone.
        spec: Its preprocessing.

    Raises:
        ConfigError: The network has no feature map (a transformer that flattens its patches).
    """
    names: list[str] = []

    def watch(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == len(spec.pixels_shape) + 1 and output[0, 0].numel() > 1:
                names.append(name)

        return hook

    hooks = [part.register_forward_hook(watch(name)) for name, part in network.named_modules() if name]
    with torch.no_grad():
        network(torch.zeros(1, *spec.pixels_shape))
    for handle in hooks:
        handle.remove()
    # A transformer's first convolution is a map too, but what follows it is no longer one.
    if not names or names[-1] == "conv_proj":
        raise ConfigError("this backbone has no feature map to look at: it is a transformer; explain a convolutional one")
    return names[-1]


def feature_gradients(network: nn.Module, model: HybridModel, layer: str, pixels: Tensor, target: int | None = None) -> FeatureGradients:
    """Gradients of a logit by the activations of a part of the backbone.

    Args:
        network: The backbone.
        model: pre_net, exact head and post_net.
        layer: Of :func:`last_feature_map`.
        pixels: (B, 3, …) float32.
        target: Position of the class; None takes the class with the greatest logit of each image.
    """
    caught: list[Tensor] = []

    def catch(part: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1] * 1  # a layer that works in place must not meet the leaf itself

    handle = network.get_submodule(layer).register_forward_hook(catch)
    try:
        with torch.enable_grad():
            expvals = model.head(model.pre_net(network(pixels)))
            logits = model.post_net(expvals)
            targets = logits.argmax(1) if target is None else torch.full((len(logits),), target)
            chosen = logits.gather(1, targets[:, None]).sum()
            (gradients,) = torch.autograd.grad(chosen, caught[-1])
    finally:
        handle.remove()
    return FeatureGradients(caught[-1].detach(), gradients, expvals.detach(), logits.detach(), targets)


def heat_maps(found: FeatureGradients, spec: PreprocessSpec) -> Tensor:
    """Heat (B, S, S) or (B, D, S, S) float32 in [0, 1], the hottest position of each image at 1; all zero where nothing speaks for it.

    Args:
        found: Of :func:`feature_gradients`.
        spec: The preprocessing, whose size the answer has.
    """
    positions = tuple(range(2, found.gradients.ndim))
    weights = found.gradients.mean(positions, keepdim=True)
    heat = torch.relu((weights * found.activations).sum(1, keepdim=True))
    mode = "bilinear" if spec.depth is None else "trilinear"
    heat = interpolate(heat, size=spec.pixels_shape[1:], mode=mode, align_corners=False)[:, 0]
    hottest = heat.flatten(1).amax(1).view(-1, *[1] * (heat.ndim - 1))
    return heat / hottest.clamp_min(torch.finfo(heat.dtype).tiny)
