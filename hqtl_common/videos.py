"""Frames of a video, chosen before anything is decoded and read one at a time.

One pass over the packets (nothing is decoded) gives the time of every frame, so that a frame has the same number and time
wherever reading begins. A frame is decoded from the key frame before it and from nothing else: reading it alone, or after others,
or after a run was stopped, gives the same pixels. Where a container keeps no times of presentation (raw streams, some AVI files)
frames are counted from the first one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError, ImageDecodeError
from hqtl_common.frame_choice import Every

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["VIDEO_SUFFIXES", "VideoFrames"]

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".3gp", ".flv"})

# Demuxers that read one file and nothing else: a play list would open what it names, here or on the network.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv"
_MAX_FRAMES = 1 << 22  # 38 hours at 30 frames a second
# Their decoders mark what they make up for lost data, and stumble over oddities of sound files if told to stop; others just go on.
_LENIENT = frozenset({"h264", "hevc"})
_UNKNOWN = -(1 << 63)
_WITHOUT_LENGTH = frozenset({"mpegts", "mpeg"})  # what their length is guessed to be is no promise
_GAP_S = 1  # how much of its declared length a whole video may lack

Frame = NDArray[np.uint8] | NDArray[np.float32]


class VideoFrames:
    """The frames of an opened video. Not safe for several threads at once.

    Args:
        file: The video; closed by :meth:`close`.
        max_pixels: Largest width × height of a frame, checked before one is decoded.

    Attributes:
        broken: Why the video ends before its declared end; None where it is whole.
        about: What the container says about the video, by the names of FFmpeg.

    Raises:
        ConfigError: The package ``av`` is not installed.
        ImageDecodeError: No video, without a picture track, damaged at its start, or too large.
    """

    def __init__(self, file: BinaryIO, max_pixels: int) -> None:
        self._file, self._max_pixels = file, max_pixels
        self.broken: str | None = None
        self.about: dict[str, str] = {}
        self._container: InputContainer | None = None
        self._clock: Fraction | None = None  # seconds of a unit of time
        self._order = array("q")  # times of the frames, ascending
        self._keys = array("q")  # those of the key frames; only the first one where frames are counted
        self._counted = False
        self._reading: Iterator[tuple[int, VideoFrame]] = iter(())
        self._at = (-1, -1)  # key frame and last frame of what is being read
        self._failed: tuple[int, str] | None = None  # key frame after which nothing more can be read, and why
        try:
            self._index(self._open())
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._order)

    def chosen(self, every: Every) -> list[int]:
        """Numbers of the frames wanted, ascending."""
        return every.of(self._order, self._unit)

    def time_of(self, index: int) -> float:
        """Seconds from the first frame to this one."""
        return float((self._order[index] - self._order[0]) * self._unit)

    def read(self, index: int) -> Frame:
        """One frame, upright: (H, W, 3) or (H, W) uint8, or (H, W) float32 in [0, 1] where grey values have more than 8 bits.

        Quickest in ascending order.

        Raises:
            ImageDecodeError: It cannot be decoded.
        """
        key = bisect_right(self._keys, self._order[index]) - 1
        what = f"frame {index:,} at {self.time_of(index):.3f} s cannot be decoded"
        if self._failed is not None and self._failed[0] == key:
            raise ImageDecodeError(f"{what}: {self._failed[1]}")
        if self._at[0] != key or self._at[1] >= index:
            self._reading, self._at = self._frames_from(key), (key, -1)
        try:
            number, frame = next(item for item in self._reading if item[0] >= index)
            self._at = (key, number)
        except StopIteration:
            self._fail(key, what, "the decoder ends before it")
        except Exception as error:  # av.FFmpegError and what the decoders say by it
            self._fail(key, what, _said(error))
        if number > index:
            raise ImageDecodeError(f"{what}: the decoder left it out")
        return _values(frame)

    def _fail(self, key: int, what: str, why: str) -> NoReturn:
        """Nothing more can be read up to the next key frame, for the same reason wherever reading begins."""
        self._failed, self._at = (key, why), (-1, -1)
        raise ImageDecodeError(f"{what}: {why}")

    @property
    def _unit(self) -> Fraction:
        assert self._clock is not None
        return self._clock

    def close(self) -> None:
        """Release the decoder and the file."""
        if self._container is not None:
            self._container.close()
        self._file.close()

    def _open(self) -> InputContainer:
        try:
            import av
        except ImportError as error:
            raise ConfigError("videos need the package av: pip install 'hqtl[video]'") from error
        if self._container is not None:
            self._container.close()
        self._file.seek(0)
        try:
            container = av.open(self._file, "r", container_options={"format_whitelist": _FORMATS}, metadata_errors="replace")
        except Exception as error:
            raise ImageDecodeError(f"the video cannot be opened: {_said(error)}") from error
        self._container = container
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise ImageDecodeError("the file holds no picture track")
        context = stream.codec_context
        if context is None or stream.time_base is None:
            raise ImageDecodeError("the video is of a kind that cannot be decoded here")
        context.options = {"max_pixels": str(self._max_pixels), "err_detect": "crccheck" + "+explode" * (context.name not in _LENIENT)}
        context.thread_count = 1  # with more, what is made up for lost data depends on which of them is faster
        self._stream, self._clock = stream, self._clock or stream.time_base
        return container

    def _index(self, container: InputContainer) -> None:
        """Times of all frames, from the packets."""
        self.about = dict(container.metadata)
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > self._max_pixels:
            raise ImageDecodeError(f"the frames have {width} × {height} pixels; at most {self._max_pixels:,} are allowed")
        times, keys = array("q"), array("q")
        end = Fraction(0)
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is self._stream and packet.size and not packet.is_discard:
                    times.append(_UNKNOWN if packet.pts is None else packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        keys.append(packet.pts)
                if len(times) > _MAX_FRAMES:
                    raise ImageDecodeError(f"the video has more than {_MAX_FRAMES:,} frames; cut it into several")
        except (OSError, ValueError) as error:  # every av.FFmpegError is one of them
            if isinstance(error, ImageDecodeError):
                raise
            self.broken = _said(error)
        if not times:
            raise ImageDecodeError(f"the video holds no frame{'' if self.broken is None else f': {self.broken}'}")
        self._sort(times, keys)
        declared = Fraction((container.duration or 0) + (container.start_time or 0), 1_000_000)
        if self.broken is None and container.format.name not in _WITHOUT_LENGTH and end < declared - _GAP_S:
            self.broken = f"the file is cut off: it was to last until {float(declared):.1f} s and ends at {float(end):.1f} s"

    def _sort(self, times: array[int], keys: array[int]) -> None:
        """Order the times, or give up on them where they are not those of presentation."""
        self._order, self._keys = array("q", sorted(times)), array("q", sorted(keys))
        ascending = all(one < other for one, other in pairwise(times))
        reordered = ascending and self._stream.codec_context.has_b_frames  # then the times are those of decoding
        distinct = all(one < other for one, other in pairwise(self._order))
        self._counted = bool(reordered) or not distinct or not keys or self._order[0] == _UNKNOWN
        if not self._counted:
            self._order = self._order[bisect_left(self._order, self._keys[0]) :]  # what is shown earlier has nothing to start from
            return
        if self._order[0] == _UNKNOWN:
            self._clock = 1 / Fraction(self._stream.average_rate or 25)
            self._order = array("q", range(len(times)))
        self._keys = self._order[:1]

    def _frames_from(self, key: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers, from a key frame on."""
        if self._counted:
            yield from enumerate(self._decoded(None))
            return
        start, strict = self._keys[key], self._stream.codec_context.name not in _LENIENT
        for frame in self._decoded(start):
            if strict and frame.pts == start and not frame.key_frame:  # then it builds on whatever was decoded before
                raise ValueError("it, or one that it builds on, is damaged")
            index = len(self) if frame.pts is None else bisect_left(self._order, frame.pts)
            if index < len(self) and self._order[index] == frame.pts:
                yield index, frame

    def _decoded(self, start: int | None) -> Iterator[VideoFrame]:
        """Frames as the decoder gives them, from the packet with this time on; None: from the first one."""
        for packet in self._packets_from(start):
            try:
                frames: list[Any] = packet.decode()
            except (OSError, ValueError):
                if start is not None and packet.pts is not None and packet.pts < start:
                    continue  # shown before the key frame, so it may need what lies before it
                raise
            for frame in frames:
                if frame.is_corrupt and not (start is not None and frame.pts is not None and frame.pts < start):
                    raise ValueError("it, or one that it builds on, is damaged")
                yield frame

    def _packets_from(self, start: int | None) -> Iterator[Any]:
        """Packets from the one with this time on, for a decoder that has seen nothing: what earlier ones left in it must not count."""
        if start is not None and (packets := self._sought(self._open(), start)) is not None:
            yield from packets
            return
        container = self._open()
        begun = start is None
        for packet in container.demux(self._stream):
            begun = begun or packet.pts == start
            if begun:
                yield packet

    def _sought(self, container: InputContainer, start: int) -> Iterator[Any] | None:
        """Packets from this time on; None where the container cannot find it."""
        try:
            container.seek(start, stream=self._stream, backward=True)
            packets = container.demux(self._stream)
            for packet in packets:
                if packet.pts == start:
                    return _after(packet, packets)
                if packet.pts is None or packet.pts > start:
                    return None
        except (OSError, ValueError):
            pass
        return None


def _after(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _values(frame: VideoFrame) -> Frame:
    name, bits = frame.format.name, frame.format.components[0].bits
    values: NDArray[Any]
    if name.startswith("gray") and bits > 8:
        values = np.divide(frame.to_ndarray(format="gray16le"), np.float32(65535), dtype=np.float32)
    else:
        values = frame.to_ndarray(format="gray" if name == "gray" else "rgb24")
    upright: Frame = np.ascontiguousarray(np.rot90(values, frame.rotation // 90))
    return upright


def _said(error: Exception) -> str:
    """What went wrong, without what differs from run to run."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
