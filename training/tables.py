"""Results as tables for people, on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from training.console import STDOUT
from training.plan import Plan

__all__ = ["print_backends", "print_confusion", "print_figures", "print_fit", "print_jobs", "print_plans"]


def print_fit(path: Path, result: dict[str, Any]) -> None:
    """The figures of a finished run, and where its pictures are."""
    rows = {name: result[key] for name, key in (("validation", "val"), ("test", "test"))}
    print_figures({**rows, "test, logistic regression": result["logistic_regression"]})
    print_confusion(result["test"])
    if result["shots"] is not None:
        planned = result["planned"]
        STDOUT.print(
            f"{result['jobs']:,} jobs with {result['parameter_sets']:,} parameter sets (planned {planned['jobs']:,} and "
            f"{planned['parameter_sets']:,}), {result['qpu_seconds']:.1f} QPU seconds billed"
        )
    STDOUT.print(f"best epoch {result['best_epoch']} of {result['epochs']}; {path / 'curves.png'}, {path / 'confusion.png'}")


def print_figures(rows: dict[str, dict[str, Any]]) -> None:
    """One row per named set of figures of :func:`training.metrics.classification_metrics`."""
    columns = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "loss")
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("accuracy", "95 % interval", *(name.replace("_", " ") for name in columns[1:])):
        table.add_column(column, justify="right", no_wrap=True)
    for name, figures in rows.items():
        low, high = figures["accuracy_interval"]
        cells = ["–" if figures[column] is None else f"{figures[column]:.3f}" for column in columns]
        table.add_row(name, cells[0], f"{low:.3f} – {high:.3f}", *cells[1:])
    STDOUT.print(table)


def print_confusion(figures: dict[str, Any]) -> None:
    """A confusion matrix, rows are true classes."""
    labels = [Text(label) for label in figures["labels"]]  # names of folders are not markup
    table = Table("truth \\ answer", *map(Column, labels), box=None, pad_edge=False)
    for label, row in zip(labels, figures["confusion"], strict=True):
        table.add_row(label, *(str(count) for count in row))
    STDOUT.print(table)


def print_backends(rows: list[dict[str, Any]], account: dict[str, Any] | None) -> None:
    """The families of backends, and the machines of an account where one was asked."""
    table = Table("name", "exact", "shots", "paid", "gradient methods", "what", box=None, pad_edge=False)
    for row in rows:
        marks = ("yes" if row[key] else "–" for key in ("exact", "shots", "paid"))
        table.add_row(row["name"], *marks, ", ".join(row["diff_methods"]), row["summary"])
    STDOUT.print(table)
    if account is not None:
        machines = Table("machine", "qubits", "queue", "operational", "calibrated", box=None, pad_edge=False)
        for machine in account["machines"]:
            machines.add_row(*(str(machine[key]) for key in ("name", "num_qubits", "pending_jobs", "operational", "calibration")))
        STDOUT.print(machines)
        STDOUT.print(f"usage: {account['usage']}")


def print_plans(plans: dict[str, Plan], *, as_json: bool) -> None:
    """Costs side by side, as JSON or as a table."""
    if as_json:
        STDOUT.file.write(json.dumps({name: plan.to_dict() for name, plan in plans.items()}) + "\n")
        return
    prices = list(next(iter(plans.values())).prices)
    table = Table(
        "", "jobs", "parameter sets", "executions", "QPU", "wall, at least", "Open plan's month", *prices, box=None, pad_edge=False
    )
    for name, plan in plans.items():
        cells = [f"{plan.counts.jobs:,}", f"{plan.counts.parameter_sets:,}", f"{plan.executions:,}"]
        times = [_duration(plan.qpu_seconds), _duration(plan.wall_seconds), f"{100 * plan.open_plan_share:,.1f} %"]
        table.add_row(name, *cells, *times, *(f"${price:,.2f}" for price in plan.prices.values()))
    STDOUT.print(table)


def print_jobs(rows: list[dict[str, Any]]) -> None:
    """Recorded executions."""
    table = Table("job", "state", "backend", "sets", "shots", "QPU s", "created", "key", box=None, pad_edge=False)
    for row in rows:
        cells = (row["job_id"] or "–", row["state"], row["backend"], row["parameter_sets"], row["shots"], f"{row['qpu_seconds']:.1f}")
        table.add_row(*map(str, cells), row["created"], row["key"][:12])
    STDOUT.print(table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
