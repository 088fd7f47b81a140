"""The map of an image: where its tiles are probably positive, laid over a small picture of it, with a legend."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hqtl_common.tiles import TileGrid, blend_map
from serving.report.regions import Region

__all__ = ["MAP_EDGE", "SCALE", "draw_map", "map_name", "png_of"]

MAP_EDGE = 2048

# Pale yellow by way of orange to a deep pink: it only gets darker, and no step needs red told from green. The colours are
# laid on like a filter, so that a dark crack stays visible below the strongest of them.
_ANCHORS = ((255, 250, 205), (255, 230, 125), (254, 185, 85), (246, 130, 95), (226, 75, 130))
SCALE = ", ".join(f"rgb{colour}" for colour in _ANCHORS)  # for a page, from 0 to 1
_COVER = 0.8  # how much of the filter is seen where the probability is 1
_LIGHT = 1.2  # a filter only darkens
_FAINT = 0.1  # probabilities below leave the picture as it is
_OUTLINE = (255, 255, 255)


def map_name(number: int, path: str) -> str:
    """File name of a map: plain ASCII whatever the image is called, and never the same twice.

    Args:
        number: Of the image.
        path: Its relative path.
    """
    ascii_only = unicodedata.normalize("NFKD", PurePosixPath(path).name).encode("ascii", "ignore").decode()
    return f"{number:06d}-{re.sub(r'[^A-Za-z0-9]+', '-', ascii_only).strip('-')[:60] or 'image'}.png"


def draw_map(
    picture: Image.Image, grid: TileGrid, scores: NDArray[np.float64], regions: list[Region], label: str, threshold: float | None
) -> Image.Image:
    """Colours over the picture, the regions outlined, and below it a legend.

    Args:
        picture: A small picture of the image, mode RGB.
        grid: Where the tiles lie in the image.
        scores: Probability of the positive label per tile, (T,).
        regions: Of tiles with that label.
        label: The positive label.
        threshold: Probability from which it is given; None with more than two labels.
    """
    values = _values(grid, scores, picture.size)
    colours = _table()[np.rint(values * 255).astype(np.intp)]
    cover = (_COVER * np.clip((values - _FAINT) / (1 - _FAINT), 0, 1) ** 0.7)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    filtered = np.minimum(grey * colours * (_LIGHT / 255), 255)
    drawn = Image.fromarray(np.rint(grey * (1 - cover) + filtered * cover).astype(np.uint8))
    _outline(drawn, grid, regions)
    return _with_legend(drawn, label, threshold, len(regions))


def png_of(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=6)
    return data.getvalue()


def _values(grid: TileGrid, scores: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """The blended map at the size (width, height) of the picture, (height, width) within [0, 1]."""
    if len(grid) == 1:
        return np.full(size[::-1], scores[0], dtype=np.float32)
    cell = max(1, min(grid.size // 8, -(-max(grid.width, grid.height) // MAP_EDGE) * 2))
    blended = blend_map(grid, scores, cell)
    box = (0.0, 0.0, grid.width / cell, grid.height / cell)  # the last cells reach over the edge
    resized = Image.fromarray(blended).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(np.clip(np.nan_to_num(np.asarray(resized)), 0, 1), dtype=np.float32)


def _table() -> NDArray[np.float32]:
    """(256, 3) colours."""
    places = np.linspace(0, 255, len(_ANCHORS))
    return np.stack([np.interp(np.arange(256), places, channel) for channel in zip(*_ANCHORS, strict=True)], axis=1).astype(np.float32)


def _outline(drawn: Image.Image, grid: TileGrid, regions: list[Region]) -> None:
    pen = ImageDraw.Draw(drawn)
    across, down = drawn.width / grid.width, drawn.height / grid.height
    width = max(1, round(max(drawn.size) / 1000))
    for region in regions:
        for ring in (region.outer, *region.holes):
            points = [(x * across, y * down) for x, y in (*ring, ring[0])]
            pen.line(points, fill=(0, 0, 0), width=width + 2)
            pen.line(points, fill=_OUTLINE, width=width)


def _with_legend(drawn: Image.Image, label: str, threshold: float | None, count: int) -> Image.Image:
    width = max(drawn.width, 420)
    size = max(14, width // 75)
    font = ImageFont.load_default(size)
    text = f"probability of {label.encode('ascii', 'replace').decode()}; outlined: {count} region{'' if count == 1 else 's'}"
    text += "" if threshold is None else f" from {threshold:.2g} on"
    left, top, length = 2 * size, drawn.height + size, min(width // 2, 30 * size)
    beside = width - left - length - 2 * size  # room for the text; where it is not enough, it goes below
    below = font.getlength(text) > beside
    sheet = Image.new("RGB", (width, drawn.height + (6 if below else 4) * size), "white")
    sheet.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(sheet)
    bar = np.repeat(_table()[np.linspace(0, 255, length).astype(np.intp)][None], size, axis=0)
    sheet.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (left, top))
    ticks = [0.0, 0.5, 1.0] if threshold is None else [0.0, threshold, 1.0]
    for tick in ticks:
        x = left + round(tick * (length - 1))
        pen.line([(x, top - size // 4), (x, top + size + size // 4)], fill="black", width=max(1, size // 10))
        pen.text((x, top + size + size // 3), f"{tick:.2g}", fill="black", font=font, anchor="ma")
    place, room = ((left, top + 7 * size // 2), width - 2 * left) if below else ((left + length + size, top + size // 2), beside)
    pen.text(place, text, fill="black", font=_fitting(text, room, size), anchor="lm")
    return sheet


def _fitting(text: str, room: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to ``size`` in which the text has room."""
    while size > 7 and ImageFont.load_default(size).getlength(text) > room:
        size -= 1
    return ImageFont.load_default(size)
