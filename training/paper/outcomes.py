"""What finished parts found: one row per training, with its twins, and the figures that are common to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.errors import InputError
from training.paper.intervals import mean_interval, paired_difference
from training.paper.protocol import Part
from training.paper.work import part_record
from training.runs import RunFolder
from training.significance import range_of
from training.twins import TWINS

__all__ = ["Outcome", "read_outcome", "summary"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished part.

    Args:
        part: What was done.
        times: ``seconds`` of the epochs of all its trainings together, ``cpu_seconds``, ``wall_seconds``, ``trainings``.
        results: ``result.json`` of each training.
        data: ``data.json`` of each.
        metrics: ``metrics.jsonl`` of the first.
        predictions: ``predictions.json`` of the first.
    """

    part: Part
    times: dict[str, Any]
    results: list[dict[str, Any]]
    data: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    predictions: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One row per training: seed, best epoch, test loss and accuracy of the hybrid and of its twins."""
        return [_row(config.seed, result) for config, result in zip(self.part.configs, self.results, strict=True)]


def read_outcome(part: Part, out: Path) -> Outcome:
    """Read what a part left behind.

    Raises:
        InputError: It is not finished.
    """
    times = part_record(part, out)
    runs = [RunFolder(folder) for folder in part.folders(out)]
    results, data = [run.result() for run in runs], [run.data() for run in runs]
    if times is None or None in results or None in data:
        raise InputError(f"the part {part.name!r} of {str(out)!r} is not finished; run the command again")
    predictions = json.loads((runs[0].path / "predictions.json").read_bytes())
    kept = [result for result in results if result], [record for record in data if record]
    return Outcome(part, times, *kept, runs[0].metrics(), predictions)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over rows with intervals: loss and accuracy of the hybrid and of both twins, and hybrid minus twin, paired."""
    result: dict[str, Any] = {}
    for figure in ("loss", "accuracy"):
        hybrid = [row[figure] for row in rows]
        result[figure] = mean_interval(hybrid, range_of(figure))
        for twin in TWINS:
            classical = [row[f"{twin}_{figure}"] for row in rows]
            result[f"{twin}_{figure}"] = mean_interval(classical, range_of(figure))
            result[f"{figure}_minus_{twin}"] = paired_difference(hybrid, classical)
    return result


def _row(seed: int, result: dict[str, Any]) -> dict[str, Any]:
    row = {"seed": seed, "loss": result["test"]["loss"], "accuracy": result["test"]["accuracy"]}
    for twin in TWINS:
        figures = result["twins"][twin]["test"]
        row |= {f"{twin}_loss": figures["loss"], f"{twin}_accuracy": figures["accuracy"]}
    return row | {"best_epoch": result["best_epoch"]}
