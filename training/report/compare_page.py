"""``report.html`` of a comparison: what differs, what does not, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqtl_common import __version__
from training.compare.experiment import Comparison
from training.compare.options import REPLICATES
from training.compare.summary import verdict
from training.compare.task import ENVIRONMENT
from training.report.page import render, svg_source, write_page
from training.twins import TWINS

__all__ = ["write_compare_report"]


def write_compare_report(comparison: Comparison, path: Path, out: Path | None = None) -> Path:
    """Write the page of a comparison; returns where it is.

    Args:
        comparison: Of :func:`training.compare.experiment.compare` or ``read_comparison``.
        path: Its folder, with the pictures.
        out: The file; None: ``report.html`` in the folder.
    """
    summary = comparison.summary
    finished = [row for row in comparison.rows if row["status"] == "finished"]
    values = {
        "name": path.absolute().name,
        "version": __version__,
        "options": [name for name in comparison.varied if name not in REPLICATES],
        "replicates": [name for name in comparison.varied if name in REPLICATES],
        "summary": summary,
        "verdicts": [(row["group"], [(twin, verdict(row, twin)) for twin in TWINS]) for row in summary],
        "bests": [max(rows, key=lambda row: row["test_accuracy_mean"]) for rows in _by_data(summary)],
        "rows": comparison.rows,
        "finished": finished,
        "failures": comparison.failures,
        "pending": [row for row in comparison.rows if row["status"] == "pending"],
        "pictures": [(name, svg_source((path / f"{name}.svg").read_bytes())) for name in ("accuracy", "cost")] if summary else [],
        "environments": sorted({_environment(row) for row in finished}),
    }
    return write_page(out or path / "report.html", render("compare.html.j2", values))


def _by_data(summary: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups that were measured on the same images: only these can be set against each other."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in summary:
        found.setdefault(row.get("data"), []).append(row)
    return list(found.values())


def _environment(row: dict[str, Any]) -> str:
    known = [(name, row[name]) for name in ENVIRONMENT if row.get(name) is not None]
    return " · ".join(f"{name} {value}" for name, value in known)
