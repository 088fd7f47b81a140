"""Whole synthetic scans of concrete with several cracks, of any size in constant memory, and their masks.

An image is made strip by strip. Everything random belongs to a place, not to a strip: grid row 17 of a texture and the pores
of block (3, 5) have generators of their own, so that neighbouring strips fit together whatever their height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hqtl_common.errors import ConfigError
from training.synth import Field, SynthSpec

__all__ = ["SCAN_FOLDERS", "LargeScan", "write_scans"]

SCAN_FOLDERS = ("images", "masks")
_MAX_EDGE = 100_000
_STRIP = 256  # rows made at once
_MARGIN = 16  # rows drawn above and below a strip, wider than a pore or a crack is thick
_FINE = 4
_STEP = 3.0
_BLOCK = 256  # pores are drawn by blocks of so many pixels
_PATCH_AREA = 224.0**2  # the area that numbers of pores refer to
_OCTAVES = ((64, 0.9), (24, 0.8), (9, 0.7), (4, 0.9), (2, 1.1))
_DEFAULT = SynthSpec()
_LIGHT, _FADE, _STAIN, _GRAIN, _PORES, _CRACKS, _TEXTURE = range(7)  # what a generator is for


@dataclass(frozen=True, slots=True)
class _Line:
    """A crack: corners (n, 2) in pixels, widths (n − 1,) in pixels, and the share of light it swallows."""

    corners: NDArray[np.float64]
    widths: NDArray[np.float64]
    contrast: float


class LargeScan:
    """One synthetic scan.

    Args:
        width: Width in pixels, 256 to 100,000.
        height: Height in pixels, 256 to 100,000.
        seed: Seed of the set.
        index: Number of the scan in the set; scan i depends on (seed, i), its size and ``spec`` only.
        spec: What it looks like; ``size`` has no meaning here, pores are counted per 224 × 224 pixels.
        num_cracks: Number of cracks; each may have branches.

    Raises:
        ConfigError: A size or number outside of these ranges.
    """

    def __init__(self, width: int, height: int, seed: int, index: int, spec: SynthSpec = _DEFAULT, num_cracks: int = 5) -> None:
        if not (min(width, height) >= 256 and max(width, height) <= _MAX_EDGE) or num_cracks < 0 or seed < 0:
            raise ConfigError(
                f"expected 256 to {_MAX_EDGE:,} pixels in each direction, a number of cracks and a seed from 0; "
                f"got {width} × {height}, {num_cracks} and {seed}"
            )
        self.width, self.height = width, height
        self._key, self._spec = (seed, index), spec
        rng = self._rng(_LIGHT)
        self._brightness, self._texture, self._grain, self._stain = (
            rng.uniform(*pair) for pair in (spec.brightness, spec.texture, spec.grain, spec.stain)
        )
        self._pores_per_block = rng.uniform(*spec.pores) * _BLOCK**2 / _PATCH_AREA
        self._lines = [line for crack in range(num_cracks) for line in self._crack(self._rng(_CRACKS, crack))]

    def strip(self, top: int, rows: int) -> NDArray[np.uint8]:
        """Rows ``top`` to ``top + rows`` of the image: (rows, width) uint8."""
        size = min(self.width, self.height)
        surface = self._brightness + 8 * self._field(_LIGHT, size, top, rows)
        for number, (cell, amplitude) in enumerate(_OCTAVES):
            surface += self._texture * amplitude * self._field(_TEXTURE + number, cell, top, rows)
        stain = np.clip(0.5 + 0.5 * self._field(_STAIN, max(64, size // 12), top, rows), 0, 1) ** 2
        surface *= 1 - self._stain * stain
        surface *= 1 - 0.6 * self._pore_coverage(top, rows)
        fading = np.clip(0.8 + 0.35 * self._field(_FADE, 30, top, rows), 0.3, 1.0)
        surface *= 1 - fading * self._line_coverage(top, rows, "contrast")
        noise = np.stack([self._rng(_GRAIN, row).standard_normal(self.width, dtype=np.float32) for row in range(top, top + rows)])
        return np.clip(surface + self._grain * noise, 0, 255).astype(np.uint8)

    def mask_strip(self, top: int, rows: int) -> NDArray[np.uint8]:
        """Rows of the mask: (rows, width) uint8, 255 on crack pixels, else 0."""
        return (self._line_coverage(top, rows, "cover") >= 0.4).astype(np.uint8) * np.uint8(255)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, *purpose])

    def _field(self, purpose: int, cell: int, top: int, rows: int) -> Field:
        """Smooth noise (rows, width) of about unit variance, features about ``cell`` pixels wide."""
        first, last = top // cell, (top + rows - 1) // cell + 5
        columns = self.width // cell + 6
        grid = np.stack([self._rng(purpose, 1, row).standard_normal(columns, dtype=np.float32) for row in range(first, last)])
        above = top / cell - first + 2
        box = (2.0, above, 2 + self.width / cell, above + rows / cell)
        smooth = Image.fromarray(grid).resize((self.width, rows), Image.Resampling.BICUBIC, box=box)
        return np.asarray(smooth, dtype=np.float32) * np.float32(1.3)

    def _pore_coverage(self, top: int, rows: int) -> Field:
        image, draw = self._canvas(rows)
        for down in range(max(0, top - _MARGIN) // _BLOCK, (top + rows + _MARGIN) // _BLOCK + 1):
            for across in range(self.width // _BLOCK + 1):
                rng = self._rng(_PORES, down, across)
                count = rng.poisson(self._pores_per_block)
                centres = rng.uniform(0, _BLOCK, (count, 1, 2)) + np.array([across, down]) * _BLOCK - [0, top - _MARGIN]
                radii = np.clip(rng.lognormal(0.0, 0.5, count), 0.4, 4)
                discs = (centres + rng.normal(0, 0.45, (count, 4, 2)) * radii[:, None, None]) * _FINE
                depths = rng.integers(60, 256, count).tolist()
                for group, radius, depth in zip(discs.tolist(), (radii * _FINE).tolist(), depths, strict=True):
                    for disc in group:
                        draw.circle(disc, radius, fill=depth)
        return _reduced(image.reduce(_FINE).filter(ImageFilter.GaussianBlur(0.6)))

    def _line_coverage(self, top: int, rows: int, what: Literal["cover", "contrast"]) -> Field:
        """Share (rows, width) of each pixel that cracks cover, times their contrast if asked."""
        image, draw = self._canvas(rows)
        low, high = top - _MARGIN - _STEP, top + rows + _MARGIN + _STEP
        for line in self._lines:
            near = np.flatnonzero((line.corners[:-1, 1] > low) & (line.corners[:-1, 1] < high))
            points = ((line.corners - [0, top - _MARGIN]) * _FINE).tolist()
            fill = 255 if what == "cover" else round(255 * line.contrast)
            for number in near.tolist():
                draw.line([*points[number], *points[number + 1]], fill=fill, width=max(1, round(line.widths[number] * _FINE)))
        return _reduced(image.reduce(_FINE))

    def _canvas(self, rows: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.width * _FINE, (rows + 2 * _MARGIN) * _FINE))
        return image, ImageDraw.Draw(image)

    def _crack(self, rng: np.random.Generator) -> list[_Line]:
        """A trunk through the scan and its branches."""
        spec, reach = self._spec, min(self.width, self.height)
        start = rng.uniform(0.1, 0.9, 2) * (self.width, self.height)
        heading, width, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(*spec.crack_width), rng.uniform(*spec.contrast)
        trunk = _walk(start, heading, rng.uniform(0.3, 1.0) * reach, rng)
        lines = [_line(trunk, width, contrast, rng)]
        while len(lines) < 6 and rng.random() < spec.branch_probability:
            origin = trunk[rng.integers(len(trunk) // 6, len(trunk))]
            turned = heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
            branch = _walk(origin, turned, rng.uniform(0.1, 0.4) * reach, rng)
            lines.append(_line(branch, max(0.7 * width, spec.crack_width[0]), contrast, rng))
        return lines


def write_scans(
    root: Path,
    width: int,
    height: int,
    count: int,
    seed: int,
    spec: SynthSpec = _DEFAULT,
    num_cracks: int = 5,
    progress: Callable[[int], object] = lambda rows: None,
) -> None:
    """Writes ``root/images/scan_NNN.tif`` and ``root/masks/scan_NNN.tif``: 8-bit grey, 255 = crack in the masks.

    Args:
        root: Folder to fill; created, and empty if it exists.
        width: See :class:`LargeScan`.
        height: See :class:`LargeScan`.
        count: Number of scans, at least 1.
        seed: Seed of the set, at least 0.
        spec: What the scans look like.
        num_cracks: Cracks per scan.
        progress: Called with the number of rows finished since the last call; a scan has twice its height, image and mask.

    Raises:
        ConfigError: A number out of range, or ``root`` is not an empty folder.
    """
    if count < 1:
        raise ConfigError(f"expected at least 1 scan; got {count}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} must be a new or empty folder, so that no image of another set stays in it")
    scans = [LargeScan(width, height, seed, index, spec, num_cracks) for index in range(count)]
    for index, scan in enumerate(scans):
        for folder, strip, compression in zip(SCAN_FOLDERS, (scan.strip, scan.mask_strip), (None, "zlib"), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            _write_tiff(root / folder / f"scan_{index:03d}.tif", (height, width), _counted(strip, height, progress), compression)


def _counted(strip: Callable[[int, int], NDArray[np.uint8]], height: int, progress: Callable[[int], object]) -> Iterator[NDArray[np.uint8]]:
    for top in range(0, height, _STRIP):
        rows = min(_STRIP, height - top)
        made = strip(top, rows)
        progress(rows)  # before the last strip is handed over: the writer does not ask for more
        yield made


def _write_tiff(path: Path, shape: tuple[int, int], strips: Iterator[NDArray[np.uint8]], compression: str | None) -> None:
    """A TIFF (BigTIFF where it must be) of strips; it gets its name when it is whole."""
    import zlib

    import tifffile

    encoded = (zlib.compress(strip.tobytes(), 6) if compression else strip.tobytes() for strip in strips)
    unfinished = path.with_name(path.name + ".part")
    tifffile.imwrite(
        unfinished,
        encoded,
        shape=shape,
        dtype="uint8",
        bigtiff=math.prod(shape) > 1 << 31,
        photometric="minisblack",
        metadata=None,
        rowsperstrip=_STRIP,
        compression=compression,
    )
    unfinished.replace(path)


def _walk(start: NDArray[np.float64], heading: float, length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Corners (n, 2) of a walk that wanders about its heading and returns to it."""
    from scipy.signal import lfilter

    count = max(2, int(length / _STEP))
    wander = lfilter([1.0], [1.0, -0.99], rng.normal(0, 0.08, count)) + rng.normal(0, 0.4, count)
    steps = _STEP * np.stack([np.cos(heading + wander), np.sin(heading + wander)], axis=1)
    return np.cumsum(np.concatenate([start[None], steps]), axis=0)


def _line(corners: NDArray[np.float64], width: float, contrast: float, rng: np.random.Generator) -> _Line:
    return _Line(corners, np.clip(width * rng.normal(1, 0.15, len(corners) - 1), 0.5, None), contrast)


def _reduced(image: Image.Image) -> Field:
    """The rows of a canvas without its margins, values in [0, 1]."""
    return np.asarray(image, dtype=np.float32)[_MARGIN:-_MARGIN] / np.float32(255)
