"""Progress on standard error: a bar on a terminal, a line now and then elsewhere, or nothing at all."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Bar", "Lines", "Reporter", "Silent", "reporter_for"]

_LINE_SECONDS = 30.0


class Reporter(Protocol):
    """What a run tells while it works."""

    def found(self, files: int) -> None:
        """So many files are listed so far."""

    def begin(self, total: int, done: int) -> None:
        """Scoring begins with ``done`` of ``total`` files from an earlier run."""

    def advance(self, done: int) -> None:
        """So many files have their row."""

    def within(self, done: int, kind: str = "tile") -> None:
        """So many tiles of the image in work, or frames, pages or slices of the file, are done."""

    def note(self, message: str) -> None:
        """Something to know, in one line."""


class Silent:
    """Says nothing; see :class:`Reporter`."""

    def found(self, files: int) -> None:
        """See :class:`Reporter`."""

    def begin(self, total: int, done: int) -> None:
        """See :class:`Reporter`."""

    def advance(self, done: int) -> None:
        """See :class:`Reporter`."""

    def within(self, done: int, kind: str = "tile") -> None:
        """See :class:`Reporter`."""

    def note(self, message: str) -> None:
        """See :class:`Reporter`."""


class Lines:
    """One line every 30 seconds, for logs; see :class:`Reporter`.

    Args:
        stream: Where to write.
        every: Seconds between two lines.
    """

    def __init__(self, stream: TextIO, every: float = _LINE_SECONDS) -> None:
        self._stream = stream
        self._every = every
        self._started = self._last = time.monotonic()
        self._total = self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def found(self, files: int) -> None:
        """See :class:`Reporter`."""
        if self._due():
            self.note(f"{files:,} images found")

    def begin(self, total: int, done: int) -> None:
        """See :class:`Reporter`."""
        self._total, self._first, self._started = total, done, time.monotonic()
        self.note(f"{total:,} images to score" + (f", {done:,} of them done before" if done else ""))

    def advance(self, done: int) -> None:
        """See :class:`Reporter`."""
        if self._due():
            rate = (done - self._first) / max(time.monotonic() - self._started, 1e-9)
            left = f", {(self._total - done) / rate / 60:.0f} min left" if rate else ""  # 0 in a first file of many pictures
            self.note(f"{done:,} of {self._total:,} images, {rate:.1f} images/s{left}")

    def within(self, done: int, kind: str = "tile") -> None:
        """See :class:`Reporter`."""
        if self._due():
            self.note(f"{done:,} {kind}s of the {'image' if kind == 'tile' else 'file'} in work")

    def note(self, message: str) -> None:
        """See :class:`Reporter`."""
        print(message, file=self._stream, flush=True)

    def _due(self) -> bool:
        due = time.monotonic() - self._last >= self._every
        if due:
            self._last = time.monotonic()
        return due


class Bar:
    """A bar with images per second and time left; see :class:`Reporter`.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, speed_estimate_period=60.0)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def found(self, files: int) -> None:
        """See :class:`Reporter`."""
        self._progress.update(self._shown("Listing"), completed=files)

    def begin(self, total: int, done: int) -> None:
        """See :class:`Reporter`."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("Scoring", total=total, completed=done)

    def advance(self, done: int) -> None:
        """See :class:`Reporter`."""
        self._progress.update(self._shown("Scoring"), completed=done, description="Scoring")

    def within(self, done: int, kind: str = "tile") -> None:
        """See :class:`Reporter`."""
        self._progress.update(self._shown("Scoring"), description=f"Scoring ({kind} {done:,})")

    def note(self, message: str) -> None:
        """See :class:`Reporter`."""
        self._progress.console.print(Text(message))

    def _shown(self, title: str) -> TaskID:
        if self._task is None:
            self._task = self._progress.add_task(title, total=None)
        return self._task


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} images/s", style="progress.data.speed")


def reporter_for(stream: TextIO) -> Bar | Lines:
    """A bar if ``stream`` is a terminal, else lines."""
    return Bar(Console(file=stream)) if stream.isatty() else Lines(stream)
