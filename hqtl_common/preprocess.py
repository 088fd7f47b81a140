"""Bytes or a file → ``pixels``: the same bytes give the same array offline and online.

Only Pillow and NumPy are used. For 8-bit images the result equals torchvision's
``Resize((size, size)) → ToTensor → Normalize``; deeper images keep their depth.

Value ranges are declared, never guessed: 8-bit images are 0…255, 16-bit ones 0…65535 unless TIFF tags name a smaller bit
depth (MaxSampleValue 4095 for 12 bits); 32-bit and float images need the tags SMinSampleValue and SMaxSampleValue.
Where a spec has a depth, files are volumes (:mod:`hqtl_common.volumes`).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hqtl_common.errors import ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.specs import PreprocessSpec
from hqtl_common.value_ranges import to_unit_values
from hqtl_common.volumes import TIFF_STARTS, VOLUME_SUFFIXES, read_volume

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "image_to_pixels",
    "is_several_pages",
    "open_image",
    "open_regular_file",
    "preprocess",
    "preprocess_batch",
    "read_file",
    "suffixes_of",
    "to_rgb_or_unit",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
MAX_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
MAX_BYTES = 1 << 30

_EIGHT_BIT = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_ALPHA = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; pipes, sockets and devices are refused instead of waited for.

    Raises:
        InputError: The path does not exist, cannot be read, is not a regular file or is larger than ``max_bytes``.
    """
    try:
        with open_regular_file(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > max_bytes:
                raise InputError(f"{os.fsdecode(path)!r} has {size:,} bytes; the limit is {max_bytes:,}")
            return file.read(max_bytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file opened for reading; the caller closes it.

    Raises:
        InputError: The path does not exist, cannot be read or is not a regular file.
    """
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  (the caller closes it)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"expected an image file; {os.fsdecode(path)!r} is not a regular file")
    return file


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
            return to_rgb_or_unit(image)
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(TIFF_STARTS):
            what = "the TIFF file is damaged, or of a kind that cannot be read"
            raise ImageDecodeError(f"{what}; save it as 8- or 16-bit grey or 8-bit colour") from error
        raise UnknownImageFormatError(f"not a {', '.join(FORMATS)} image ({len(data):,} bytes)") from error
    except Exception as error:  # the parsers of Pillow raise whatever they stumble over: struct.error, IndexError, …
        raise ImageDecodeError(f"the image is damaged or cut off: {type(error).__name__}: {error}") from error


def preprocess(
    source: bytes | str | os.PathLike[str], spec: PreprocessSpec | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.float32]:
    """One image → pixels (3, size, size) float32, normalised; where the spec has a depth, one volume → (3, depth, size, size).

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
    if spec.depth is not None:
        unit = read_volume(data, (spec.depth, spec.size, spec.size))
        return _normalise(np.repeat(unit[None], 3, axis=0), spec)
    return image_to_pixels(open_image(data, max_pixels), spec)


def image_to_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """An image in mode ``RGB``, or ``F`` with values in [0, 1] → pixels (3, size, size) float32, resized and normalised."""
    if image.size != (spec.size, spec.size):
        image = image.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
    values = np.asarray(image)
    if image.mode == "F":
        return _normalise(np.repeat(values[None], 3, axis=0), spec)
    pixels = np.empty((3, spec.size, spec.size), dtype=np.float32)
    for channel, table in enumerate(_byte_tables(spec)):
        np.take(table, values[:, :, channel], out=pixels[channel], mode="clip")
    return pixels


def suffixes_of(spec: PreprocessSpec) -> tuple[str, ...]:
    """How the names of files end that this preprocessing may read, lower case, in order."""
    return tuple(sorted(IMAGE_SUFFIXES if spec.depth is None else VOLUME_SUFFIXES))


def is_several_pages(image: Image.Image) -> bool:
    """Whether the file behind an opened image holds several pages or frames."""
    # n_frames would walk through all pages of a TIFF; a second picture in a phone's JPEG (MPO) is a preview or a depth map.
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def preprocess_batch(sources: Sequence[bytes | str | os.PathLike[str]], spec: PreprocessSpec | None = None) -> NDArray[np.float32]:
    """Several images or volumes → pixels (B, *spec.pixels_shape) float32; see :func:`preprocess`.

    Raises:
        InputError: The first source that cannot be used; its position is part of the message.
    """
    spec = spec or PreprocessSpec()
    pixels = np.empty((len(sources), *spec.pixels_shape), dtype=np.float32)
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
    if is_several_pages(image):
        raise ImageDecodeError(f"the {image.format} file holds several pages or frames; save the wanted one as a file of its own")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> InputError:
    return InputError(f"cannot read {os.fsdecode(path)!r}: {getattr(error, 'strerror', None) or error}")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def to_rgb_or_unit(image: Image.Image, tags: Mapping[int, Any] | None = None) -> Image.Image:
    """A decoded image of any mode → mode ``RGB``, or ``F`` with values in [0, 1] for deeper grey.

    Args:
        image: Decoded pixels.
        tags: TIFF tags that declare the range of deep values; by default those of the image's file.

    Raises:
        ImageDecodeError: Another mode, values that are not finite, or an undeclared range.
    """
    if image.mode in _DEEP:
        kind = "16-bit" if image.mode.startswith("I;16") else "float" if image.mode == "F" else "32-bit"
        tags = getattr(image, "tag_v2", {}) if tags is None else tags
        return Image.fromarray(to_unit_values(np.asarray(image).astype(np.float32), tags, kind))
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
