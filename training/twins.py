"""The classical twins: trained beside every hybrid model on the same features, so that no claim about the head stands alone.

``bottleneck`` has a tanh layer of the circuit's width where the hybrid has the circuit; ``linear`` has nothing between features
and classes. Both take the hybrid's seeds, batches, steps and choice of the best epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model import HybridModel

__all__ = ["TWINS", "BottleneckTwin", "LinearTwin", "make_twins"]

TWINS = ("bottleneck", "linear")


class BottleneckTwin(nn.Module):
    """Features (B, F) float32 → logits (B, C) float64 = Linear(tanh(Linear)).

    Args:
        feature_width: F.
        width: Of the layer between.
        num_classes: C.
    """

    def __init__(self, feature_width: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(feature_width, width)
        self.outer = nn.Linear(width, num_classes, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.outer(torch.tanh(self.inner(features)).to(torch.float64))
        return logits


class LinearTwin(nn.Module):
    """Features (B, F) float32 → logits (B, C) float64 = Linear.

    Args:
        feature_width: F.
        num_classes: C.
    """

    def __init__(self, feature_width: int, num_classes: int) -> None:
        super().__init__()
        self.outer = nn.Linear(feature_width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.outer(features).to(torch.float64)
        return logits


def make_twins(model: HybridModel, seed: int) -> dict[str, nn.Module]:
    """The twins of a freshly built model, by name; the bottleneck starts from the values of its pre_net and post_net.

    Its width is the number of qubits, so that both pass their features through as few numbers to the same last layer. (With
    amplitudes pre_net is wider than that and the bottleneck's first layer has values of its own.)

    Args:
        model: The hybrid.
        seed: Seed of the values that the hybrid does not give.
    """
    pre_net, post_net = model.pre_net.linear, model.post_net
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bottleneck = BottleneckTwin(pre_net.in_features, post_net.in_features, post_net.out_features)
        linear = LinearTwin(pre_net.in_features, post_net.out_features)
    for mine, theirs in ((bottleneck.inner, pre_net), (bottleneck.outer, post_net)):
        if mine.weight.shape == theirs.weight.shape:
            mine.load_state_dict(theirs.state_dict())
    return {"bottleneck": bottleneck, "linear": linear}
