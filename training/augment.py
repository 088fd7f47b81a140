"""Altered copies of training images: what a crack may look like in another light, direction and camera.

An alteration works on pixels that are resized already, between normalisation and normalisation, and depends on the content of
the image, the recipe and the copy's name only: the same copy comes out in every run, on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError
from hqtl_common.specs import PreprocessSpec

__all__ = ["Augmentation", "Variant"]

F32 = NDArray[np.float32]

_VERSION = 1  # part of every recipe; a change of what a part does needs a new one
_TILT = 10.0  # degrees
_BRIGHTNESS = 0.12  # added to grey in [0, 1]
_CONTRAST = 0.25  # natural logarithm of the factor about middle grey
_NOISE = 0.04  # greatest standard deviation


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Which alterations are made.

    Args:
        parts: In the order in which they are made: ``flips`` along each axis, ``rotations`` by right angles in the plane,
            ``tilt`` by up to 10 degrees (mirrored at the edges), ``brightness``, ``contrast``, ``noise``.
    """

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """``none``, ``all`` or names of parts with commas between; None for ``none``.

        Raises:
            ConfigError: Another word.
        """
        if text == "none":
            return None
        wanted = set(_PARTS) if text == "all" else {part.strip() for part in text.split(",")}
        if unknown := sorted(wanted - set(_PARTS)):
            raise ConfigError(f"augment: expected none, all or some of {','.join(_PARTS)}; got {', '.join(map(repr, unknown))}")
        return cls(tuple(part for part in _PARTS if part in wanted))

    @property
    def recipe(self) -> str:
        """What decides, beside the image, how a copy looks."""
        return f"{_VERSION}:{','.join(self.parts)}"

    def apply(self, pixels: F32, spec: PreprocessSpec, rng: np.random.Generator) -> F32:
        """Normalised pixels (3, …) → an altered copy of the same shape."""
        mean, std = (np.asarray(values, dtype=np.float32).reshape(3, *[1] * (pixels.ndim - 1)) for values in (spec.mean, spec.std))
        unit = pixels * std + mean
        for part in self.parts:
            unit = _PARTS[part](unit, rng)
        altered: F32 = (np.clip(unit, 0, 1, dtype=np.float32) - mean) / std
        return np.ascontiguousarray(altered, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Variant:
    """One altered copy of every image.

    Args:
        augmentation: How.
        spec: The preprocessing of the pixels.
        name: Which copy.
    """

    augmentation: Augmentation
    spec: PreprocessSpec
    name: str

    def key(self, content: str) -> str:
        """Name of the copy of the image with this content hash; nothing else has it."""
        recipe = hashlib.sha256(f"{self.augmentation.recipe}\0{self.name}".encode()).hexdigest()
        return f"{content}+{recipe[:32]}"

    def apply(self, pixels: F32, content: str) -> F32:
        """Normalised pixels (3, …) of the image with this content hash → its copy."""
        seed = int.from_bytes(hashlib.sha256(self.key(content).encode()).digest()[:16])
        return self.augmentation.apply(pixels, self.spec, np.random.default_rng(seed))


def _flip(unit: F32, rng: np.random.Generator) -> F32:
    axes = tuple(axis for axis in range(1, unit.ndim) if rng.random() < 0.5)
    return np.flip(unit, axes)


def _rotate(unit: F32, rng: np.random.Generator) -> F32:
    return np.rot90(unit, int(rng.integers(4)), axes=(-2, -1))


def _tilt(unit: F32, rng: np.random.Generator) -> F32:
    from scipy.ndimage import rotate

    tilted: F32 = rotate(unit, rng.uniform(-_TILT, _TILT), axes=(-1, -2), reshape=False, order=1, mode="reflect")
    return tilted


def _brighten(unit: F32, rng: np.random.Generator) -> F32:
    return unit + np.float32(rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))


def _change_contrast(unit: F32, rng: np.random.Generator) -> F32:
    half = np.float32(0.5)
    return (unit - half) * np.float32(np.exp(rng.uniform(-_CONTRAST, _CONTRAST))) + half


def _add_noise(unit: F32, rng: np.random.Generator) -> F32:
    """The same in all channels: a grey image stays grey."""
    return unit + np.float32(rng.uniform(0, _NOISE)) * rng.standard_normal(unit.shape[1:], dtype=np.float32)


_PARTS: dict[str, Callable[[F32, np.random.Generator], F32]] = {
    "flips": _flip,
    "rotations": _rotate,
    "tilt": _tilt,
    "brightness": _brighten,
    "contrast": _change_contrast,
    "noise": _add_noise,
}
