"""A comparison as tables for people, on standard output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from training.compare.experiment import Comparison, PlannedComparison
from training.compare.grid import stacks
from training.compare.options import REPLICATES
from training.compare.summary import TWIN_NAMES, standing
from training.console import STDOUT

__all__ = ["print_comparison", "print_planned"]


def print_planned(planned: PlannedComparison) -> None:
    """Every run with what it would take."""
    table = Table("run", "jobs", "parameter sets", "QPU s on hardware", box=None, pad_edge=False)
    for run, plan in zip(planned.runs, planned.plans, strict=True):
        table.add_row(Text(run.name), f"{plan['jobs']:,}", f"{plan['parameter_sets']:,}", f"{plan['qpu_seconds']:.1f}")
    STDOUT.print(table)
    together = len(stacks(planned.runs, planned.config.stack_size))
    STDOUT.print(f"{len(planned.runs)} runs, trained as {together} programs; nothing was run")


def print_comparison(comparison: Comparison, out: Path) -> None:
    """A row per group of runs, how many stand how against their twins, and where the files are."""
    options = [name for name in comparison.varied if name not in REPLICATES]
    table = Table(*(Column(name, no_wrap=True) for name in options), box=None, pad_edge=False)
    for name in ("runs", "accuracy", "95 % interval", "minus twin", "minus linear", "seconds", "jobs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.summary:
        table.add_row(*(Text("–" if row[name] is None else str(row[name])) for name in options), *_cells(row))
    STDOUT.print(table)
    for twin, name in TWIN_NAMES.items():
        counts = Counter(standing(row, twin) for row in comparison.summary)
        said = ", ".join(f"{count} {standing}" for standing, count in counts.items())
        STDOUT.print(f"of {len(comparison.summary)} groups against {name}: {said or 'none finished'}")
    for error, names in comparison.failures.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        STDOUT.print(Text(f"{shown} failed: {error}"))
    STDOUT.print(Text(f"{out / 'results.csv'}, {out / 'summary.csv'}, {out / 'report.html'}"))


def _cells(row: dict[str, Any]) -> Sequence[str]:
    return (
        str(row["runs"]),
        f"{row['test_accuracy_mean']:.3f}",
        _range(row["test_accuracy_low"], row["test_accuracy_high"]),
        f"{row['minus_bottleneck']:+z.3f}",
        f"{row['minus_linear']:+z.3f}",
        f"{row['seconds_mean']:.1f}",
        f"{row['jobs']:,}",
    )


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} – {high:.3f}"
