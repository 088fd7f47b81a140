"""The processes that decode uploads: a nursery forks one child per slot, and another one when a child dies.

Started as ``python -m serving.decoder_process`` by :mod:`serving.decoder`. The nursery never looks at an image, so that no image
can harm it; a child that does is on its own: no file or socket can be opened in it, its memory is limited, and a timer
ends it when one image takes too long. Bytes and pixels travel through shared memory, a socket carries short messages of fixed
form, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from hqtl_common.errors import ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.preprocess import FORMATS, preprocess
from hqtl_common.specs import PreprocessSpec
from serving.errors import TooLargeError
from serving.photo_header import header_of

__all__ = ["DAMAGED", "DIED", "OK", "REPLY", "REQUEST", "TOO_LARGE", "UNKNOWN", "Job", "check_and_preprocess", "main"]

REQUEST = struct.Struct("<QQ")  # number of the request, bytes of the image
REPLY = struct.Struct("<QB")  # number of the request, one of the codes below; then text
OK, DAMAGED, UNKNOWN, TOO_LARGE, DIED = range(5)

_NUMBER = struct.Struct("<Q")  # at the start of the shared memory: what the child is working on
_BYTES_PER_PIXEL = 40  # the greediest path through Pillow, with room to spare
_BYTES_PER_PIXEL_WHOLE = 16
_ROOM = 256 * 2**20
_MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Job:
    """What every child needs to know, and how its shared memory is laid out: number, image, pixels.

    Args:
        spec: The bundle's preprocessing.
        max_bytes: Largest encoded image.
        max_pixels: Largest width × height.
        timeout_s: Seconds for one image.
        whole: Keep the image as it is, upright, in place of the pixels of the bundle.
        described: Also give what the image says about itself.
    """

    spec: PreprocessSpec
    max_bytes: int
    max_pixels: int
    timeout_s: float
    whole: bool = False
    described: bool = False

    @property
    def image_at(self) -> int:
        """Offset of the encoded image."""
        return _NUMBER.size

    @property
    def pixels_at(self) -> int:
        """Offset of the pixels, aligned."""
        return -(-(self.image_at + self.max_bytes) // 64) * 64

    @property
    def num_values(self) -> int:
        """Numbers in the pixels of one image."""
        return 3 * self.spec.size**2

    @property
    def memory_size(self) -> int:
        """Bytes of the shared memory of one slot."""
        return self.pixels_at + 4 * (self.max_pixels if self.whole else self.num_values)

    def to_json(self) -> str:
        """For the command line of the nursery."""
        return json.dumps({**asdict(self), "spec": self.spec.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reverse of :meth:`to_json`."""
        values = json.loads(text)
        return cls(**{**values, "spec": PreprocessSpec.from_dict(values["spec"])})


@dataclass(frozen=True, slots=True)
class _Slot:
    control: socket.socket
    memory: mmap.mmap


def check_and_preprocess(data: bytes, spec: PreprocessSpec, max_pixels: int) -> NDArray[np.float32]:
    """One upload → pixels (3, S, S); the size in its header is checked before anything is decoded.

    Raises:
        TooLargeError: Too many pixels, or more memory than allowed.
        UnknownImageFormatError: No image of an allowed format.
        InputError: Damaged, or of a kind that is not supported.
    """
    try:
        _check_pixels(data, max_pixels)
        return preprocess(data, spec, max_pixels)
    except InputError as error:
        if isinstance(error.__cause__, MemoryError):
            raise TooLargeError("the image needs more memory than the service allows for one image") from error
        raise
    except Exception as error:  # hostile bytes in a decoder written in C: whatever it raises, the image is to blame
        raise ImageDecodeError(f"the image is damaged: {type(error).__name__}: {error}") from error


def main() -> None:
    """The nursery: keep one child per slot until the service closes them all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the service, which closes the slots when it is done
        signal.signal(number, signal.SIG_IGN)
    job, slots = Job.from_json(sys.argv[1]), [_open(int(control), int(memory)) for control, memory in json.loads(sys.argv[2])]
    warnings.simplefilter("ignore")
    _warm(job)
    children = {_fork(slot, slots, job): slot for slot in slots}
    while children:
        pid, status = os.wait()
        slot, code = children.pop(pid), os.waitstatus_to_exitcode(status)
        if code == 0:  # the service has closed it
            continue
        _report(slot, code)
        children[_fork(slot, slots, job)] = slot
        time.sleep(0.01)  # whatever happens, this is no fork bomb


def _open(control: int, memory: int) -> _Slot:
    slot = _Slot(socket.socket(fileno=control), mmap.mmap(memory, 0))
    os.close(memory)
    return slot


def _report(slot: _Slot, code: int) -> None:
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    (number,) = _NUMBER.unpack_from(slot.memory)
    with contextlib.suppress(OSError):  # the service has gone, which the next child will notice
        slot.control.send(REPLY.pack(number, DIED) + name.encode(), socket.MSG_DONTWAIT)


def _fork(slot: _Slot, slots: list[_Slot], job: Job) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for other in slots:
            if other is not slot:
                other.control.close()
        _confine(job)
        _serve(slot, job)
    except BaseException:
        os._exit(70)


def _confine(job: Job) -> None:
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    memory = in_use + (_BYTES_PER_PIXEL_WHOLE if job.whole else _BYTES_PER_PIXEL) * job.max_pixels + 2 * job.max_bytes + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def _serve(slot: _Slot, job: Job) -> NoReturn:
    # Whoever dies before the number is written leaves the request to the next child; afterwards it is the image's fault.
    while request := slot.control.recv(REQUEST.size, socket.MSG_PEEK):
        number, length = REQUEST.unpack(request)
        _NUMBER.pack_into(slot.memory, 0, number)
        slot.control.recv(REQUEST.size)
        signal.setitimer(signal.ITIMER_REAL, job.timeout_s)  # nobody handles its signal, so that it ends this process
        code, text = _decode(slot.memory[job.image_at : job.image_at + length], job, slot.memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        slot.control.send(REPLY.pack(number, code) + text.encode("utf-8", "replace")[:_MAX_TEXT])
    os._exit(0)


def _decode(data: bytes, job: Job, memory: mmap.mmap) -> tuple[int, str]:
    """The code of the reply and its text, after a line of what the image says about itself where the job wants it."""
    about = f"{header_of(data).to_text()}\n" if job.described else ""
    code, text = _decoded(data, job, memory)
    return code, about + text


def _decoded(data: bytes, job: Job, memory: mmap.mmap) -> tuple[int, str]:
    text = ""
    try:
        if job.whole:
            text, pixels = _whole(data, job.max_pixels)
        else:
            pixels = check_and_preprocess(data, job.spec, job.max_pixels)
        np.frombuffer(memory, pixels.dtype, pixels.size, job.pixels_at).reshape(pixels.shape)[...] = pixels
    except TooLargeError as error:
        return TOO_LARGE, str(error)
    except UnknownImageFormatError as error:
        return UNKNOWN, str(error)
    except InputError as error:
        return DAMAGED, str(error)
    return OK, text


def _whole(data: bytes, max_pixels: int) -> tuple[str, NDArray[Any]]:
    """The upright image, and what it is as JSON: ``shape``, ``dtype``, ``transform`` and ``crs``.

    Raises:
        InputError: See :func:`check_and_preprocess`.
    """
    from hqtl_common.rasters import raster_of

    _check_pixels(data, max_pixels)
    try:
        raster = raster_of(io.BytesIO(data), Path("image"), max_pixels)
        if raster.num_pages > 1:
            raise ImageDecodeError(f"the file holds {raster.num_pages} pages; save the wanted one as a file of its own")
        pixels = raster.read(0, 0, raster.width, raster.height)
    except ImageDecodeError as error:
        if isinstance(error.__cause__, MemoryError):
            raise TooLargeError("the image needs more memory than the service allows for one image") from error
        raise
    about: dict[str, Any] = {"shape": pixels.shape, "dtype": pixels.dtype.name}
    with contextlib.suppress(Exception):  # a map that cannot be read is no reason to refuse a picture
        if (place := raster.georeference) is not None:
            about |= {"transform": place.transform, "crs": place.crs if len(place.crs or "") < _MAX_TEXT // 2 else None}
    return json.dumps(about), pixels


def _check_pixels(data: bytes, max_pixels: int) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(f"the image has too many pixels; the limit of this service is {max_pixels:,}") from error
    except Exception:  # not an image, or damaged: preprocess says which
        return
    if width * height > max_pixels:
        raise TooLargeError(f"the image has {width} × {height} pixels; the limit of this service is {max_pixels:,}")


def _warm(job: Job) -> None:
    """Use every decoder once: a child can load nothing more."""
    scratch = mmap.mmap(-1, job.memory_size)
    if job.whole:
        import tifffile.geodb  # noqa: F401

        with contextlib.suppress(ImportError):
            from imagecodecs import webp_decode  # noqa: F401
    if job.described:
        _decode(_photograph(), job, scratch)
    more = ("jpeg", "zstd", "lzma", "tiff_adobe_deflate") if job.whole else ()
    plain = ("RGB", "L")  # what libtiff cannot write damages the memory of a process with Pillow 12
    for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"):
        for kind in FORMATS:
            for options in (
                [{"compression": name} for name in (None, "tiff_lzw", *(more if mode in plain else ()))] if kind == "TIFF" else [{}]
            ):
                buffer = io.BytesIO()
                try:
                    Image.new(mode, (8, 8)).save(buffer, kind, **options)
                except (OSError, KeyError, ValueError):  # this format has no such mode
                    continue
                for data in (buffer.getvalue(), buffer.getvalue()[:-20], buffer.getvalue()[:40]):
                    _decode(data, job, scratch)


def _photograph() -> bytes:
    """One that says when and where it was taken."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2000:01:01 00:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (1.0, 1.0, 1.0), 3: "E", 4: (1.0, 1.0, 1.0)})
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
