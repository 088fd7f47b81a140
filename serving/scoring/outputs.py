"""``scores.jsonl`` and ``scores.csv``, written as a run goes, and the commits after which nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.errors import OutputError
from serving.scoring.pipeline import ScoredChunk
from serving.scoring.rows import csv_columns, csv_line, csv_values, jsonl_line, make_row
from serving.scoring.state import CSV, JSONL, Position, State, save_state
from serving.scoring.storage import open_at, output_errors, write_all
from serving.scoring.tally import add_chunk

__all__ = ["ResultWriter"]

_COMMIT_SECONDS = 0.5  # shortest time between two commits …
_COMMIT_SHARE = 50  # … and they take at most one part in 50 of the time


class ResultWriter:
    """Appends chunks to both files and records how far they are; use it as a context manager.

    On entry both files are cut to the recorded lengths. On exit, also by an error, everything appended is committed.

    Args:
        out: The output folder.
        state: The record to go on from.
        labels: The bundle's.
        num_qubits: Width of the head.
        boundaries: See :func:`serving.scoring.tally.margin_of`.

    Raises:
        InputError: On entry: a file is shorter than recorded.
        OutputError: The file system refused.
    """

    def __init__(self, out: Path, state: State, labels: Sequence[str], num_qubits: int, boundaries: dict[str, float]) -> None:
        self.state = state
        self._out = out
        self._labels = labels
        self._num_qubits = num_qubits
        self._boundaries = boundaries
        self._descriptors: dict[str, int] = {}
        self._committed = state.position
        self._next_commit = 0.0

    def __enter__(self) -> Self:
        lengths = {JSONL: self.state.position.jsonl, CSV: self.state.position.csv}
        try:
            for name, length in lengths.items():
                self._descriptors[name] = open_at(self._out / name, length)
            if not lengths[CSV]:
                header = self._write(CSV, csv_line(csv_columns(self._labels, self._num_qubits)))
                self._move(self.state.position.model_copy(update={"csv": header}))
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
            OutputError: The file system refused; the record still describes what was committed before.
        """
        rows = [make_row(path, answer) for path, answer in zip(chunk.paths, chunk.answers, strict=True)]
        before = self.state.position
        jsonl = self._write(JSONL, b"".join(jsonl_line(row) for row in rows))
        csv = self._write(CSV, b"".join(csv_line(csv_values(row, self._labels, self._num_qubits)) for row in rows))
        after = Position(
            files=before.files + len(rows),
            chunks=before.chunks + 1,
            listing=chunk.listing_end,
            jsonl=before.jsonl + jsonl,
            csv=before.csv + csv,
        )
        tally = add_chunk(self.state.tally, chunk, self._boundaries)
        self.state = self.state.model_copy(update={"position": after, "tally": tally})
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
        save_state(self._out, self.state)
        self._committed = self.state.position
        self._schedule(time.monotonic() - started)

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
