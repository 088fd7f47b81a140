"""Small videos, written with PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["decoded", "pictures", "write_film"]

RGB = NDArray[np.uint8]


def pictures(count: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> list[RGB]:
    """Smooth pictures (H, W, 3), each unlike the others."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[1], : size[0]]
    waves = rng.uniform(0.02, 0.3, (count, 3, 2))
    return [
        np.stack([127 + 120 * np.sin(y * rows + x * columns + index) for y, x in wave], axis=2).astype(np.uint8)
        for index, wave in enumerate(waves)
    ]


def write_film(
    path: Path,
    frames: list[RGB],
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    rate: int = 5,
    gop: int = 4,
    container: str | None = None,
    about: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """The pictures as a video; FFV1 in ``bgr0`` loses nothing."""
    with av.open(str(path), "w", format=container) as file:
        file.metadata.update(about or {})
        stream = file.add_stream(codec, rate=rate, options={"level": "3"} if codec == "ffv1" else options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    return path


def decoded(path: Path) -> list[RGB]:
    """Every frame from the first to the last, as PyAV gives them."""
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
