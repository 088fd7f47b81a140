"""Uploaded bytes → ``pixels``, in a bounded pool and within limits. The content decides, never a declared type or a name."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import ImageDecodeError, InputError
from hqtl_common.preprocess import FORMATS, preprocess
from hqtl_common.specs import PreprocessSpec
from hqtl_common.stages import available_cores
from serving.errors import FieldError, RejectedImageError, TooLargeError
from serving.forms import IMAGE_FIELD, Part, PredictOptions
from serving.settings import ServiceSettings

__all__ = ["Intake", "PredictRequest", "decode_image"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """What a client asks.

    Args:
        filenames: As the client gave them, B of them.
        pixels: (B, 3, S, S) float32.
        options: Backend, shots, seed, threshold.
    """

    filenames: tuple[str, ...]
    pixels: F32
    options: PredictOptions


class Intake:
    """Reads requests; images are decoded while the rest of the body still arrives.

    Args:
        spec: The bundle's preprocessing.
        settings: The limits.
    """

    def __init__(self, spec: PreprocessSpec, settings: ServiceSettings) -> None:
        self._spec = spec
        self._settings = settings
        workers = available_cores()
        self._waiting = 2 * workers  # encoded images of one request that are held at a time
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def close(self) -> None:
        """Stop taking images."""
        self._pool.shutdown(cancel_futures=True)

    async def read(self, parts: AsyncIterator[Part]) -> PredictRequest:
        """The parts of one form → a request.

        Raises:
            InputError: The form or a value in it cannot be used; see :func:`serving.forms.read_parts`.
            FieldError: No image, or see :meth:`serving.forms.PredictOptions.from_fields`.
            RejectedImageError: The first image that cannot be used.
        """
        fields: dict[str, str] = {}
        filenames: list[str] = []
        decoding: list[asyncio.Future[F32]] = []
        loop = asyncio.get_running_loop()
        try:
            async for part in parts:
                if part.filename is None:
                    fields[part.name] = part.data.decode("utf-8", "replace")
                    continue
                index = len(decoding)
                decoding.append(
                    loop.run_in_executor(self._pool, decode_image, index, part.filename, bytes(part.data), self._spec, self._settings)
                )
                filenames.append(part.filename)
                if index >= self._waiting:
                    await decoding[index - self._waiting]
            options = PredictOptions.from_fields(fields)
            pixels = [await future for future in decoding]
        finally:
            for future in decoding:
                future.cancel()
                future.add_done_callback(_retrieve)
        if not pixels:
            raise FieldError(IMAGE_FIELD, "is missing; send at least one image (curl -F image=@photo.jpg)")
        return PredictRequest(tuple(filenames), np.stack(pixels), options)


def decode_image(index: int, filename: str, data: bytes, spec: PreprocessSpec, settings: ServiceSettings) -> F32:
    """One upload → pixels (3, S, S) float32.

    Raises:
        RejectedImageError: It is empty, too large, no image of an allowed format, or damaged; ``reason`` says which.
    """
    try:
        if not data:
            raise ImageDecodeError("the file is empty")
        if len(data) > settings.max_bytes:
            raise TooLargeError(f"the image has {len(data):,} bytes; the limit of this service is {settings.max_bytes:,}")
        _check_pixels(data, settings.max_pixels)
        return preprocess(data, spec, settings.max_pixels)
    except InputError as error:
        raise RejectedImageError(index, filename, error) from error
    except Exception as error:  # hostile bytes in a decoder written in C: whatever it raises, the image is to blame
        reason = ImageDecodeError(f"the image is damaged: {type(error).__name__}: {error}")
        raise RejectedImageError(index, filename, reason) from error


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


def _retrieve(future: asyncio.Future[F32]) -> None:
    if not future.cancelled():
        future.exception()  # keeps asyncio from reporting it as never retrieved
