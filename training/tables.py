"""Results as tables for people, on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from training.console import STDOUT
from training.plan import Plan

__all__ = [
    "print_backbones",
    "print_backends",
    "print_confusion",
    "print_figures",
    "print_fit",
    "print_jobs",
    "print_plans",
    "print_series",
]


def print_fit(path: Path, result: dict[str, Any]) -> None:
    """The figures of a finished run and of its twins, and where its pictures are."""
    rows = {name: result[key] for name, key in (("validation", "val"), ("test", "test"))}
    rows |= {f"test, {name} twin": twin["test"] for name, twin in result["twins"].items()}
    print_figures({**rows, "test, logistic regression": result["logistic_regression"]})
    _print_mcnemar(result["mcnemar"])
    print_confusion(result["test"])
    if result["shots"] is not None:
        planned = result["planned"]
        STDOUT.print(
            f"{result['jobs']:,} jobs with {result['parameter_sets']:,} parameter sets (planned {planned['jobs']:,} and "
            f"{planned['parameter_sets']:,}), {result['qpu_seconds']:.1f} QPU seconds billed"
        )
    STDOUT.print(f"best epoch {result['best_epoch']} of {result['epochs']}; {path / 'curves.png'}, {path / 'confusion.png'}")


def _print_mcnemar(tests: dict[str, dict[str, Any]]) -> None:
    """One line per twin: who is right where the other is not."""
    for name, test in tests.items():
        STDOUT.print(
            f"against the {name} twin: right alone on {test['only_model']}, the twin on {test['only_twin']} test images; "
            f"McNemar's exact test p = {test['p_value']:.3g}"
        )


def print_backbones(found: list[dict[str, Any]]) -> None:
    """One network per row, and whether its published weights lie where torch looks for them."""
    table = Table("name", "input", Column("size", justify="right"), Column("parameters", justify="right"), "weights", "here", box=None)
    for each in found:
        here = "yes" if each["found"] else "no"
        table.add_row(each["name"], each["input"], str(each["size"]), f"{each['parameters']:,}", Text(each["weights"]), here)
    STDOUT.print(table)


def print_series(path: Path, summary: dict[str, Any]) -> None:
    """Every run of a series in a row, their means with intervals, and the paired differences to the twins."""
    table = Table("run", "best epoch", "validation", "test", *(f"{name} twin" for name in summary["twins"]), box=None, pad_edge=False)
    for row in summary["runs"]:
        accuracies = [row["val"], row["test"], *(twin["test"] for twin in row["twins"].values())]
        table.add_row(Text(row["run"]), str(row["best_epoch"]), *(f"{figures['accuracy']:.3f}" for figures in accuracies))
    STDOUT.print(table)
    means = Table("mean and 95 % interval", "accuracy", "loss", "ROC AUC", box=None, pad_edge=False)
    named = {"validation": summary["val"], "test": summary["test"]}
    named |= {f"test, {name} twin": twin["test"] for name, twin in summary["twins"].items()}
    for name, figures in {**named, "test, logistic regression": summary["logistic_regression"]}.items():
        means.add_row(name, *(_with_interval(figures[key]) for key in ("accuracy", "loss", "roc_auc")))
    for name, figures in summary["paired"].items():
        means.add_row(f"test, less the {name} twin", _with_interval(figures["accuracy"], "+"), _with_interval(figures["loss"], "+"), "")
    STDOUT.print(means)
    _print_mcnemar(summary["mcnemar"] or {})
    STDOUT.print(f"{path / 'summary.json'}, {path / 'curves.png'}")


def _with_interval(value: dict[str, Any] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    low, high = value["interval"] or (None, None)
    return f"{value['mean']:{sign}z.3f}" if low is None else f"{value['mean']:{sign}z.3f} ({low:{sign}z.3f} – {high:{sign}z.3f})"


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
