"""The trainable part: pre_net, head, post_net. The backbone stays outside, its features are data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hqtl_common.specs import HeadSpec
from training.head import Head, StatevectorHead
from training.pre_net import PreNet

__all__ = ["HybridModel", "PreNet", "build_model"]

_INITIAL_SPREAD = 0.01  # radians; near zero the head starts as products of sines, with gradients of order one


class HybridModel(nn.Module):
    """Features (B, F) float32 → logits (B, C) float64.

    Args:
        feature_width: F.
        num_classes: C.
        head: The circuit, on any backend.
    """

    def __init__(self, feature_width: int, num_classes: int, head: Head) -> None:
        super().__init__()
        self.pre_net = PreNet(feature_width, head.spec)
        self.head = head
        self.post_net = nn.Linear(head.spec.num_qubits, num_classes, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.post_net(self.head(self.pre_net(features)))
        return logits

    def with_head(self, head: Head) -> HybridModel:
        """A copy with the same pre_net and post_net values, and ``head`` with this one's weights."""
        twin = HybridModel(self.pre_net.linear.in_features, self.post_net.out_features, head)
        twin.load_state_dict(self.state_dict())
        return twin


def build_model(
    feature_width: int, num_classes: int, spec: HeadSpec, *, seed: int = 0, state: Mapping[str, Tensor] | None = None
) -> HybridModel:
    """A model with the exact head, and seeded initial values or those of ``state``; :meth:`HybridModel.with_head` changes the head.

    Args:
        feature_width: F.
        num_classes: C.
        spec: The head's structure.
        seed: Seed of the initial values.
        state: Values of :meth:`torch.nn.Module.state_dict`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = _INITIAL_SPREAD * torch.randn(*spec.weights_shape, dtype=torch.float64)
        model = HybridModel(feature_width, num_classes, StatevectorHead(spec, weights))
    if state is not None:
        model.load_state_dict(dict(state))
    return model
