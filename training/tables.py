"""Results as tables for people, on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from training.console import STDOUT

__all__ = ["print_confusion", "print_figures", "print_fit"]


def print_fit(path: Path, result: dict[str, Any]) -> None:
    """The figures of a finished run, and where its pictures are."""
    rows = {name: result[key] for name, key in (("validation", "val"), ("test", "test"))}
    print_figures({**rows, "test, logistic regression": result["logistic_regression"]})
    print_confusion(result["test"])
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
