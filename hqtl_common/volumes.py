"""Volumes: a TIFF of several pages, a NumPy ``.npy`` cube or a NIfTI file → grey values (depth, size, size) in [0, 1].

The content decides what a file is, not its name. Value ranges are declared, never guessed: unsigned 8- and 16-bit voxels span
their type; TIFF pages follow the tags that :mod:`hqtl_common.value_ranges` knows; NIfTI's ``cal_min`` and ``cal_max`` count
where they are set; floating-point voxels without a declaration must lie in [0, 1].

A volume is resampled slice by slice: what is in memory is the file (unpacked, where it is compressed) and the result.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import ConfigError, ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.value_ranges import to_unit_values, usable_range

__all__ = [
    "GZIP_START",
    "MAX_EDGE",
    "MAX_UNPACKED",
    "MAX_VOXELS",
    "TIFF_STARTS",
    "VOLUME_SUFFIXES",
    "check_shape",
    "full_range",
    "nifti_kind",
    "nifti_limits",
    "nifti_shape",
    "npy_header",
    "read_volume",
    "unit_slice",
]

VOLUME_SUFFIXES = frozenset({".npy", ".nii", ".nii.gz", ".tif", ".tiff"})
MAX_VOXELS = 1 << 27  # 512 × 512 × 512
MAX_EDGE = 4096

F32 = NDArray[np.float32]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GZIP_START = b"\x1f\x8b"
MAX_UNPACKED = 1 << 30


def read_volume(data: bytes, shape: tuple[int, int, int]) -> F32:
    """Decode a volume and resample it linearly, with antialiasing, to the shape wanted.

    Args:
        data: The encoded file.
        shape: (depth, height, width) of the answer.

    Returns:
        Grey values (depth, height, width) float32 in [0, 1]; the first axis is the pages of a TIFF, the first axis of an
        array, the last axis (z) of a NIfTI file.

    Raises:
        UnknownImageFormatError: No volume of these formats.
        ImageDecodeError: Damaged, not three-dimensional, too large, in colour, or of an undeclared value range.
        ConfigError: A NIfTI file, and nibabel is not installed.
    """
    try:
        count, slices = _open(data)
        return _resample(count, slices, shape)
    except (InputError, ConfigError):
        raise
    except Exception as error:  # the parsers raise whatever they stumble over
        raise ImageDecodeError(f"the volume is damaged or cut off: {type(error).__name__}: {error}") from error


def _open(data: bytes) -> tuple[int, Iterator[F32]]:
    """Number of slices, and the slices with values in [0, 1]."""
    if data.startswith(TIFF_STARTS):
        count = _count_pages(data)
        return count, _pages(data, count)
    if data.startswith(b"\x93NUMPY"):
        array = _npy_array(data)
        return len(array), _unit_slices(array, full_range(array.dtype), "a .npy file")
    if data.startswith(GZIP_START):
        data = _unpack(data)
    if (kind := nifti_kind(data)) is not None:
        array, limits = _nifti_array(data, kind)
        return len(array), _unit_slices(array, limits, "a NIfTI file without cal_min and cal_max")
    raise UnknownImageFormatError(f"not a TIFF stack, .npy cube or NIfTI volume ({len(data):,} bytes)")


def _resample(count: int, slices: Iterator[F32], shape: tuple[int, int, int]) -> F32:
    depth, height, width = shape
    weights = _linear_weights(count, depth)
    volume = np.zeros(shape, dtype=np.float32)
    for index, plane in enumerate(slices):
        if plane.shape != (height, width):
            plane = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for position in np.flatnonzero(weights[:, index]):
            volume[position] += weights[position, index] * plane
    return volume


def _linear_weights(count: int, wanted: int) -> F32:
    """Weights (wanted, count) of a linear resampling whose filter widens with the reduction, as Pillow's does."""
    scale = count / wanted
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(count) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    normalised: F32 = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what is no volume.

    Raises:
        ImageDecodeError: Not three axes of 2 to :data:`MAX_EDGE` voxels, or more than :data:`MAX_VOXELS` in all.
    """
    if len(shape) != 3 or not all(2 <= edge <= MAX_EDGE for edge in shape) or int(np.prod(shape)) > MAX_VOXELS:
        raise ImageDecodeError(
            f"expected a volume of three axes with 2 to {MAX_EDGE:,} voxels each and at most {MAX_VOXELS:,} in all; got the shape {shape}"
        )


def _count_pages(data: bytes) -> int:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        width, height = image.size
        count = 1
        while count <= MAX_EDGE and count * width * height <= MAX_VOXELS:  # n_frames would walk to the end of any chain
            try:
                image.seek(count)
            except EOFError:
                break
            count += 1
    check_shape((count, height, width))
    return count


def _pages(data: bytes, count: int) -> Iterator[F32]:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        size = image.size
        for index in range(count):
            image.seek(index)
            if image.size != size:
                raise ImageDecodeError(f"page {index} has {image.size} pixels, the first one {size}; the pages of a volume are of one size")
            yield _grey_page(image, index)


def _grey_page(image: Image.Image, index: int) -> F32:
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    kinds = {"I;16": "16-bit", "I;16B": "16-bit", "I;16L": "16-bit", "I;16N": "16-bit", "I": "32-bit", "F": "float"}
    if image.mode not in kinds:
        raise ImageDecodeError(f"page {index} is of mode {image.mode!r}; the pages of a volume must be grey")
    return to_unit_values(np.asarray(image).astype(np.float32), getattr(image, "tag_v2", {}), kinds[image.mode])


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether by columns, and type of the numbers in a ``.npy`` file, which is left where they begin.

    Raises:
        ImageDecodeError: Not three-dimensional, too large, or no plain numbers.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ImageDecodeError(f"a .npy file of version {version} holds no plain numbers; save the array with numpy.save")
    shape, by_columns, dtype = readers[version](stream)
    check_shape(shape)
    if dtype.kind not in "uf":
        raise ImageDecodeError(f"expected voxels of type uint8, uint16 or float; got {dtype}")
    return shape, by_columns, dtype


def nifti_kind(start: bytes) -> Any:
    """The class of nibabel that reads a NIfTI file by its first 348 bytes; None for other files.

    Raises:
        ConfigError: The package nibabel is not installed.
    """
    names = {start[344:348] == b"n+1\0": "Nifti1Image", start[4:8] == b"n+2\0": "Nifti2Image"}
    if True not in names:
        return None
    try:
        import nibabel
    except ImportError as error:
        raise ConfigError("NIfTI volumes need the package nibabel: pip install 'hqtl[volumes]'") from error
    return getattr(nibabel, names[True])


def nifti_limits(header: Any, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """The range of values that a NIfTI header declares, or that the type of unscaled voxels has; None where neither does.

    Args:
        header: Of nibabel.
        dtype: Of the values that nibabel gives.
    """
    if declared := usable_range(float(header["cal_min"]), float(header["cal_max"])):
        return declared
    slope, shift = header.get_slope_inter()
    return full_range(dtype) if (slope or 1.0, shift or 0.0) == (1.0, 0.0) else None


def full_range(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """What unsigned voxels of 8 or 16 bits span; None for others."""
    return (0.0, 2.0 ** (8 * dtype.itemsize) - 1) if dtype.kind == "u" and dtype.itemsize <= 2 else None


def _npy_array(data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    shape, by_columns, dtype = npy_header(stream)
    return np.frombuffer(data, dtype, int(np.prod(shape)), stream.tell()).reshape(shape, order="F" if by_columns else "C")


def _nifti_array(data: bytes, kind: Any) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Voxels (z, y, x), and the range that the header declares."""
    image: Any = kind.from_bytes(data)
    shape = nifti_shape(image)
    if len(data) < int(np.prod(shape)) * image.get_data_dtype().itemsize:  # nibabel would ask for the memory first
        raise ImageDecodeError(f"the volume is cut off: {len(data):,} bytes cannot hold {shape} voxels")
    array = np.asarray(image.dataobj).reshape(shape).T
    return array, nifti_limits(image.header, array.dtype)


def nifti_shape(image: Any) -> tuple[int, ...]:
    """Voxels in (x, y, z) of an image of nibabel, further axes of length 1 left out.

    Raises:
        ImageDecodeError: Not three-dimensional, or too large.
    """
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_shape(shape[::-1])
    return shape


def _unit_slices(array: NDArray[Any], limits: tuple[float, float] | None, what: str) -> Iterator[F32]:
    return (unit_slice(plane, limits, what) for plane in array)


def unit_slice(plane: NDArray[Any], limits: tuple[float, float] | None, what: str) -> F32:
    """One slice of voxels → values in [0, 1].

    Args:
        plane: (height, width).
        limits: The declared range; None = voxels must be numbers in [0, 1].
        what: The kind of file, for messages.

    Raises:
        ImageDecodeError: Of an undeclared value range, or not finite.
    """
    if limits is None and plane.dtype.kind != "f":
        raise ImageDecodeError(
            f"the value range of {plane.dtype} voxels in {what} is unknown; save them as uint8, uint16 or float in [0, 1]"
        )
    low, high = limits or (0.0, 1.0)
    values = np.array(plane, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        raise ImageDecodeError("the volume holds values that are not finite numbers")
    if limits is None and (values.min() < 0 or values.max() > 1):
        raise ImageDecodeError(f"float voxels in {what} must lie in [0, 1]; got {values.min():g} to {values.max():g}")
    unit: F32 = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return unit


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    unpacked = unpacker.decompress(data, MAX_UNPACKED)
    if not unpacker.eof:
        raise ImageDecodeError(f"the volume is cut off, or unpacks to more than {MAX_UNPACKED:,} bytes")
    return unpacked
