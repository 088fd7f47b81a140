"""The slices of a volume one at a time, read from its file as they are asked for: a ``.npy`` cube or a NIfTI file.

The values are those of :func:`hqtl_common.volumes.read_volume`; slices of unsigned bytes that span their type stay bytes, as in a
picture of 8 bits.
"""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ImageDecodeError, UnknownImageFormatError
from hqtl_common.volumes import GZIP_START, MAX_UNPACKED, full_range, nifti_kind, nifti_limits, nifti_shape, npy_header, unit_slice

__all__ = ["VolumeSlices"]

_HEADER = 540  # of the longer of the two kinds of NIfTI


class VolumeSlices:
    """The slices of an opened volume along its first axis (z of a NIfTI file). Quickest in ascending order.

    Args:
        file: The volume; closed by :meth:`close`.

    Raises:
        UnknownImageFormatError: No volume of these formats.
        ImageDecodeError: Damaged, not three-dimensional or too large.
        ConfigError: A NIfTI file, and nibabel is not installed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.read(len(GZIP_START) + 4)
        file.seek(0)
        if start.startswith(b"\x93NUMPY"):
            shape, by_columns, dtype = npy_header(file)
            order: Any = "F" if by_columns else "C"
            self._voxels: Any = np.memmap(file, dtype, "r", file.tell(), shape, order)
            self._count, self._limits, self._what = shape[0], full_range(dtype), "a .npy file"
            return
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if start.startswith(GZIP_START) else file
        kind = nifti_kind(stream.read(_HEADER))
        if kind is None:
            raise UnknownImageFormatError("not a .npy cube or a NIfTI volume")
        self._open_nifti(kind, stream)

    def __len__(self) -> int:
        """Number of slices."""
        return self._count

    def read(self, index: int) -> NDArray[np.uint8] | NDArray[np.float32]:
        """One slice (height, width): uint8, or float32 in [0, 1].

        Raises:
            ImageDecodeError: Damaged or cut off there, of an undeclared value range, or not finite.
        """
        plane: NDArray[Any] = self._plane(index)
        if plane.dtype == np.uint8 and self._limits == (0.0, 255.0):
            return np.ascontiguousarray(plane)
        return unit_slice(plane, self._limits, self._what)

    def close(self) -> None:
        """Release the file."""
        self._voxels = None
        self._file.close()

    def _open_nifti(self, kind: Any, stream: BinaryIO) -> None:
        stream.seek(0)
        header = kind.header_class.from_fileobj(io.BytesIO(stream.read(kind.header_class.sizeof_hdr)), check=False)
        size = int(np.prod([max(1, int(edge)) for edge in header.get_data_shape()], dtype=object)) * header.get_data_dtype().itemsize
        if not 0 <= header.get_data_offset() <= header.get_data_offset() + size <= MAX_UNPACKED:
            raise ImageDecodeError(f"the volume unpacks to more than {MAX_UNPACKED:,} bytes")
        stream.seek(0)
        image = kind.from_stream(stream)
        shape = nifti_shape(image)
        self._voxels, self._extra = image.dataobj, (0,) * (len(image.shape) - len(shape))
        self._count, self._what = shape[2], "a NIfTI file without cal_min and cal_max"
        self._limits = nifti_limits(image.header, self._plane(0).dtype)

    def _plane(self, index: int) -> NDArray[Any]:
        if isinstance(self._voxels, np.memmap):
            return np.asarray(self._voxels[index])
        return np.asarray(self._voxels[(slice(None), slice(None), index, *self._extra)]).T
