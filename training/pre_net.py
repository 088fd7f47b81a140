"""From features to the angles of the head's gates: one linear map, and what the embedding makes of its values.

The embedding ``amplitude`` prepares ``Σ x_b |b⟩`` from the 2^n values x, normalised: level k of its tree turns qubit k, for each
bit string of the qubits before it, by ``2·atan2(norm of the half with a 1, norm of the half with a 0)``, and the last level by
the values themselves with their signs. A transform that is linear turns the angles of a level into those of its gates, RY
between CX (Möttönen et al. 2004, arXiv:quant-ph/0407010, section II). All of it is differentiated by torch and exported with
pre_net, so that every backend and gradient method sees plain gate angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hqtl_common.circuit import subset_signs
from hqtl_common.specs import HeadSpec

__all__ = ["PreNet"]

_NOTHING = 1e-12  # squared norm of a part of a unit vector that counts as zero: its angle is not defined, and its state absent


class PreNet(nn.Module):
    """Features (…, F) float32 → angles (…, E) float32, radians: tanh(Linear)·π/2, or the tree of amplitudes.

    Args:
        feature_width: F.
        spec: The head.
    """

    def __init__(self, feature_width: int, spec: HeadSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_width, spec.num_values)
        self.to_angles = _AMPLITUDE.get(spec.embedding, _Rotations)(spec)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        angles: Tensor = self.to_angles(self.linear(features))
        return angles


class _Rotations(nn.Module):
    """tanh(values)·π/2, again for every layer where the data is uploaded again."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.repeats = spec.num_angles // spec.num_values

    def forward(self, values: Tensor) -> Tensor:
        angles = torch.tanh(values) * (math.pi / 2)
        return angles if self.repeats == 1 else torch.cat([angles] * self.repeats, dim=-1)


class _Amplitudes(nn.Module):
    """Values (…, 2^n) of any norm → the 2^n − 1 gate angles of the tree."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.count = spec.num_qubits
        for level in range(1, spec.num_qubits):
            inverse = subset_signs(level) / 2**level
            self.register_buffer(f"inverse_{level}", torch.from_numpy(inverse).float(), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        values = values / (values.square().sum(-1, keepdim=True) + _NOTHING).sqrt()
        squares = values.square()
        angles = []
        for level in range(self.count):
            halves = torch.unflatten(squares, -1, (2**level, 2, -1)).sum(-1)  # (…, 2^level, 2)
            present = halves.sum(-1) > _NOTHING
            if level < self.count - 1:
                some = halves > _NOTHING
                zero, one = (torch.where(some, halves, 1.0).sqrt() * some).unbind(-1)  # no slope where a half is empty
            else:
                zero, one = torch.unflatten(values, -1, (-1, 2)).unbind(-1)
            turns = 2 * torch.atan2(torch.where(present, one, 0.0), torch.where(present, zero, 1.0))
            angles.append(turns if level == 0 else turns @ self.get_buffer(f"inverse_{level}"))
        return torch.cat(angles, dim=-1)


_AMPLITUDE: dict[str, Callable[[HeadSpec], nn.Module]] = {"amplitude": _Amplitudes}
