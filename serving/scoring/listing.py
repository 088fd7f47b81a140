"""Which files of a folder are scored and in which order, and the list of them on disk.

The list is a file of relative paths as bytes, each ended by a NUL byte (what ``find -print0`` writes): a name may hold
any other byte. It grows by segments, one per look at the folder; within a segment paths are in the order of their bytes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import IMAGE_SUFFIXES
from serving.scoring.storage import open_at, output_errors, write_all

__all__ = ["LISTING", "Batch", "Done", "Segment", "Selection", "Walk", "plan_batches", "read_paths", "unlisted", "write_segment"]

LISTING = "listing.nul"

_BLOCK = 1 << 20  # bytes of paths held at a time


@dataclass(frozen=True, slots=True)
class Segment:
    """Files found by one look at the folder.

    Args:
        files: How many.
        end: Where the segment ends in the list, bytes.
    """

    files: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that go through the backbone together.

    Args:
        chunk: Position of the chunk (the files of one evaluation of the head) among all chunks.
        paths: Relative paths.
        ends_chunk: True for the last batch of its chunk.
        listing_end: Where the chunk ends in the list, bytes.
        part: How many pictures of the first file are done.
        piece: How many pieces of the chunk are done.
    """

    chunk: int
    paths: tuple[bytes, ...]
    ends_chunk: bool
    listing_end: int
    part: int = 0
    piece: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """What is done of a chunk that a run was stopped in.

    Args:
        files: Whole files.
        part: Pictures of the next file.
        pieces: Evaluations of the head.
    """

    files: int = 0
    part: int = 0
    pieces: int = 0


class Selection:
    """Which of the images found are scored.

    Args:
        exclude: Patterns (``*``, ``?``, ``[…]``; ``*`` also matches slashes) of relative paths that are left out.
        shard: ``i/n``: only the i-th of n parts, which a hash of the relative path decides, so that it is the same on every machine.

    Raises:
        ConfigError: A shard that is not i/n with 1 ≤ i ≤ n.
    """

    def __init__(self, exclude: Iterable[str] = (), shard: str | None = None) -> None:
        self._exclude = [os.fsencode(pattern) for pattern in exclude]
        part, slash, parts = (shard or "1/1").partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise ConfigError(f"a shard is I/N with I from 1 to N, for example 2/8; got {shard!r}")
        self._part, self._parts = int(part) - 1, int(parts)
        self.skipped: Counter[str] = Counter()

    def __call__(self, path: bytes) -> bool:
        """Whether the image at this relative path is scored."""
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self._exclude):
            self.skipped["excluded"] += 1
            return False
        if self._parts > 1 and int.from_bytes(hashlib.sha256(path).digest()[:8]) % self._parts != self._part:
            self.skipped["other_shards"] += 1
            return False
        return True


class Walk:
    """The image files below a folder, as relative paths in the order of their bytes; iterate it once.

    Symbolic links are not followed, hidden entries are left out, pipes, sockets and devices are never opened.
    Only the entries of the folders on the way down are in memory.

    Args:
        folder: Where to look.
        exclude: A folder that is left out with everything below it (the output folder).
        suffixes: How the names of the files end, lower case.

    Raises:
        InputError: While iterating: ``folder`` itself cannot be read.
    """

    def __init__(self, folder: Path, exclude: Path | None = None, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> None:
        self._root = os.fsencode(folder)
        self._suffixes = tuple(sorted(map(str.encode, suffixes)))
        self._excluded = None if exclude is None or not exclude.exists() else exclude.stat()
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[bytes]:
        pending = self._scan(b"")
        while pending:
            path = pending.pop()
            if path.endswith(b"/"):
                pending += self._scan(path)
            else:
                yield path

    def _scan(self, relative: bytes) -> list[bytes]:
        """Entries of one folder, last one first; folders end in a slash, which gives the order of whole paths."""
        try:
            with os.scandir(self._root + b"/" + relative) as entries:
                names = [name for entry in entries if (name := self._accept(entry))]
        except OSError as error:
            if not relative:
                raise InputError(f"cannot read the folder {os.fsdecode(self._root)!r}: {error.strerror}") from error
            self.skipped["unreadable_folders"] += 1
            return []
        return sorted((relative + name for name in names), reverse=True)

    def _accept(self, entry: os.DirEntry[bytes]) -> bytes | None:
        kind = self._kind(entry)
        if kind in ("folder", "image"):
            return entry.name + b"/" if kind == "folder" else entry.name
        self.skipped[kind] += 1
        return None

    def _kind(self, entry: os.DirEntry[bytes]) -> str:
        if entry.name.startswith(b"."):
            return "hidden"
        if entry.is_symlink():
            return "links"
        if entry.is_dir(follow_symlinks=False):
            return "output_folders" if self._is_excluded(entry) else "folder"
        if not entry.is_file(follow_symlinks=False):
            return "special"
        return "image" if entry.name.lower().endswith(self._suffixes) else "other_files"

    def _is_excluded(self, entry: os.DirEntry[bytes]) -> bool:
        return self._excluded is not None and os.path.samestat(self._excluded, entry.stat(follow_symlinks=False))


def write_segment(listing: Path, start: int, paths: Iterable[bytes], found: Callable[[int], None]) -> Segment:
    """Write ``paths`` behind the first ``start`` bytes of the list, durably, in place of whatever stood there.

    Args:
        listing: The list.
        start: Length that is kept, bytes.
        paths: Relative paths in the order of their bytes.
        found: Called now and then with the number so far; may raise to stop.

    Raises:
        OutputError: The file system refused.
    """
    files, end, remaining = 0, start, iter(paths)
    descriptor = open_at(listing, start)
    try:
        while block := list(islice(remaining, 4096)):
            data = b"".join(path + b"\0" for path in block)
            with output_errors(listing):
                write_all(descriptor, data)
            files, end = files + len(block), end + len(data)
            found(files)
        with output_errors(listing):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Segment(files, end)


def read_paths(listing: Path, start: int, end: int) -> Iterator[bytes]:
    """Relative paths between two positions of the list, in bytes.

    Raises:
        InputError: The list was changed or removed.
    """
    rest = b""
    try:
        with listing.open("rb") as file:
            file.seek(start)
            while start < end and (data := file.read(min(_BLOCK, end - start))):
                start += len(data)
                *paths, rest = (rest + data).split(b"\0")
                yield from paths
    except OSError as error:
        raise InputError(f"cannot read {str(listing)!r}: {error.strerror}; give another output folder") from error
    if start < end or rest:
        raise InputError(f"{str(listing)!r} was changed since it was written; give another output folder")


def unlisted(found: Iterable[bytes], listing: Path, segments: Sequence[Segment]) -> Iterator[bytes]:
    """The paths of ``found`` (in the order of their bytes) that no segment holds, in constant memory.

    Raises:
        InputError: See :func:`read_paths`.
    """
    starts = [0, *(segment.end for segment in segments)]
    recorded = heapq.merge(*(read_paths(listing, start, segment.end) for start, segment in zip(starts, segments, strict=False)))
    current = next(recorded, None)
    for path in found:
        while current is not None and current < path:
            current = next(recorded, None)
        if current != path:
            yield path


def plan_batches(
    listing: Path, segments: Sequence[Segment], start: int, chunk: int, batch_size: int, chunk_size: int, done: Done = Done()
) -> Iterator[Batch]:
    """Cut the list into chunks, and chunks into batches. Chunks do not cross segments, so the cut never depends on where a run stopped.

    Args:
        listing: The list.
        segments: Its segments.
        start: Where to begin in the list, bytes; the end of a chunk.
        chunk: Number of chunks before ``start``.
        batch_size: Files per batch.
        chunk_size: Files per chunk.
        done: What is left out of the first chunk.

    Raises:
        InputError: See :func:`read_paths`.
    """
    for segment in segments:
        paths = read_paths(listing, start, segment.end) if start < segment.end else iter(())
        while files := tuple(islice(paths, chunk_size)):
            start += sum(len(path) + 1 for path in files)
            files = files[done.files :]
            for first in range(0, len(files), batch_size):
                last = first + batch_size
                yield Batch(chunk, files[first:last], last >= len(files), start, 0 if first else done.part, done.pieces)
            chunk, done = chunk + 1, Done()
