"""Calibration and familiarity as tables for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from hqtl_common.calibration import Calibration
from training.console import STDOUT

__all__ = ["print_calibrations", "print_reliability"]


def print_calibrations(entries: Sequence[Calibration]) -> None:
    """One row per backend, and a line on each threshold."""
    if not entries:
        STDOUT.print("not calibrated: temperature 1")
        return
    table = Table("calibration", "fitted on", "temperature", "loss", "ECE", "by chance", "Brier", box=None, pad_edge=False)
    for entry in entries:
        loss, ece, brier = (f"{getattr(entry.before, name):.3f} → {getattr(entry.after, name):.3f}" for name in ("nll", "ece", "brier"))
        fitted = f"{entry.subset}, {entry.num_images} images"
        table.add_row(entry.label, fitted, f"{entry.temperature:.3g}", loss, ece, f"{entry.after.ece_chance:.3f}", brier)
    STDOUT.print(table)
    for entry in entries:
        if entry.threshold is not None:
            STDOUT.print(_threshold(entry), markup=False)


def print_reliability(result: dict[str, Any]) -> None:
    """What :func:`training.evaluate.evaluate` found besides figures of merit.

    Args:
        result: Its answer.
    """
    applied = result["calibration"]
    threshold = "" if applied["threshold"] is None else f", threshold {applied['threshold']:.4g}"
    STDOUT.print(f"calibration: {applied['name']} (temperature {applied['temperature']:.3g}{threshold})", markup=False)
    table = Table("", "loss", "ECE", "95 % interval", "by chance", "Brier", box=None, pad_edge=False)
    for name in ("uncalibrated", "calibrated"):
        row = result["reliability" if name == "calibrated" else name]
        interval = f"{row['ece_low']:.3f} – {row['ece_high']:.3f}"
        table.add_row(name, f"{row['nll']:.3f}", f"{row['ece']:.3f}", interval, f"{row['ece_chance']:.3f}", f"{row['brier']:.3f}")
    STDOUT.print(table)
    for name, part in (result["familiarity"] or {}).items():
        if part["num_images"]:
            low, high = part["accuracy_interval"]
            STDOUT.print(f"{name}: {part['num_images']} images, accuracy {part['accuracy']:.3f} ({low:.3f} – {high:.3f})")
        else:
            STDOUT.print(f"{name}: no image")


def _threshold(entry: Calibration) -> str:
    text = f"{entry.label}: threshold {entry.threshold:.4g} ({entry.rule})"
    if entry.recall is None:
        return text
    low, high = entry.recall.interval
    return (
        f"{text}: recall {entry.recall.recall:.3f} ({low:.3f} – {high:.3f}) of {entry.recall.positives} positive images, "
        f"false alarms {entry.recall.false_alarms:.3f}"
    )
