"""What a head and a preprocessing *are*: frozen values that are stored in a bundle and hashed into cache keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from hqtl_common.errors import ConfigError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Embedding", "Entangler", "HeadSpec", "PreprocessSpec", "spec_digest"]

Embedding = Literal["angle"]
Entangler = Literal["pairwise"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Spec:
    """Round trip between a frozen dataclass of plain values and JSON-ready dicts."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: A field is unknown or missing, or its value is not legal.
        """
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}; got the fields {sorted(values)}") from error


@dataclass(frozen=True, slots=True)
class HeadSpec(_Spec):
    """The variational circuit of Geng et al. 2023 (arXiv:2307.16723, section 4), without its numbers.

    ``|0⟩ → H on every qubit → RY(angle_i) on qubit i → num_layers × [entangler of CX; RY(w_{l,i}) on qubit i] → ⟨Z_i⟩``

    Args:
        num_qubits: Number of qubits n, 2 to 16; one angle and one ⟨Z⟩ per qubit.
        embedding: How angles enter; ``"angle"`` is RY(angle_i) after a Hadamard.
        entangler: Which CX gates stand in a layer; ``"pairwise"`` is the paper's
            parallel scheme: CX on (0,1), (2,3), … and then on (1,2), (3,4), ….
        num_layers: Number of variational layers L, at least 1 (the paper's default; it studies 1 to 6).

    Raises:
        ConfigError: A value outside the ranges above.
    """

    num_qubits: int = 4
    embedding: Embedding = "angle"
    entangler: Entangler = "pairwise"
    num_layers: int = 1

    def __post_init__(self) -> None:
        _check_integer("num_qubits", self.num_qubits, 2, 16)
        _check_integer("num_layers", self.num_layers, 1, 1000)
        _check_choice("embedding", self.embedding, get_args(Embedding))
        _check_choice("entangler", self.entangler, get_args(Entangler))

    @property
    def weights_shape(self) -> tuple[int, int]:
        """Shape (num_layers, num_qubits) of the trainable rotations, in radians."""
        return (self.num_layers, self.num_qubits)

    @property
    def num_weights(self) -> int:
        """Number of trainable rotations, L·n."""
        return self.num_layers * self.num_qubits

    @property
    def num_angles(self) -> int:
        """Number of data-dependent rotations per image (the width of pre_net)."""
        return self.num_qubits

    @property
    def cx_pairs(self) -> tuple[tuple[int, int], ...]:
        """(control, target) of the CX gates of one layer, in the order in which they are applied."""
        even = [(q, q + 1) for q in range(0, self.num_qubits - 1, 2)]
        odd = [(q, q + 1) for q in range(1, self.num_qubits - 1, 2)]
        return tuple(even + odd)


@dataclass(frozen=True, slots=True)
class PreprocessSpec(_Spec):
    """How an image becomes ``pixels`` (3, size, size) float32.

    The whole image is resized to ``size`` × ``size`` (nothing is cropped away, so no crack at an edge is lost);
    an image that already has this size is not resampled. Then values in [0, 1] are normalised per channel.

    Args:
        size: Edge length in pixels.
        mean: Per-channel mean subtracted after scaling to [0, 1] (default: ImageNet's).
        std: Per-channel divisor (default: ImageNet's), all positive.

    Raises:
        ConfigError: A value outside the ranges above.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _check_integer("size", self.size, 8, 4096)
        _check_channels("mean", self.mean, -math.inf)
        _check_channels("std", self.std, 0)


def spec_digest(*parts: HeadSpec | PreprocessSpec | str) -> str:
    """SHA-256 (hex) over specs and strings, stable across processes; used in cache keys."""
    plain = [part if isinstance(part, str) else {type(part).__name__: part.to_dict()} for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}; got {value!r}")


def _check_channels(name: str, values: object, above: float) -> None:
    if not isinstance(values, tuple) or len(values) != 3 or not all(isinstance(v, int | float) and above < v < math.inf for v in values):
        raise ConfigError(f"{name} must be a tuple of three finite numbers above {above}; got {values!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
