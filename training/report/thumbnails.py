"""Small pictures of the images of a data set, inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from hqtl_common.errors import InputError
from hqtl_common.preprocess import open_image, read_file

__all__ = ["thumbnail"]

_SIZE = 160


def thumbnail(root: Path, relative: str) -> str | None:
    """An image as the ``src`` of an image element, at most 160 pixels wide and high; None where it cannot be read.

    Args:
        root: The folder of images; nothing outside it is opened.
        relative: Path below it.
    """
    try:
        path = (root / relative).resolve()
        if not path.is_relative_to(root.resolve()):
            return None
        picture = open_image(read_file(path))
    except (OSError, ValueError, InputError):
        return None
    if picture.mode == "F":  # deep grey, in [0, 1]
        picture = Image.fromarray((255 * np.asarray(picture)).round().astype(np.uint8))
    picture = picture.convert("RGB")
    picture.thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
