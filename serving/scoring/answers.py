"""What is known of each file: its answer, or why there is none, what it says about itself, and its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hqtl_common.records import ExecutionRecord, Prediction
from hqtl_common.tiles import TileGrid

__all__ = ["Answer", "Duplicate", "Facts", "Failure", "PartKind", "ScoredChunk", "StackPart", "Tiled"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one file has no answer: the name of the error's class, and its message."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A file with the bytes of an earlier one, whose answer it shares.

    Args:
        number: Position of the earlier file among all files.
    """

    number: int


Answer = Prediction | Failure | Duplicate
PartKind = Literal["frame", "page", "slice"]


@dataclass(frozen=True, slots=True)
class StackPart:
    """Which part of a video, a TIFF of several pages or a volume a row is about.

    Args:
        kind: What it is.
        index: Which one in the file, counted from 0; None where that is not known.
        time_s: Seconds from the first frame; None but for a frame.
        number: Its place among the rows of the file, counted from 0.
        count: Rows of the file.
    """

    kind: PartKind
    index: int | None
    time_s: float | None
    number: int
    count: int

    @property
    def ends(self) -> bool:
        """Whether it is the last one of its file."""
        return self.number + 1 == self.count


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says about itself beside its pixels; None where it says nothing.

    Args:
        sha256: Of its bytes, hexadecimal.
        width: Width in pixels, upright.
        height: Height in pixels, upright.
        taken: When the photograph was taken, or the video begun, ISO 8601; with an offset only where the camera wrote one.
        longitude: Degrees east (WGS 84) of the camera.
        latitude: Degrees north.
    """

    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    taken: str | None = None
    longitude: float | None = None
    latitude: float | None = None


@dataclass(frozen=True, slots=True)
class Tiled:
    """The tiles of one image.

    Args:
        grid: Where they lie.
        stride: Distance between neighbouring tiles in pixels.
        answers: One per tile, row by row.
        deciding: Position of the tile whose answer is that of the image.
    """

    grid: TileGrid
    stride: int
    answers: tuple[Prediction, ...]
    deciding: int


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """The pictures of one evaluation of the head: files, or parts of files.

    Args:
        paths: Relative paths; one per picture.
        answers: One per path.
        execution: What ran the head; None where no file of the chunk could be read.
        listing_end: Where the chunk ends in the list, bytes.
        facts: One per path, or empty.
        tiled: The tiles of each path, None where it has none; empty where images are scored whole.
        refined: What ran the head again for answers in doubt; None where nothing did.
        stack: Which part of its file each picture is, None for a file of one picture; empty where all are.
        ends: Whether the chunk of files that was planned ends here; else its next pictures follow.
    """

    paths: tuple[bytes, ...]
    answers: tuple[Answer, ...]
    execution: ExecutionRecord | None
    listing_end: int
    facts: tuple[Facts, ...] = ()
    tiled: tuple[Tiled | None, ...] = ()
    refined: ExecutionRecord | None = None
    stack: tuple[StackPart | None, ...] = ()
    ends: bool = True
