"""``scores`` and ``tiles`` as JSON Lines and CSV, written as a run goes, and the commits after which nothing is lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hqtl_common.errors import InputError
from hqtl_common.specs import HeadSpec
from serving.errors import OutputError
from serving.scoring.answers import Answer, Duplicate, Facts, ScoredChunk, StackPart, Tiled
from serving.scoring.listing import Done
from serving.scoring.rows import copied_row, csv_columns, csv_line, csv_values, jsonl_line, make_row
from serving.scoring.seen import Seen
from serving.scoring.state import CSV, JSONL, TILES, TILES_CSV, Position, State, save_state
from serving.scoring.storage import open_at, output_errors, write_all
from serving.scoring.tally import Copies, add_chunk
from serving.scoring.tile_rows import tile_columns, tile_rows, tile_values

__all__ = ["ResultWriter"]

_COMMIT_SECONDS = 0.5  # shortest time between two commits …
_HELD = 1000  # rows that are not written yet
_BLOCK = 1 << 20
_COMMIT_SHARE = 50  # … and they take at most one part in 50 of the time


@dataclass(slots=True)
class _Written:
    """How far the rows are: files, rows and bytes, and what is not in the files yet."""

    files: int
    rows: int
    jsonl: int
    csv: int
    lines: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)


class ResultWriter:
    """Appends chunks to the files and records how far they are; use it as a context manager.

    On entry the files are cut to the recorded lengths. On exit, also by an error, everything appended is committed.

    Args:
        out: The output folder.
        state: The record to go on from.
        labels: The bundle's, the positive one first or wherever it stands.
        head: The bundle's.
        seen: Where rows stand, so that duplicates find theirs.
        positive: The positive label.

    Raises:
        InputError: On entry: a file is shorter than recorded.
        OutputError: The file system refused.
    """

    def __init__(self, out: Path, state: State, labels: Sequence[str], head: HeadSpec, seen: Seen, positive: str) -> None:
        self.state = state
        self._out = out
        self._labels, self._head, self._positive = labels, head, positive
        self._seen = seen
        self._descriptors: dict[str, int] = {}
        self._committed = state.position
        self._next_commit = 0.0

    def __enter__(self) -> Self:
        start = self.state.position
        lengths = {JSONL: start.jsonl, CSV: start.csv}
        lengths |= {TILES: start.tiles, TILES_CSV: start.tiles_csv} if self.state.options.tiles else {}
        try:
            for name, length in lengths.items():
                self._descriptors[name] = open_at(self._out / name, length)
            if not start.csv:
                self._move(start.model_copy(update=self._write_headers()))
        except BaseException:
            self._close()
            raise
        self._schedule(0.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not isinstance(error, OutputError):
                self.commit()
        finally:
            self._close()

    def append(self, chunk: ScoredChunk) -> None:
        """Write the rows of one chunk, and commit if it is time to.

        Raises:
            InputError: The row of an earlier file with the same bytes is not there any more.
            OutputError: The file system refused; the record still describes what was committed before.
        """
        before = self.state.position
        written, copies = _Written(before.files, before.rows, before.jsonl, before.csv), Copies()
        for path, answer, facts, tiled, part in _pictures(chunk):
            if isinstance(answer, Duplicate):
                copies.files += 1
                self._copy(path, answer.number, written, copies)
            else:
                line = self._put(make_row(path, answer, facts, tiled, self._positive, part), written)
                if facts.sha256 is not None:
                    self._seen.place(written.files, line, written.jsonl - line)
            written.files += part is None or part.ends
        self._flush(written)
        tiles, tiles_csv = self._write_tiles(chunk)
        after = Position(
            files=written.files,
            rows=written.rows,
            chunks=before.chunks + chunk.ends,
            listing=chunk.listing_end if chunk.ends else before.listing,
            within=Done() if chunk.ends else _done(before, written.files, chunk),
            jsonl=written.jsonl,
            csv=written.csv,
            tiles=before.tiles + tiles,
            tiles_csv=before.tiles_csv + tiles_csv,
        )
        tally = add_chunk(self.state.tally, chunk, copies)
        self.state = self.state.model_copy(update={"position": after, "tally": tally, "published": None})
        if time.monotonic() >= self._next_commit:
            self.commit()

    def commit(self) -> None:
        """Make everything appended so far survive a crash of the machine.

        Raises:
            OutputError: The file system refused.
        """
        if self._committed == self.state.position:
            return
        started = time.monotonic()
        for name, descriptor in self._descriptors.items():
            with output_errors(self._out / name):
                os.fsync(descriptor)
        self._seen.commit()
        save_state(self._out, self.state)
        self._committed = self.state.position
        self._schedule(time.monotonic() - started)

    def _write_headers(self) -> dict[str, int]:
        """The CSV files' headers, and the positions after them."""
        found = {"csv": self._write(CSV, csv_line(csv_columns(self._labels, self._head)))}
        if TILES_CSV in self._descriptors:
            found["tiles_csv"] = self._write(TILES_CSV, csv_line(tile_columns(self._labels, self._head)))
        return found

    def _put(self, row: dict[str, Any], written: _Written) -> int:
        """One more row, written now and then; where it stands in the JSON Lines."""
        start, line, record = written.jsonl, jsonl_line(row), csv_line(csv_values(row, self._labels, self._head))
        written.lines.append(line)
        written.records.append(record)
        written.jsonl, written.csv, written.rows = start + len(line), written.csv + len(record), written.rows + 1
        if len(written.lines) >= _HELD:
            self._flush(written)
        return start

    def _flush(self, written: _Written) -> None:
        self._write(JSONL, b"".join(written.lines))
        self._write(CSV, b"".join(written.records))
        written.lines.clear()
        written.records.clear()

    def _copy(self, path: bytes, number: int, written: _Written, copies: Copies) -> None:
        """The rows of a duplicate: those of the first file with its bytes, however many."""
        self._flush(written)
        for first in self._rows_of(number):
            copies.add(first)
            self._put(copied_row(path, first), written)

    def _write_tiles(self, chunk: ScoredChunk) -> tuple[int, int]:
        """The lengths of what was written to the two files of tiles."""
        rows = [row for path, _, _, tiled, part in _pictures(chunk) if tiled is not None for row in tile_rows(path, tiled, part)]
        if not rows:
            return 0, 0
        csv = b"".join(csv_line(tile_values(row, self._labels, self._head)) for row in rows)
        return self._write(TILES, b"".join(map(jsonl_line, rows))), self._write(TILES_CSV, csv)

    def _rows_of(self, number: int) -> Iterator[dict[str, Any]]:
        start, length = self._seen.where(number)
        rest = b""
        try:
            while length and (data := os.pread(self._descriptors[JSONL], min(length, _BLOCK), start)):
                start, length = start + len(data), length - len(data)
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)
            if length or rest:
                raise ValueError("a row is cut off")
        except ValueError as error:
            raise InputError(f"{str(self._out / JSONL)!r} was changed since it was written; give another output folder") from error

    def _schedule(self, cost: float) -> None:
        self._next_commit = time.monotonic() + max(_COMMIT_SECONDS, _COMMIT_SHARE * cost)

    def _move(self, position: Position) -> None:
        self.state = self.state.model_copy(update={"position": position})

    def _write(self, name: str, data: bytes) -> int:
        with output_errors(self._out / name):
            write_all(self._descriptors[name], data)
        return len(data)

    def _close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}


def _pictures(chunk: ScoredChunk) -> Iterator[tuple[bytes, Answer, Facts, Tiled | None, StackPart | None]]:
    count = len(chunk.paths)
    facts, tiled, stack = chunk.facts or (Facts(),) * count, chunk.tiled or (None,) * count, chunk.stack or (None,) * count
    return zip(chunk.paths, chunk.answers, facts, tiled, stack, strict=True)


def _done(before: Position, files: int, chunk: ScoredChunk) -> Done:
    """What is done of a chunk after one of its pieces."""
    last = chunk.stack[-1] if chunk.stack else None
    part = 0 if last is None or last.ends else last.number + 1
    return Done(before.within.files + files - before.files, part, before.within.pieces + 1)
