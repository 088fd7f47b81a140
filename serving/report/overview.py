"""A small picture of an image of any size, read strip by strip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.rasters import Raster, open_raster

__all__ = ["cut_out", "overview", "overview_of"]

_STRIP_PIXELS = 8 << 20


def overview(path: Path, edge: int) -> Image.Image:
    """The upright image in mode RGB, no longer than ``edge`` pixels; deep grey values are stretched to what the image holds.

    Args:
        path: Of the image.
        edge: Longest edge of the picture in pixels.

    Raises:
        InputError: The file cannot be read.
        ImageDecodeError: It is damaged.
    """
    with open_raster(path) as raster:
        return overview_of(raster, edge)


def overview_of(raster: Raster, edge: int) -> Image.Image:
    """The same of an opened image; see :func:`overview`.

    Raises:
        ImageDecodeError: It is damaged.
    """
    scale = min(1.0, edge / max(raster.width, raster.height))
    width, height = max(1, round(raster.width * scale)), max(1, round(raster.height * scale))
    rows = max(1, int(height * _STRIP_PIXELS / (raster.width * raster.height)))
    strips = [_strip(raster, first, min(first + rows, height), width, height) for first in range(0, height, rows)]
    values: NDArray[Any] = np.concatenate(strips)
    return Image.fromarray(_stretched(values) if values.dtype == np.float32 else values).convert("RGB")


def cut_out(raster: Raster, x: int, y: int, size: int) -> Image.Image:
    """A square of an image in mode RGB at its own resolution; smaller where it reaches over the edge.

    Args:
        raster: The image.
        x: Left edge in pixels.
        y: Upper edge in pixels.
        size: Edge length in pixels.

    Raises:
        ImageDecodeError: It is damaged.
    """
    window = raster.read(x, y, min(size, raster.width - x), min(size, raster.height - y))
    values = np.rint(window * 255).astype(np.uint8) if window.dtype == np.float32 else window
    return Image.fromarray(values).convert("RGB")


def _strip(raster: Raster, first: int, last: int, width: int, height: int) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Rows ``first`` to ``last`` of the picture."""
    step = raster.height / height
    upper, lower = int(first * step), min(raster.height, int(np.ceil(last * step)))
    image = Image.fromarray(raster.read(0, upper, raster.width, lower - upper))
    box = (0.0, first * step - upper, float(raster.width), min(last * step, raster.height) - upper)
    return np.asarray(image.resize((width, last - first), Image.Resampling.BOX, box=box))


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255), dtype=np.uint8)
