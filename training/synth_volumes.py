"""Cubes of concrete as a tomograph sees them: noise and round pores, with or without a planar crack."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hqtl_common.errors import ConfigError

__all__ = ["SynthVolumeSpec", "synth_volume", "write_volumes"]

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SynthVolumeSpec:
    """What the cubes look like.

    Args:
        edge: Edge length in voxels.
        pores: Least and greatest number of pores.
        pore_radius: Least and greatest radius, voxels.
        crack_width: Least and greatest width of a crack, voxels.
        contrast: How dark cracks and pores are; 1 is black.
        noise: Standard deviation of the noise, in the range [0, 1] of grey.
    """

    edge: int = 32
    pores: tuple[int, int] = (2, 8)
    pore_radius: tuple[float, float] = (1.0, 3.0)
    crack_width: tuple[float, float] = (1.0, 2.5)
    contrast: float = 0.7
    noise: float = 0.06


def synth_volume(spec: SynthVolumeSpec, rng: np.random.Generator, *, crack: bool) -> U8:
    """One cube (edge, edge, edge) of grey values.

    Args:
        spec: What it looks like.
        rng: Where chance comes from.
        crack: With a crack across it, a plane in any direction with a wavy surface.
    """
    shape = (spec.edge,) * 3
    grid = np.stack(np.meshgrid(*[np.arange(spec.edge) + 0.5] * 3, indexing="ij"))
    solid = 0.6 + 0.05 * _rough(rng, shape, 4.0) + spec.noise * _rough(rng, shape, 0.7)
    void = np.zeros(shape)
    for _ in range(rng.integers(*spec.pores, endpoint=True)):
        centre, radius = rng.uniform(0, spec.edge, 3), rng.uniform(*spec.pore_radius)
        distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0))
        void = np.maximum(void, np.clip(radius + 0.5 - distance, 0, 1))
    if crack:
        normal = rng.normal(size=3)
        through = rng.uniform(0.35, 0.65, 3) * spec.edge
        offset = np.tensordot(normal / np.linalg.norm(normal), grid - through[:, None, None, None], 1)
        distance = np.abs(offset + _rough(rng, shape, 5.0))
        void = np.maximum(void, np.clip(rng.uniform(*spec.crack_width) / 2 + 0.5 - distance, 0, 1))
    grey = solid * (1 - spec.contrast * void)
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)


def write_volumes(
    folder: Path, count: int, seed: int, *, spec: SynthVolumeSpec | None = None, progress: Callable[[int], None] | None = None
) -> None:
    """Make ``folder`` with ``crack/`` and ``no_crack/``, half of ``count`` cubes each, as ``.npy`` files.

    Args:
        folder: Must not exist yet, or be empty.
        count: Cubes in all.
        seed: The same seed gives the same files.
        spec: What they look like.
        progress: Called with 1 after each.

    Raises:
        ConfigError: The folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} exists already; give another folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for label in ("crack", "no_crack"):
            (staging / label).mkdir()
        for index in range(count):
            crack = index % 2 == 0
            volume = synth_volume(spec or SynthVolumeSpec(), np.random.default_rng([seed, index]), crack=crack)
            np.save(staging / ("crack" if crack else "no_crack") / f"{index:05d}.npy", volume)
            if progress:
                progress(1)
        staging.chmod(0o755)
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _rough(rng: np.random.Generator, shape: tuple[int, ...], smoothness: float) -> NDArray[np.float64]:
    """A random field of unit variance."""
    field: NDArray[np.float64] = gaussian_filter(rng.normal(size=shape), smoothness, mode="wrap")
    field /= field.std()
    return field
