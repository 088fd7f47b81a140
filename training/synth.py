"""A synthetic crack set: concrete with pores, stains and joints, and thin cracks whose pixels are known.

Every image has a random generator of its own, ``np.random.default_rng([seed, index])``, so that image number 7 is
the same whether 10 or 10,000 are written. What is drawn resembles photographs of concrete closely enough to try every
step of this software; it does not stand in for photographs when a model is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hqtl_common.errors import ConfigError, InputError

__all__ = ["CLASS_FOLDERS", "SynthSpec", "synth_patch", "write_dataset"]

CLASS_FOLDERS = ("no_crack", "crack")
_FINE = 4  # lines and discs are drawn at 4x and averaged down, so that widths of a fraction of a pixel exist
_STEP = 3.0  # pixels between the corners of a crack
_OCTAVES = ((64, 0.9), (24, 0.8), (9, 0.7), (4, 0.9), (2, 1.1))  # (cell in pixels, amplitude) of the texture
_BOUNDS: dict[str, tuple[float, float]] = {
    "crack_width": (0.5, 32),
    "contrast": (0.01, 1),
    "brightness": (1, 254),
    "texture": (0, 64),
    "grain": (0, 64),
    "pores": (0, 10_000),
    "stain": (0, 0.99),
}

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SynthSpec:
    """What the patches look like; every pair is the (low, high) of a uniform draw per patch.

    Args:
        size: Edge length in pixels, 32 to 2048.
        crack_width: Width of a crack in pixels, 0.5 to 32.
        contrast: Share of the light that a crack swallows, 0.01 to 1; it also fades and returns along the path.
        brightness: Mean grey level, 1 to 254.
        texture: Strength of the concrete's texture in grey levels, 0 to 64.
        grain: Standard deviation of the sensor's noise in grey levels, 0 to 64.
        pores: Number of pores per patch, whole numbers from 0 to 10,000.
        stain: Share of the light that stains swallow, 0 to 0.99.
        branch_probability: Probability that a crack has a branch, and that it has a second one after that.
        joint_probability: Probability of a straight, broad joint or formwork edge, with or without a crack.

    Raises:
        ConfigError: A value outside the ranges above.
    """

    size: int = 224
    crack_width: tuple[float, float] = (1.0, 2.0)
    contrast: tuple[float, float] = (0.2, 0.55)
    brightness: tuple[float, float] = (105.0, 190.0)
    texture: tuple[float, float] = (2.0, 5.5)
    grain: tuple[float, float] = (1.0, 4.0)
    pores: tuple[int, int] = (5, 60)
    stain: tuple[float, float] = (0.0, 0.15)
    branch_probability: float = 0.4
    joint_probability: float = 0.15

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 2048:
            raise ConfigError(f"size must be 32 to 2048 pixels; got {self.size}")
        for name, (lowest, highest) in _BOUNDS.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ConfigError(f"{name} must be (low, high) within {lowest} to {highest}; got ({low}, {high})")
        for name in ("branch_probability", "joint_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1; got {getattr(self, name)}")


def synth_patch(spec: SynthSpec, rng: np.random.Generator, crack: bool) -> tuple[NDArray[np.uint8], Mask]:
    """One patch (size, size) uint8, grey levels 0 to 255, and its mask (size, size) bool, True on crack pixels.

    From a generator in the same state the patches with and without a crack differ only near the crack.

    Args:
        spec: What the patch looks like.
        rng: Source of all randomness; it is advanced.
        crack: Whether to draw a crack; without one the mask is all False.
    """
    surface = _concrete(spec, rng)
    noise = rng.uniform(*spec.grain) * rng.standard_normal(surface.shape, dtype=np.float32)
    mask = np.zeros(surface.shape, dtype=bool)
    if crack:
        covered = _crack_coverage(spec, rng)
        fading = np.clip(0.8 + 0.35 * _field(spec.size, 30, rng), 0.3, 1.0)
        surface *= 1 - rng.uniform(*spec.contrast) * fading * covered
        mask = covered >= 0.4
    return np.clip(surface + noise, 0, 255).astype(np.uint8), mask


def write_dataset(
    root: Path,
    num_images: int,
    seed: int,
    spec: SynthSpec = SynthSpec(),
    crack_fraction: float = 0.5,
    masks: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes ``root/crack/NNNNNN.png`` and ``root/no_crack/NNNNNN.png``, 8-bit grey, and their masks if asked.

    Args:
        root: Folder to fill; created, and empty if it exists.
        num_images: Number of images of both classes together, at least 1.
        seed: Seed of the set, at least 0; image i depends on (seed, i), its class and ``spec`` only.
        spec: What the patches look like.
        crack_fraction: Share of the images with a crack, 0 to 1; cracks are spread evenly over the numbers.
        masks: Folder for the masks under the same relative names, 255 = crack; outside of ``root``.
        progress: Called with the number of images written so far, after each.

    Raises:
        ConfigError: A number outside the ranges above, or masks inside ``root``, where they would be a class.
        InputError: ``root`` is not an empty folder.
    """
    _check_request(root, num_images, seed, crack_fraction, masks)
    targets = [root] if masks is None else [root, masks]
    for folder in (target / name for target in targets for name in CLASS_FOLDERS):
        folder.mkdir(parents=True, exist_ok=True)
    cracks_before = np.floor(np.arange(num_images + 1) * crack_fraction + 1e-9)
    for index, crack in enumerate(np.diff(cracks_before).astype(bool).tolist()):
        patch, mask = synth_patch(spec, np.random.default_rng([seed, index]), crack)
        name = f"{CLASS_FOLDERS[crack]}/{index:06d}.png"
        for target, pixels in zip(targets, (patch, mask), strict=False):
            Image.fromarray(pixels).convert("L").save(target / name)
        if progress:
            progress(index + 1)


def _check_request(root: Path, num_images: int, seed: int, crack_fraction: float, masks: Path | None) -> None:
    if num_images < 1 or seed < 0 or not 0 <= crack_fraction <= 1:
        raise ConfigError(
            "expected at least 1 image, a seed from 0 and a share of cracks from 0 to 1; "
            f"got num_images={num_images}, seed={seed}, crack_fraction={crack_fraction}"
        )
    if masks is not None and masks.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"masks in {masks} would be read as a class of {root}; choose a folder outside of it")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} must be a new or empty folder, so that no image of another set stays in it")


def _field(size: int, cell: int, rng: np.random.Generator) -> Field:
    """Smooth noise (size, size) of about unit variance whose features are about ``cell`` pixels wide."""
    grid = rng.standard_normal((size // cell + 3,) * 2, dtype=np.float32)
    extent = size / cell + 1
    box = (1.0, 1.0, extent, extent)
    smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth, dtype=np.float32) * np.float32(1.3)


def _concrete(spec: SynthSpec, rng: np.random.Generator) -> Field:
    """The surface without cracks (size, size), grey levels before the sensor's noise."""
    size = spec.size
    surface = np.full((size, size), rng.uniform(*spec.brightness), dtype=np.float32)
    surface += 8 * _field(size, size, rng)
    texture = rng.uniform(*spec.texture)
    for cell, amplitude in _OCTAVES:
        surface += texture * amplitude * _field(size, cell, rng)
    surface *= 1 - rng.uniform(*spec.stain) * np.clip(0.5 + 0.5 * _field(size, size // 5, rng), 0, 1) ** 2
    if rng.random() < spec.joint_probability:
        surface *= _joint(size, rng)
    surface *= 1 - 0.6 * _pores(size, int(rng.integers(*spec.pores, endpoint=True)), rng)
    surface *= 1 + 0.2 * _pores(size, int(rng.integers(0, 25)), rng)  # grains of light aggregate
    return surface


def _joint(size: int, rng: np.random.Generator) -> Field:
    """Factor (size, size) of a straight joint 4 to 12 pixels wide, lighter or darker, one side brighter."""
    angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15)
    rows, columns = np.mgrid[:size, :size].astype(np.float32) - rng.uniform(0.15, 0.85, (2, 1, 1)) * size
    distance = (columns * math.cos(angle) + rows * math.sin(angle)) / rng.uniform(2, 6)
    line = rng.uniform(-0.2, 0.1) * np.exp(-(distance**4))
    step = rng.uniform(-0.06, 0.06) * np.tanh(distance)
    return np.asarray(1 + line + step, dtype=np.float32)


def _pores(size: int, count: int, rng: np.random.Generator) -> Field:
    """Coverage (size, size) in [0, 1] of ``count`` small soft blots of four discs each, one in six drawn out."""
    image, draw = _canvas(size)
    radii = np.clip(rng.lognormal(0.0, 0.5, count), 0.4, 4) * _FINE
    drawn_out = rng.normal(0, 1.5, (count, 1, 2)) * (rng.random(count) < 1 / 6)[:, None, None]
    offsets = rng.normal(0, 0.45, (count, 4, 2)) + drawn_out * rng.uniform(-1, 1, (count, 4, 1))
    centres = rng.uniform(0, size * _FINE, (count, 1, 2)) + offsets * radii[:, None, None]
    depths = rng.integers(60, 256, count).tolist()
    for discs, radius, depth in zip(centres.tolist(), radii.tolist(), depths, strict=True):
        for disc in discs:
            draw.circle(disc, radius, fill=depth)
    return _coverage(image, blur=0.6)


def _crack_coverage(spec: SynthSpec, rng: np.random.Generator) -> Field:
    """Coverage (size, size) in [0, 1] of one crack through the middle of the patch, with its branches."""
    image, draw = _canvas(spec.size)
    heading = rng.uniform(0, 2 * np.pi)
    anchor = rng.uniform(0.3, 0.7, 2) * spec.size
    width = rng.uniform(*spec.crack_width)
    trunk = np.concatenate([_walk(anchor, heading, spec.size, rng)[::-1], _walk(anchor, heading + np.pi, spec.size, rng)])
    _stroke(draw, trunk, width, rng)
    for _ in range(2):
        if rng.random() >= spec.branch_probability:
            break
        side = rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
        start = trunk[rng.integers(len(trunk) // 4, 3 * len(trunk) // 4)]
        _stroke(draw, _walk(start, heading + side, spec.size // 2, rng), max(0.7 * width, spec.crack_width[0]), rng)
    return _coverage(image)


def _walk(start: Points, heading: float, reach: int, rng: np.random.Generator) -> Points:
    """Corners (n, 2) in pixels (x, y) of a random walk of length 0.4 to 1 ``reach`` that keeps its direction."""
    count = int(rng.uniform(0.4, 1.0) * reach / _STEP)
    headings = heading + np.cumsum(rng.normal(0, 0.09, count)) + rng.normal(0, 0.4, count)
    steps = _STEP * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return np.cumsum(np.concatenate([start[None], steps]), axis=0)


def _stroke(draw: ImageDraw.ImageDraw, corners: Points, width: float, rng: np.random.Generator) -> None:
    widths = np.clip(width * rng.normal(1, 0.15, len(corners) - 1), 0.5, None) * _FINE
    points = (corners * _FINE).tolist()
    for start, end, line in zip(points[:-1], points[1:], widths, strict=True):
        draw.line([*start, *end], fill=255, width=max(1, round(line)))


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (size * _FINE, size * _FINE))
    return image, ImageDraw.Draw(image)


def _coverage(image: Image.Image, blur: float = 0.0) -> Field:
    reduced = image.reduce(_FINE).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(reduced, dtype=np.float32) / np.float32(255)
