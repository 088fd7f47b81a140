"""A picture of a data set: some images of each class side by side."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hqtl_common.preprocess import open_image, read_file
from training.data import ImageDataset, Sample

__all__ = ["draw_contact_sheet"]

_CELL, _GAP, _TITLE, _CAPTION = 180, 10, 44, 20  # pixels
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # a font that is there on every machine


def draw_contact_sheet(
    dataset: ImageDataset, path: Path, broken: Collection[str] = (), per_class: int = 16, columns: int = 8, seed: int = 0
) -> None:
    """Writes a PNG with a block of images per class, each above its file name.

    Args:
        dataset: The samples.
        path: File to write.
        broken: Relative paths to leave out.
        per_class: At most so many images of each class, drawn by ``seed`` and shown in the order of their names.
        columns: Images per row.
        seed: Seed of the draw.
    """
    chosen = [_choice(dataset, label, broken, per_class, seed) for label in range(len(dataset.labels))]
    heights = [_TITLE + -(-len(samples) // columns) * (_CELL + _CAPTION + _GAP) for samples in chosen]
    sheet = Image.new("RGB", (_GAP + columns * (_CELL + _GAP), sum(heights) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    bold, plain = (ImageFont.truetype(str(_FONTS / name), size) for name, size in (("DejaVuSans-Bold.ttf", 20), ("DejaVuSans.ttf", 12)))
    top = 0
    for label, (samples, height) in enumerate(zip(chosen, heights, strict=True)):
        total = sum(sample.label == label for sample in dataset.samples)
        draw.text((_GAP, top + 10), f"{_shown(dataset.labels[label], 80)} ({total} images)", "black", bold)
        for number, sample in enumerate(samples):
            row, column = divmod(number, columns)
            corner = (_GAP + column * (_CELL + _GAP), top + _TITLE + row * (_CELL + _CAPTION + _GAP))
            sheet.paste(_thumbnail(sample), corner)
            draw.text((corner[0], corner[1] + _CELL + 2), _shown(Path(sample.relative).stem, 24), "black", plain)
        top += height
    sheet.save(path, "PNG")


def _choice(dataset: ImageDataset, label: int, broken: Collection[str], count: int, seed: int) -> list[Sample]:
    usable = [sample for sample in dataset.samples if sample.label == label and sample.relative not in broken]
    order = np.random.default_rng([seed, label]).permutation(len(usable))[:count]
    return [usable[index] for index in sorted(order.tolist())]


def _thumbnail(sample: Sample) -> Image.Image:
    """The image within a cell, its shape kept."""
    image = open_image(read_file(sample.path))
    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).astype(np.uint8))
    scale = _CELL / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR).convert("RGB")


def _shown(name: str, length: int) -> str:
    """A name that fits on one line, both ends kept, without bytes that are no text."""
    text = " ".join(name.encode(errors="replace").decode().split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length - length // 2 - 1) :]}"
