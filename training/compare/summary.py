"""Figures of runs that measure the same, put together: mean, spread and 95 % interval over seeds, and the difference to each twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.compare.options import REPLICATES
from training.significance import mean_interval, range_of
from training.twins import TWINS

__all__ = ["TWIN_NAMES", "standing", "summarise", "verdict"]

TWIN_NAMES = {"bottleneck": "the classical twin", "linear": "the linear twin"}

_AVERAGED = ("test_accuracy", "test_balanced_accuracy", "test_f1", "test_roc_auc", "test_loss", "test_ece", "seconds")
_SUMMED = ("parameter_sets", "jobs", "qpu_seconds")


def summarise(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> list[dict[str, Any]]:
    """A row per group of finished runs, in the order of the first of each.

    ``NAME_mean``, ``NAME_std``, ``NAME_low`` and ``NAME_high`` are over the group's runs, by Student's t; spread and interval are
    None for a single run. ``minus_TWIN`` is the mean of the differences in test accuracy to that twin, run by run, with its interval.

    Args:
        rows: Of :func:`training.compare.results.result_rows`.
        varied: Names of the varied options.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished":
            groups.setdefault(row["group"], []).append(row)
    kept = [name for name in varied if name not in REPLICATES]
    return [{"group": name, **{key: members[0].get(key) for key in kept}, **_summary(members)} for name, members in groups.items()]


def standing(row: dict[str, Any], twin: str) -> str:
    """``better`` or ``worse`` where the interval of the difference to a twin says so, else ``undecided``."""
    low, high = row[f"minus_{twin}_low"], row[f"minus_{twin}_high"]
    return "undecided" if low is None or low <= 0 <= high else "better" if low > 0 else "worse"


def verdict(row: dict[str, Any], twin: str) -> str:
    """In words, whether the hybrid of a group is better or worse than its twin, as far as the runs can tell."""
    mean, low, high = row[f"minus_{twin}"], row[f"minus_{twin}_low"], row[f"minus_{twin}_high"]
    points = f"{100 * abs(mean):.1f} percentage points"
    if low is None:
        return f"{points} {'above' if mean >= 0 else 'below'} {TWIN_NAMES[twin]} in one run, which cannot tell a difference from chance"
    difference = f"difference {100 * mean:+z.1f} points, 95 % interval {100 * low:+z.1f} to {100 * high:+z.1f}"
    if (found := standing(row, twin)) == "undecided":
        return f"cannot be told apart from {TWIN_NAMES[twin]} by {row['runs']} runs ({difference})"
    return f"{found} than {TWIN_NAMES[twin]} by {points} ({difference})"


def _summary(members: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": len(members)}
    for name in _AVERAGED:
        values = [row[name] for row in members]
        if all(value is not None for value in values):
            found |= _over_runs(name, values)
        else:
            found |= dict.fromkeys((f"{name}_mean", f"{name}_std", f"{name}_low", f"{name}_high"))
    for twin in TWINS:
        reference = [row[f"{twin}_accuracy"] for row in members]
        found |= _over_runs(f"{twin}_accuracy", reference)
        difference = mean_interval([row["test_accuracy"] - other for row, other in zip(members, reference, strict=True)])
        low, high = difference["interval"] or (None, None)
        found |= {f"minus_{twin}": difference["mean"], f"minus_{twin}_low": low, f"minus_{twin}_high": high}
    return found | {name: sum(row[name] for row in members) for name in _SUMMED}


def _over_runs(name: str, values: Sequence[float]) -> dict[str, Any]:
    found = mean_interval(values, range_of(name))
    low, high = found["interval"] or (None, None)
    return {f"{name}_mean": found["mean"], f"{name}_std": found["std"], f"{name}_low": low, f"{name}_high": high}
