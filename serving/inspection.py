"""One large image → tiles → answers: decoded in a process of its own, cut and classified here, one evaluation of the head."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import InputError
from hqtl_common.georeference import GeoReference
from hqtl_common.preprocess import image_to_pixels
from hqtl_common.rasters import Raster, Window
from hqtl_common.records import ExecutionRecord, InferenceBatch, Prediction
from hqtl_common.tiles import TileGrid, read_tile, tile_grid
from serving.decoder import DecoderPool, WholeImage
from serving.decoder_process import Job
from serving.errors import FieldError, OverloadedError, RejectedImageError, TooLargeError
from serving.forms import PredictOptions
from serving.intake import PredictRequest
from serving.predictor import Predictor

__all__ = ["Inspected", "Inspector"]

_AT_ONCE = 2  # of the largest images that are allowed


@dataclass(frozen=True, slots=True)
class Inspected:
    """A large image and what its tiles are.

    Args:
        image: The image.
        grid: Where the tiles lie; one that is no larger than a tile is a single one.
        predictions: Of the tiles, row by row.
        execution: What produced them.
    """

    image: WholeImage
    grid: TileGrid
    predictions: Sequence[Prediction]
    execution: ExecutionRecord


@dataclass(frozen=True, slots=True)
class _Request(PredictRequest):
    """A request whose images are tiles; ``pixels`` are made batch by batch."""

    image: WholeImage
    grid: TileGrid


class Inspector:
    """Inspects large images; its decoding process starts when the first one comes.

    Args:
        predictor: Classifies the tiles.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._settings = predictor, predictor.settings
        self._pool: DecoderPool | None = None
        self._lock = threading.Lock()
        self._decoding, self._pixels_held = 0, 0

    def close(self) -> None:
        """End the decoding process."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()

    async def read(self, body: AsyncIterator[bytes], options: PredictOptions, tile: int, stride: int, held: ExitStack) -> PredictRequest:
        """The bytes of one image → its tiles.

        Args:
            body: The image as it arrives.
            options: Backend, shots, seed, threshold.
            tile: Edge length of a tile in pixels of the image.
            stride: Distance between neighbouring tiles in pixels of the image.
            held: Keeps the room of the decoded image; the caller closes it when the image is done with.

        Raises:
            RejectedImageError: The image cannot be used, or has more bytes, pixels or tiles than allowed.
            OverloadedError: Other large images are in work.
            FieldError: The stride is larger than a tile.
        """
        if stride > tile:
            raise FieldError("stride", f"must be at most the tile, {tile}, so that no pixel is left out; got {stride}")
        data = bytearray()
        async for chunk in body:
            data += chunk
            if len(data) > self._settings.max_inspect_bytes:
                raise _rejected(TooLargeError(f"the image has more than {self._settings.max_inspect_bytes:,} bytes, the limit here"))
        try:
            image = await self._decode(bytes(data))
            held.enter_context(self._room(image))
            grid = _grid(image, tile, stride, self._settings.max_tiles)
        except InputError as error:
            raise _rejected(error) from error
        return _Request(("",) * len(grid), np.empty((0, 3, 1, 1), np.float32), options, image, grid)

    async def inspect(self, request: PredictRequest) -> Inspected:
        """The answers of all tiles.

        Raises:
            ConfigError: A threshold, and the bundle has more than two classes.
            BackendError: The head could not be run.
        """
        assert isinstance(request, _Request)
        raster, corners = Raster(_Held(request.image.values)), iter(request.grid)
        features: list[NDArray[Any]] = []
        while block := list(islice(corners, self._settings.max_batch)):
            pixels = await asyncio.to_thread(self._pixels, raster, block, request.grid.size)
            batch = await self._predictor.featurize(PredictRequest(("",) * len(block), pixels, request.options))
            assert batch.features is not None
            features.append(batch.features)
        running = self._predictor.start(InferenceBatch(features=np.concatenate(features)), request.options)
        done = await asyncio.wrap_future(running)
        await asyncio.to_thread(self._predictor.answer, request.filenames, done)  # for the figures
        assert done.execution is not None
        return Inspected(request.image, request.grid, await asyncio.to_thread(done.predictions), done.execution)

    async def _decode(self, data: bytes) -> WholeImage:
        if self._decoding >= _AT_ONCE:
            raise OverloadedError("other large images are being decoded; try again later")
        self._decoding += 1
        try:
            pool = await asyncio.to_thread(self._open)
            image: WholeImage = await asyncio.wrap_future(pool.submit(data))
            return image
        finally:
            self._decoding -= 1

    @contextmanager
    def _room(self, image: WholeImage) -> Iterator[None]:
        height, width = image.values.shape[:2]
        if self._pixels_held + height * width > _AT_ONCE * self._settings.max_inspect_pixels:
            raise OverloadedError("other large images are in work; try again later")
        self._pixels_held += height * width
        try:
            yield
        finally:
            self._pixels_held -= height * width

    def _open(self) -> DecoderPool:
        settings = self._settings
        with self._lock:
            if self._pool is None:
                spec = self._predictor.bundle.preprocess
                job = Job(spec, settings.max_inspect_bytes, settings.max_inspect_pixels, settings.decode_timeout_s, whole=True)
                self._pool = DecoderPool(job, 1, self._predictor.metrics.decoder_died)
            return self._pool

    def _pixels(self, raster: Raster, corners: list[tuple[int, int]], size: int) -> NDArray[np.float32]:
        spec = self._predictor.bundle.preprocess
        if max(raster.width, raster.height) <= size:
            windows = [raster.read(0, 0, raster.width, raster.height)]
        else:
            windows = [read_tile(raster, x, y, size) for x, y in corners]
        return np.stack([image_to_pixels(_as_image(window), spec) for window in windows])


class _Held:
    """An image in memory as a source of windows."""

    num_pages, orientation = 1, 1
    georeference: GeoReference | None = None

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.height, self.width = values.shape[:2]
        self.is_deep = values.dtype == np.float32
        self.bands = values.ndim if values.ndim == 3 else 1

    def read(self, page: int, x: int, y: int, width: int, height: int) -> Window:
        """See :meth:`hqtl_common.rasters.Raster.read`."""
        window: Window = self._values[y : y + height, x : x + width]
        return window

    def close(self) -> None:
        """Nothing is held."""


def _grid(image: WholeImage, tile: int, stride: int, max_tiles: int) -> TileGrid:
    height, width = image.values.shape[:2]
    across, down = (max(0, -(-(length - tile) // stride)) + 1 for length in (width, height))
    if across * down > max_tiles:
        raise TooLargeError(f"the image makes {across * down:,} tiles, more than {max_tiles:,}, the limit here: take larger ones")
    return tile_grid(width, height, tile, stride, edges="pad")


def _as_image(window: Window) -> Image.Image:
    image = Image.fromarray(window)
    return image if image.mode == "F" else image.convert("RGB")


def _rejected(reason: InputError) -> RejectedImageError:
    return RejectedImageError(0, "", reason)
