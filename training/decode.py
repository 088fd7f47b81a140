"""Image files to pixels, batch by batch, decoded a little ahead of whoever consumes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import InputError
from hqtl_common.preprocess import preprocess
from hqtl_common.specs import PreprocessSpec
from hqtl_common.stages import available_cores

__all__ = ["DecodedBatch", "decode_batches"]

F32 = NDArray[np.float32]

_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Some consecutive files.

    Args:
        positions: Which of the files could be used, k ascending positions.
        pixels: (k, *spec.pixels_shape) float32.
        errors: Position → why a file cannot be used.
    """

    positions: list[int]
    pixels: NDArray[np.float32]
    errors: dict[int, str]


def decode_batches(
    paths: Sequence[Path], spec: PreprocessSpec, batch_size: int, alter: Callable[[int, F32], F32] | None = None
) -> Iterator[DecodedBatch]:
    """Pixels of all files in order; a file that cannot be used is an entry in ``errors``, never an exception.

    Args:
        paths: N files.
        spec: Preprocessing.
        batch_size: Files per batch; the last may be shorter.
        alter: Makes other pixels of a file's position and pixels.
    """

    def decode(position: int) -> F32 | str:
        try:
            pixels = preprocess(paths[position], spec)
            return pixels if alter is None else alter(position, pixels)
        except InputError as error:
            return str(error)

    starts = deque(range(0, len(paths), batch_size))
    pending: deque[tuple[int, list[Future[F32 | str]]]] = deque()
    with ThreadPoolExecutor(available_cores()) as pool:
        while starts or pending:
            while starts and len(pending) <= _BATCHES_AHEAD:
                start = starts.popleft()
                pending.append((start, [pool.submit(decode, position) for position in range(start, min(start + batch_size, len(paths)))]))
            first, futures = pending.popleft()
            results = list(enumerate((future.result() for future in futures), start=first))
            usable = [(position, result) for position, result in results if not isinstance(result, str)]
            pixels = np.stack([result for _, result in usable]) if usable else np.zeros((0, *spec.pixels_shape), np.float32)
            errors = {position: result for position, result in results if isinstance(result, str)}
            yield DecodedBatch([position for position, _ in usable], pixels, errors)
