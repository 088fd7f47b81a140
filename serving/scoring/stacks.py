"""Files that hold several pictures: videos, TIFF files of several pages, volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hqtl_common.errors import ImageDecodeError
from hqtl_common.frame_choice import Every
from hqtl_common.preprocess import MAX_PIXELS, open_regular_file, suffixes_of
from hqtl_common.rasters import Raster, Window, decoding, open_page, raster_of_values
from hqtl_common.specs import PreprocessSpec
from hqtl_common.tiff_chain import has_second_page
from hqtl_common.videos import VIDEO_SUFFIXES
from hqtl_common.volumes import VOLUME_SUFFIXES
from serving.photo_header import PhotoHeader, header_of_video
from serving.scoring.answers import PartKind, StackPart

__all__ = ["Stack", "open_stack", "stack_kind", "suffixes_scored"]

_VIDEOS = tuple(name.encode() for name in VIDEO_SUFFIXES)
_VOLUMES = tuple(name.encode() for name in VOLUME_SUFFIXES if not name.startswith(".tif"))


def suffixes_scored(spec: PreprocessSpec) -> tuple[str, ...]:
    """How the names of files end that a run looks at, lower case: a bundle of images also takes videos and volumes to pieces."""
    own = suffixes_of(spec)
    return own if spec.depth is not None else tuple(sorted({*own, *VIDEO_SUFFIXES, *VOLUME_SUFFIXES}))


def stack_kind(file: BinaryIO, path: bytes) -> PartKind | None:
    """What the parts of a file are, by the end of its name, and for TIFF by what it holds; None for a file of one picture.

    Args:
        file: The file; left anywhere.
        path: Its path.
    """
    name = path.lower()
    if name.endswith(_VIDEOS):
        return "frame"
    if name.endswith(_VOLUMES):
        return "slice"
    return "page" if has_second_page(file) else None


@dataclass(frozen=True, slots=True)
class Stack:
    """An opened file of several pictures.

    Args:
        kind: What they are.
        places: Index and, of a frame, time in seconds of those that are looked at.
        broken: Index of the first one that the file was to hold and does not, and why; None where it is whole.
        open: One of them by its index, to be closed before the next one is opened.
        about: What the file says about all of them; None where it says nothing.
    """

    kind: PartKind
    places: Sequence[tuple[int, float | None]]
    broken: tuple[int, str] | None
    open: Callable[[int], AbstractContextManager[Raster]]
    about: PhotoHeader | None = None

    def parts(self, start: int) -> Iterator[tuple[StackPart | None, AbstractContextManager[Raster]]]:
        """Each picture from the ``start``-th row on, and last what is to be said of a broken file; a single page is no part.

        Opening a picture raises what :func:`open_stack` raises.
        """
        count = len(self.places) + (self.broken is not None)
        for number in range(start, len(self.places)):
            index, time_s = self.places[number]
            yield StackPart(self.kind, index, time_s, number, count) if count > 1 or self.kind != "page" else None, self.open(index)
        if self.broken is not None:
            index, why = self.broken
            yield StackPart(self.kind, index, None, count - 1, count), _Raising(why)


@contextmanager
def open_stack(full: str, kind: PartKind, every: Every) -> Iterator[Stack]:
    """A file of several pictures, opened.

    Args:
        full: The file.
        kind: See :func:`stack_kind`.
        every: Which frames of a video are looked at.

    Raises:
        InputError: The file cannot be read.
        ImageDecodeError: It is damaged, or holds too much.
        ConfigError: A package is missing that reads it.
    """
    file = open_regular_file(full)
    with closing(file):
        opener: Callable[..., AbstractContextManager[Stack]] = {"frame": _frames, "page": _pages, "slice": _slices}[kind]
        with opener(file, Path(full), every) as stack:
            yield stack


@contextmanager
def _frames(file: BinaryIO, path: Path, every: Every) -> Iterator[Stack]:
    from hqtl_common.videos import VideoFrames

    with decoding():
        video = VideoFrames(file, MAX_PIXELS)
    with closing(video):
        places = [(index, round(video.time_of(index), 6)) for index in video.chosen(every)]
        last = len(video) - 1
        broken = (
            (len(video), f"the video ends after frame {last:,} at {video.time_of(last):.3f} s: {video.broken}") if video.broken else None
        )
        yield Stack("frame", places, broken, lambda index: _lazily(lambda: video.read(index)), header_of_video(video.about))


@contextmanager
def _pages(file: BinaryIO, path: Path, every: Every) -> Iterator[Stack]:
    from hqtl_common.tiff_windows import TiffWindows

    with decoding():
        tiff = TiffWindows(file, path)
    with closing(tiff):
        places = [(place, None) for place in tiff.chain.places]
        last = places[-1][0]
        broken = (last + 1, f"the TIFF file is cut off or damaged after page {last}") if tiff.chain.is_broken else None
        yield Stack("page", places, broken, lambda place: open_page(tiff, place))


@contextmanager
def _slices(file: BinaryIO, path: Path, every: Every) -> Iterator[Stack]:
    from hqtl_common.slices import VolumeSlices

    with decoding():
        volume = VolumeSlices(file)
    with closing(volume):
        places = [(index, None) for index in range(len(volume))]
        yield Stack("slice", places, None, lambda index: _lazily(lambda: volume.read(index)))


@contextmanager
def _lazily(read: Callable[[], Window]) -> Iterator[Raster]:
    with decoding():
        values = read()
    yield raster_of_values(values)


class _Raising(AbstractContextManager[Raster]):
    """A picture that is not there."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __enter__(self) -> Raster:
        raise ImageDecodeError(self._why)

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""
