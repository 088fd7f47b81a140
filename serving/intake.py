"""Uploaded bytes → ``pixels``, in other processes and within limits. The content decides, never a declared type or a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import InputError
from hqtl_common.specs import PreprocessSpec
from hqtl_common.stages import available_cores
from serving.decoder import DecoderPool
from serving.decoder_process import Job
from serving.errors import FieldError, RejectedImageError
from serving.forms import IMAGE_FIELD, Part, PredictOptions
from serving.settings import ServiceSettings

__all__ = ["Intake", "PredictRequest"]

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
        on_death: See :class:`serving.decoder.DecoderPool`.
    """

    def __init__(self, spec: PreprocessSpec, settings: ServiceSettings, on_death: Callable[[str], None] = lambda _: None) -> None:
        job = Job(spec, settings.max_bytes, settings.max_pixels, settings.decode_timeout_s)
        workers = settings.decoders or available_cores()
        self._waiting = 2 * workers  # encoded images of one request that are held at a time
        self.pool = DecoderPool(job, workers, on_death)

    def wait_ready(self) -> None:
        """Wait until images can be decoded.

        Raises:
            NotReadyError: They cannot.
        """
        self.pool.wait_ready()

    def close(self) -> None:
        """Stop taking images."""
        self.pool.close()

    async def read(self, parts: AsyncIterator[Part]) -> PredictRequest:
        """The parts of one request → what it asks.

        Raises:
            InputError: The body or a value in it cannot be used; see :func:`serving.forms.read_parts`.
            FieldError: No image, or see :meth:`serving.forms.PredictOptions.from_fields`.
            RejectedImageError: The first image that cannot be used.
        """
        fields: dict[str, str] = {}
        filenames: list[str] = []
        decoding: list[asyncio.Future[F32]] = []
        try:
            async for part in parts:
                if part.filename is None:
                    fields[part.name] = part.data.decode("utf-8", "replace")
                    continue
                index = len(decoding)
                decoding.append(asyncio.wrap_future(self.pool.submit(part.data)))
                filenames.append(part.filename)
                if index >= self._waiting:
                    await _one(decoding, filenames, index - self._waiting)
            options = PredictOptions.from_fields(fields)
            pixels = [await _one(decoding, filenames, index) for index in range(len(decoding))]
        finally:
            for future in decoding:
                future.cancel()
                future.add_done_callback(_retrieve)
        if not pixels:
            raise FieldError(IMAGE_FIELD, "is missing; send at least one image (curl -F image=@photo.jpg)")
        return PredictRequest(tuple(filenames), pixels[0][None] if len(pixels) == 1 else np.stack(pixels), options)


async def _one(decoding: list[asyncio.Future[F32]], filenames: list[str], index: int) -> F32:
    try:
        return await decoding[index]
    except InputError as error:
        raise RejectedImageError(index, filenames[index], error) from error


def _retrieve(future: asyncio.Future[F32]) -> None:
    if not future.cancelled():
        future.exception()  # keeps asyncio from reporting it as never retrieved
