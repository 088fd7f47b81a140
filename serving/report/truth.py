"""What is known to be true of the images: masks of crack pixels, or folders of classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import IMAGE_SUFFIXES
from hqtl_common.rasters import Raster, Window
from serving.report.originals import Originals
from serving.report.results import ImageResult
from serving.scoring.listing import Walk

__all__ = ["CRACK_PIXELS", "ClassTruth", "MaskTruth", "Truth", "open_truth"]

CRACK_PIXELS = 80  # of a tile of 224 × 224, as in hqtl-train data cut; scaled by the area of other tiles
_CRACK_VALUE = 128  # mask values from here on are crack pixels …
_CLEAR_VALUE = 32  # … and below here none; what lies between decides nothing
_ENDINGS = ("_mask", "-mask", "_label", "_gt")
_NAME = re.compile(rb"(\.nii\.gz|\.[^./]*)\Z", re.IGNORECASE)  # how the name of a file ends
_ROWS = 1 << 22  # pixels of a mask that are read at a time where there are no tiles


class ClassTruth:
    """Folders named like the labels: an image lies in one of them, or a file with its path does.

    Args:
        root: The folder of the class folders.
        labels: The bundle's.
        positive: The positive label.
    """

    kind = "class folders"

    def __init__(self, root: Path, labels: Sequence[str], positive: str) -> None:
        self._root, self._labels, self._positive = os.fsencode(root), [os.fsencode(label) for label in labels], os.fsencode(positive)

    def of_image(self, image: ImageResult) -> tuple[bool | None, list[bool | None]] | None:
        """See :class:`Truth`."""
        if image.row.get("part_kind") is not None:
            return None  # what holds of a video need not hold of each frame
        path = os.fsencode(image.path)
        first = path.partition(b"/")[0]
        found = {first} & set(self._labels) if os.path.lexists(self._root + b"/" + path) else set()
        found = found or {label for label in self._labels if os.path.lexists(self._root + b"/" + label + b"/" + path)}
        return (found == {self._positive}, []) if len(found) == 1 else None


class MaskTruth:
    """Masks with the names of the images (any suffix), alone or with ``_mask``, ``-mask``, ``_label`` or ``_gt``, at the same place.

    Args:
        root: The folder of the masks.
        folder: The folder of the images; a file is never its own mask.
        originals: Opens what lies in ``root``.

    Raises:
        InputError: The folder cannot be read.
    """

    kind = "masks"

    def __init__(self, root: Path, folder: Path, originals: Originals | None = None) -> None:
        self._originals, self._same = originals or Originals(root), root.samefile(folder)
        self._masks = {os.fsdecode(_NAME.sub(b"", path)): path for path in Walk(root, suffixes=IMAGE_SUFFIXES)}

    def of_image(self, image: ImageResult) -> tuple[bool | None, list[bool | None]] | None:
        """See :class:`Truth`.

        Raises:
            InputError: The mask has another size than the image, says nothing, or cannot be read.
        """
        kind = image.row.get("part_kind")
        if kind == "frame":
            raise InputError(f"{image.path!r}: frames of a video cannot be compared with masks; save them as images")
        name = os.fsdecode(_NAME.sub(b"", os.fsencode(image.path)))
        names = [name + ending for ending in _ENDINGS] + ([] if self._same else [name])
        mask = next((self._masks[known] for known in names if known in self._masks), None)
        if mask is None:
            return None
        part = {} if kind is None else {"part_kind": "page", "part": image.row["part"]}
        with self._originals.open({"path": os.fsdecode(mask), **part}) as raster:
            if kind is None and raster.num_pages > 1:
                raise InputError(f"{image.path!r} is one image, its mask {os.fsdecode(mask)!r} has {raster.num_pages} pages")
            if (raster.width, raster.height) != (image.row["width"], image.row["height"]):
                raise InputError(
                    f"{image.name!r} has {image.row['width']} × {image.row['height']} pixels, its mask {raster.width} × {raster.height}"
                )
            crack, unclear, highest = _counts_of_all(raster)
            if 0 < highest <= 1:
                raise InputError(
                    f"{image.name!r}: its mask {os.fsdecode(mask)!r} is all but black (no value above 1 of 255); save masks with 0 and 255"
                )
            return _decided(crack, unclear, CRACK_PIXELS), _tile_truths(raster, image)


Truth = ClassTruth | MaskTruth  # of_image gives whether an image is positive (None: undecided) and the same per tile; None without truth


def open_truth(path: Path, folder: Path, labels: Sequence[str], positive: str, originals: Originals | None = None) -> Truth:
    """Class folders where ``path`` holds one for every label, else masks.

    Args:
        path: A folder.
        folder: The scored folder.
        labels: The bundle's.
        positive: The positive label.
        originals: Opens what lies in ``path``.

    Raises:
        ConfigError: No such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"expected a folder of masks, or of one folder per class ({', '.join(labels)}); got {str(path)!r}")
    if all((path / label).is_dir() for label in labels):
        return ClassTruth(path, labels, positive)
    return MaskTruth(path, folder, originals)


def _tile_truths(raster: Raster, image: ImageResult) -> list[bool | None]:
    if not image.tiles:
        return []
    least = max(1, round(CRACK_PIXELS * (image.row["tiles"]["size"] / 224) ** 2))
    places = ([tile[name] for name in ("x", "y", "width", "height")] for tile in image.tiles)
    return [_decided(*_counts(raster.read(*place))[:2], least) for place in places]


def _counts_of_all(raster: Raster) -> tuple[int, int, float]:
    step = max(1, _ROWS // raster.width)
    strips = [_counts(raster.read(0, y, raster.width, min(step, raster.height - y))) for y in range(0, raster.height, step)]
    crack, unclear, highest = zip(*strips, strict=True)
    return sum(crack), sum(unclear), max(highest)


def _counts(window: Window) -> tuple[int, int, float]:
    """Crack pixels, pixels that decide nothing, and the highest value."""
    values: NDArray[np.float32] = np.asarray(window, dtype=np.float32) * (255 if window.dtype == np.float32 else 1)
    grey = values if values.ndim == 2 else values.max(axis=2)
    crack = int((grey >= _CRACK_VALUE).sum())
    return crack, int((grey >= _CLEAR_VALUE).sum()) - crack, float(grey.max())


def _decided(crack: int, unclear: int, least: int) -> bool | None:
    if crack >= least:
        return True
    return False if crack + unclear == 0 else None
