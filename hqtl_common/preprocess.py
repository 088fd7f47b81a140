"""Bytes or a file → ``pixels``: the same bytes give the same array offline and online.

Only Pillow and NumPy are used. For 8-bit images the result equals torchvision's
``Resize((size, size)) → ToTensor → Normalize``; deeper images keep their depth.

Value ranges are declared, never guessed: 8-bit images are 0…255, 16-bit ones 0…65535 unless TIFF tags name a smaller bit
depth (MaxSampleValue 4095 for 12 bits); 32-bit and float images need the tags SMinSampleValue and SMaxSampleValue.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hqtl_common.errors import ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.specs import PreprocessSpec

__all__ = ["FORMATS", "IMAGE_SUFFIXES", "MAX_BYTES", "MAX_PIXELS", "open_image", "preprocess", "preprocess_batch", "read_file"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
MAX_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
MAX_BYTES = 1 << 30

_EIGHT_BIT = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_ALPHA = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_SMIN_SMAX, _MIN_MAX = (340, 341), (280, 281)  # TIFF tags SMin/SMaxSampleValue, Min/MaxSampleValue
# At 16 bits only a whole bit depth is a declaration: some writers put this picture's own extremes into these tags.
_BIT_DEPTHS = frozenset((0.0, 2.0**bits - 1) for bits in range(8, 17))
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; pipes, sockets and devices are refused instead of waited for.

    Raises:
        InputError: The path does not exist, cannot be read, is not a regular file or is larger than ``max_bytes``.
    """
    name = os.fsdecode(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"expected an image file; {name!r} is not a regular file")
            if status.st_size > max_bytes:
                raise InputError(f"{name!r} has {status.st_size:,} bytes; the limit is {max_bytes:,}")
            return file.read(max_bytes)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from error


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode bytes by content to a Pillow image in mode ``RGB`` (8 bit) or ``F`` (deeper grey, values in [0, 1]).

    EXIF orientation is applied, transparency is composited on white, palettes and CMYK become RGB.

    Args:
        data: An encoded PNG, JPEG, TIFF, BMP or WebP image; the declared type or file name plays no part.
        max_pixels: Largest width × height, checked before any pixel is decoded.

    Raises:
        UnknownImageFormatError: Not an image of these formats.
        ImageDecodeError: Damaged, too large, several pages, or of an undeclared value range.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy would lose the TIFF tags
            return _to_rgb_or_unit(image)
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        raise UnknownImageFormatError(f"not a {', '.join(FORMATS)} image ({len(data):,} bytes)") from error
    except Exception as error:  # the parsers of Pillow raise whatever they stumble over: struct.error, IndexError, …
        raise ImageDecodeError(f"the image is damaged or cut off: {type(error).__name__}: {error}") from error


def preprocess(
    source: bytes | str | os.PathLike[str], spec: PreprocessSpec | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.float32]:
    """One image → pixels (3, size, size) float32, normalised.

    Args:
        source: Encoded bytes, or the path of a file that holds them.
        spec: Size and normalisation (default: 224 and ImageNet's).
        max_pixels: See :func:`open_image`.

    Raises:
        InputError: The file cannot be read.
        ImageDecodeError: See :func:`open_image`.
    """
    spec = spec or PreprocessSpec()
    data = source if isinstance(source, bytes) else read_file(source)
    image = open_image(data, max_pixels)
    if image.size != (spec.size, spec.size):
        image = image.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    values = np.asarray(image)
    if image.mode == "F":
        return _normalise(np.repeat(values[None], 3, axis=0), spec)
    pixels = np.empty((3, spec.size, spec.size), dtype=np.float32)
    for channel, table in enumerate(_byte_tables(spec)):
        np.take(table, values[:, :, channel], out=pixels[channel], mode="clip")
    return pixels


def preprocess_batch(sources: Sequence[bytes | str | os.PathLike[str]], spec: PreprocessSpec | None = None) -> NDArray[np.float32]:
    """Several images → pixels (B, 3, size, size) float32; see :func:`preprocess`.

    Raises:
        InputError: The first source that cannot be used; its position is part of the message.
    """
    spec = spec or PreprocessSpec()
    pixels = np.empty((len(sources), 3, spec.size, spec.size), dtype=np.float32)
    for index, source in enumerate(sources):
        try:
            pixels[index] = preprocess(source, spec)
        except InputError as error:
            name = f"image {index}" if isinstance(source, bytes) else repr(os.fsdecode(Path(source)))
            raise type(error)(f"{name}: {error}") from error
    return pixels


def _normalise(unit: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Values in [0, 1] (3, …) → normalised values of the same shape."""
    mean, std = (np.asarray(values, dtype=np.float32).reshape(3, *[1] * (unit.ndim - 1)) for values in (spec.mean, spec.std))
    return (unit - mean) / std


@lru_cache(maxsize=8)
def _byte_tables(spec: PreprocessSpec) -> NDArray[np.float32]:
    """The normalised value of every byte, (3, 256): a look-up costs a sixth of computing it per pixel."""
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    return _normalise(np.repeat(unit[None], 3, axis=0), spec)


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels or not width or not height:
        raise ImageDecodeError(f"the image has {width} × {height} pixels; at least 1 and at most {max_pixels:,} are allowed")
    # n_frames would walk through all pages of a TIFF; a second picture in a phone's JPEG (MPO) is a preview or a depth map.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageDecodeError(f"the {image.format} file holds several pages or frames; save the wanted one as a file of its own")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _to_rgb_or_unit(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP:
        return _to_unit(image)
    if image.mode in _ALPHA or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(_to_rgba(image))
        return opaque.convert("RGB")
    if image.mode in _EIGHT_BIT:
        return image.convert("RGB")
    raise ImageDecodeError(f"images of mode {image.mode!r} are not supported; save it as 8- or 16-bit grey or 8-bit colour")


def _to_rgba(image: Image.Image) -> Image.Image:
    premultiplied = {"La": "LA", "RGBa": "RGBA"}
    return image.convert(premultiplied.get(image.mode, image.mode)).convert("RGBA")


def _to_unit(image: Image.Image) -> Image.Image:
    low, high = _declared_range(image)
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageDecodeError("the image holds values that are not finite numbers")
    values -= np.float32(low)
    values /= np.float32(high - low)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts these only at 8 bits
        np.subtract(1, values, out=values)
    return Image.fromarray(np.clip(values, 0, 1, out=values))


def _declared_range(image: Image.Image) -> tuple[float, float]:
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        full = 2.0 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
        declared = (_tagged_range(tags, *pair) for pair in (_SMIN_SMAX, _MIN_MAX))
        return next((found for found in declared if found in _BIT_DEPTHS), (0.0, full))
    if found := _tagged_range(tags, *_SMIN_SMAX):
        return found
    raise ImageDecodeError(
        f"the value range of a {'float' if image.mode == 'F' else '32-bit'} image is unknown: declare it in the TIFF tags "
        "SMinSampleValue and SMaxSampleValue, or save the image as 8- or 16-bit grey"
    )


def _tagged_range(tags: Any, low_tag: int, high_tag: int) -> tuple[float, float] | None:
    if high_tag not in tags:
        return None
    low, high = float(np.ravel(tags.get(low_tag, 0))[0]), float(np.ravel(tags[high_tag])[0])
    return (low, high) if np.isfinite([low, high]).all() and low < high else None
