"""Where a run stands when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.scoring.state import CSV, JSONL, SUMMARY, TILES, TILES_CSV

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run stands when it ends.

    Args:
        out: The output folder, absolute.
        summary: What summary.json holds of a complete run.
        complete: False if it was stopped before the last file.
        done: Files with a row.
        resumed_at: Files with a row before this run.
        seconds: Duration of this run, from the first look at the folder on.
        review: The most doubtful files, (margin, path).
        strangers: The least familiar files, (familiarity, path).
        failed: The first files with errors.
        made: What was made of the rows, names in the output folder.
    """

    out: Path
    summary: dict[str, Any]
    complete: bool
    done: int
    resumed_at: int
    seconds: float
    review: tuple[tuple[float, str], ...]
    strangers: tuple[tuple[float, str], ...]
    failed: tuple[str, ...]
    made: tuple[str, ...] = ()

    @property
    def failures(self) -> int:
        """Files without an answer, and folders that could not be read."""
        counts: list[int] = [*self.summary["errors"].values(), self.summary["skipped"].get("unreadable_folders", 0)]
        return sum(counts)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the results in the output folder."""
        tiles = (TILES, TILES_CSV) if self.summary["options"].get("tiles") else ()
        return (*self.made, CSV, JSONL, *tiles, SUMMARY)

    @property
    def rate(self) -> float:
        """Images per second of this run."""
        return (self.done - self.resumed_at) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready answer: the summary, and what may differ between runs that give the same files."""
        files = {name: str(self.out / name) for name in self.files}
        progress = {"complete": self.complete, "done": self.done, "resumed_at": self.resumed_at}
        return {**self.summary, **progress, "files": files, "seconds": self.seconds, "images_per_second": self.rate}
