"""What a head and a preprocessing *are*: frozen values that are stored in a bundle and hashed into cache keys."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from hqtl_common.errors import ConfigError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Ansatz", "Embedding", "Entangler", "HeadSpec", "PreprocessSpec", "spec_digest"]

Embedding = Literal["angle", "angle_rx", "angle_ry", "angle_rz", "reuploading", "amplitude"]
Entangler = Literal["pairwise", "linear", "circular", "all_to_all"]
Ansatz = Literal["real_amplitudes", "commuting"]

_MAX_VOXELS = 1 << 26  # of one volume's pixels
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
    """The variational circuit, without its numbers; the default is that of Geng et al. 2023 (arXiv:2307.16723, section 4).

    ``|0⟩ → embedding of the angles → num_layers × [entangler of CX; RY(w_{l,i}) on qubit i] → ⟨Z_i⟩``, and with the ansatz
    ``commuting`` after the embedding rotations ``exp(−i·w/2·Y_t·Z_S)`` that commute with each other; see
    :func:`hqtl_common.circuit.operations` for every gate.

    Args:
        num_qubits: Number of qubits n, 2 to 16; one ⟨Z⟩ per qubit.
        embedding: How the data enters. ``angle``, the paper's: H, then RY(angle_i) on qubit i. ``angle_rx``, ``angle_ry``: that
            rotation alone. ``angle_rz``: H, then RZ(angle_i). ``reuploading``: as ``angle``, and RY(angle_i) again before every
            further layer. ``amplitude``: the 2^n values of pre_net, normalised, are the amplitudes (at most 10 qubits).
        entangler: Which CX gates stand in a layer. ``pairwise``, the paper's: (0,1), (2,3), … and then (1,2), (3,4), ….
            ``linear``: (0,1), (1,2), …. ``circular``: linear, then (n−1,0), which two qubits leave out. ``all_to_all``: every
            (i,j) with i < j.
        num_layers: Number of variational layers L, at least 1 (the paper's default; it studies 1 to 6).
        ansatz: ``real_amplitudes``, the paper's layers, or ``commuting`` (Bowles, Wierichs and Park 2023, arXiv:2306.14962),
            which has no entangler to choose, takes the embeddings ``angle`` and ``angle_ry``, and no more layers than it has
            different generators.

    Raises:
        ConfigError: A value outside the ranges above, or values that do not go together.
    """

    num_qubits: int = 4
    embedding: Embedding = "angle"
    entangler: Entangler = "pairwise"
    num_layers: int = 1
    ansatz: Ansatz = "real_amplitudes"

    def __post_init__(self) -> None:
        _check_integer("num_qubits", self.num_qubits, 2, 16)
        _check_integer("num_layers", self.num_layers, 1, 1000)
        _check_choice("embedding", self.embedding, get_args(Embedding))
        _check_choice("entangler", self.entangler, get_args(Entangler))
        _check_choice("ansatz", self.ansatz, get_args(Ansatz))
        if self.embedding == "amplitude":
            _check_integer("num_qubits of the embedding amplitude", self.num_qubits, 2, 10)
        if self.ansatz == "commuting":
            self._check_commuting()

    def to_dict(self) -> dict[str, Any]:
        """See :class:`_Spec`; ``ansatz`` is left out where it is the paper's, as in bundles and ledgers from before it existed."""
        return {name: value for name, value in _Spec.to_dict(self).items() if (name, value) != ("ansatz", "real_amplitudes")}

    @property
    def weights_shape(self) -> tuple[int, int]:
        """Shape (num_layers, num_qubits) of the trainable rotations, in radians."""
        return (self.num_layers, self.num_qubits)

    @property
    def num_weights(self) -> int:
        """Number of trainable rotations, L·n."""
        return self.num_layers * self.num_qubits

    @property
    def num_values(self) -> int:
        """Number of values per image that pre_net computes from the features, before they become angles."""
        return 1 << self.num_qubits if self.embedding == "amplitude" else self.num_qubits

    @property
    def num_angles(self) -> int:
        """Number E of data-dependent rotations per image (the width of pre_net), one per gate: n, L·n, or 2^n − 1."""
        widths = {"amplitude": (1 << self.num_qubits) - 1, "reuploading": self.num_layers * self.num_qubits}
        return widths.get(self.embedding, self.num_qubits)

    @property
    def cx_pairs(self) -> tuple[tuple[int, int], ...]:
        """(control, target) of the CX gates of one layer, in the order in which they are applied; none if ``commuting``."""
        count = self.num_qubits
        if self.ansatz == "commuting":
            return ()
        if self.entangler == "all_to_all":
            return tuple(itertools.combinations(range(count), 2))
        steps = [(q, q + 1) for q in range(count - 1)]
        if self.entangler == "pairwise":
            return (*steps[::2], *steps[1::2])
        closing = [(count - 1, 0)] if self.entangler == "circular" and count > 2 else []
        return (*steps, *closing)

    @property
    def num_controls(self) -> int:
        """Qubits 0, 1, … that only control in the ansatz ``commuting``; the others, at least as many, are its targets."""
        return self.num_qubits // 2

    def _check_commuting(self) -> None:
        if self.entangler != "pairwise":
            raise ConfigError(f"entangler: the ansatz commuting has none to choose; leave {self.entangler!r} out")
        if self.embedding not in ("angle", "angle_ry"):
            raise ConfigError(f"embedding must be angle or angle_ry with the ansatz commuting; got {self.embedding!r}")
        count = (self.num_qubits - self.num_controls) * 2**self.num_controls
        if self.num_weights > count:
            raise ConfigError(
                f"num_layers must be at most {count // self.num_qubits} with the ansatz commuting on {self.num_qubits} qubits, which "
                f"has {count} different generators for {self.num_qubits} weights a layer; got {self.num_layers}"
            )


@dataclass(frozen=True, slots=True)
class PreprocessSpec(_Spec):
    """How an image becomes ``pixels`` (3, size, size) float32, or a volume (3, depth, size, size).

    The whole image is resized to ``size`` × ``size`` (nothing is cropped away, so no crack at an edge is lost);
    an image that already has this size is not resampled. Then values in [0, 1] are normalised per channel.

    Args:
        size: Edge length in pixels.
        mean: Per-channel mean subtracted after scaling to [0, 1] (default: ImageNet's).
        std: Per-channel divisor (default: ImageNet's), all positive.
        depth: Slices of a volume, at most 2^26 voxels in all; None for images.

    Raises:
        ConfigError: A value outside the ranges above.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    depth: int | None = None

    def __post_init__(self) -> None:
        _check_integer("size", self.size, 8, 4096)
        _check_channels("mean", self.mean, -math.inf)
        _check_channels("std", self.std, 0)
        if self.depth is not None:
            _check_integer("depth", self.depth, 1, _MAX_VOXELS // self.size**2)

    @property
    def pixels_shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one image (3, size, size) or volume (3, depth, size, size)."""
        return (3, self.size, self.size) if self.depth is None else (3, self.depth, self.size, self.size)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`_Spec`; ``depth`` is left out for images, as in bundles from before it existed."""
        return {name: value for name, value in _Spec.to_dict(self).items() if (name, value) != ("depth", None)}


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
