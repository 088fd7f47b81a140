"""``scores`` and ``tiles`` as JSON Lines and CSV, written as a run goes, and the commits after which nothing is lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hqtl_common.errors import InputError
from hqtl_common.specs import HeadSpec
from serving.errors import OutputError
from serving.scoring.answers import Duplicate, Facts, ScoredChunk
from serving.scoring.rows import copied_row, csv_columns, csv_line, csv_values, jsonl_line, make_row
from serving.scoring.seen import Seen
from serving.scoring.state import CSV, JSONL, TILES, TILES_CSV, Position, State, save_state
from serving.scoring.storage import open_at, output_errors, write_all
from serving.scoring.tally import add_chunk
from serving.scoring.tile_rows import tile_columns, tile_rows, tile_values

__all__ = ["ResultWriter"]

_COMMIT_SECONDS = 0.5  # shortest time between two commits …
_COMMIT_SHARE = 50  # … and they take at most one part in 50 of the time


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
        rows, jsonl = self._write_rows(chunk, before)
        csv = self._write(CSV, b"".join(csv_line(csv_values(row, self._labels, self._head)) for row in rows))
        tiles, tiles_csv = self._write_tiles(chunk)
        after = Position(
            files=before.files + len(rows),
            chunks=before.chunks + 1,
            listing=chunk.listing_end,
            jsonl=before.jsonl + jsonl,
            csv=before.csv + csv,
            tiles=before.tiles + tiles,
            tiles_csv=before.tiles_csv + tiles_csv,
        )
        copies = [row for row, answer in zip(rows, chunk.answers, strict=True) if isinstance(answer, Duplicate)]
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

    def _write_rows(self, chunk: ScoredChunk, before: Position) -> tuple[list[dict[str, Any]], int]:
        """The rows of a chunk, and their length in the JSON Lines."""
        rows: list[dict[str, Any]] = []
        lines = []
        end = before.jsonl
        facts = chunk.facts or (Facts(),) * len(chunk.paths)
        tiled = chunk.tiled or (None,) * len(chunk.paths)
        for number, (path, answer, about, tiles) in enumerate(zip(chunk.paths, chunk.answers, facts, tiled, strict=True), before.files):
            if isinstance(answer, Duplicate):
                first = rows[answer.number - before.files] if answer.number >= before.files else self._row_of(answer.number)
                rows.append(copied_row(path, first))
            else:
                rows.append(make_row(path, answer, about, tiles, self._positive))
            lines.append(jsonl_line(rows[-1]))
            if about.sha256 is not None and not isinstance(answer, Duplicate):
                self._seen.place(number, end, len(lines[-1]))
            end += len(lines[-1])
        return rows, self._write(JSONL, b"".join(lines))

    def _write_tiles(self, chunk: ScoredChunk) -> tuple[int, int]:
        """The lengths of what was written to the two files of tiles."""
        rows = [row for path, tiled in zip(chunk.paths, chunk.tiled, strict=False) if tiled is not None for row in tile_rows(path, tiled)]
        if not rows:
            return 0, 0
        csv = b"".join(csv_line(tile_values(row, self._labels, self._head)) for row in rows)
        return self._write(TILES, b"".join(map(jsonl_line, rows))), self._write(TILES_CSV, csv)

    def _row_of(self, number: int) -> dict[str, Any]:
        start, length = self._seen.where(number)
        try:
            row: dict[str, Any] = json.loads(os.pread(self._descriptors[JSONL], length, start))
        except ValueError as error:
            raise InputError(f"{str(self._out / JSONL)!r} was changed since it was written; give another output folder") from error
        return row

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
