"""What people see: results on standard output, and while they wait everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["STDERR", "STDOUT", "Advance", "progress_bar", "say", "warn"]

STDOUT = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, steps: int, status: str = "") -> None:
        """``steps`` more are done; ``status`` is shown beside the bar."""


def say(message: str) -> None:
    """A line of information."""
    STDERR.print(message, markup=False)


def warn(message: str) -> None:
    """A line that should not be overlooked."""
    STDERR.print(f"warning: {message}", style="yellow", markup=False)


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar with count and time left; the value is called with the steps done and a status.

    Without a terminal nothing is drawn.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[status]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=STDERR, disable=not STDERR.is_terminal) as progress:
        task = progress.add_task(description, total=total, status="")

        def advance(steps: int, status: str = "") -> None:
            progress.update(task, advance=steps, status=status)

        yield advance
