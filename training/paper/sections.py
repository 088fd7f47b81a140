"""What an item says on the page: findings beside the paper's statements, tables, pictures, decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.twins import TWINS

__all__ = ["Finding", "Picture", "Section", "Table", "per_cent", "points", "reaches", "twin_finding", "twin_table", "with_interval"]

_TWIN_WORDS = ("reaches its twin", "does not reach it", "no verdict")


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement of the paper, and what was found here.

    Args:
        paper: What the paper says.
        ours: What was found.
        agrees: Whether it is the same, or good; None where it cannot be said.
        words: The verdict in words where ``agrees`` is True, False, None.
    """

    paper: str
    ours: str
    agrees: bool | None
    words: tuple[str, str, str] = ("as in the paper", "not as in the paper", "no verdict")

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return self.words[(True, False, None).index(self.agrees)]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: texts only, the first column names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by the name of its files without suffix, and its caption."""

    stem: str
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """One item of the page.

    Args:
        name: Of the item; its data is ``name.json`` and ``name.csv``.
        title: Its heading.
        setting: What was run, in one paragraph.
        findings: Ours beside the paper's.
        pictures: In order.
        tables: In order.
        decisions: What the paper leaves open or its text has lost, and what was decided.
    """

    name: str
    title: str
    setting: str
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    decisions: tuple[str, ...] = ()


def per_cent(share: float | None) -> str:
    """``0.9341`` → ``93.4 %``."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{100 * difference:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "−")


def with_interval(figure: dict[str, Any], *, shares: bool = True) -> str:
    """``93.4 % (92.8 to 94.0)``; without limits the mean alone."""
    mean, low, high = figure["mean"], figure["low"], figure["high"]
    shown = per_cent(mean) if shares else f"{mean:.3f}"
    if low is None:
        return shown
    return f"{shown} ({100 * low:.1f} to {100 * high:.1f})" if shares else f"{shown} ({low:.3f} to {high:.3f})"


def twin_table(caption: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Accuracies of hybrids beside their twins, from :func:`training.paper.outcomes.summary` by name."""
    header = (
        "",
        "hybrid",
        "twin: Linear to 4, tanh, Linear",
        "twin: one Linear",
        "hybrid − bottleneck twin, points",
        "hybrid − linear twin, points",
    )
    cells = tuple(
        (
            name,
            with_interval(found["accuracy"]),
            *(with_interval(found[f"{twin}_accuracy"]) for twin in TWINS),
            *(_difference(found[f"accuracy_minus_{twin}"]) for twin in TWINS),
        )
        for name, found in rows
    )
    return Table(caption, header, cells)


def twin_finding(found: dict[str, Any], where: str) -> Finding:
    """Whether the hybrid reaches its bottleneck twin: it does unless the whole interval of the difference lies below zero."""
    difference = found["accuracy_minus_bottleneck"]
    reached = reaches(difference)
    words = {
        True: "The hybrid reaches its classical twin within the interval",
        False: "The hybrid does not reach its classical twin",
        None: "With a single training nothing can be said about hybrid and twin",
    }[reached]
    ours = f"{words} {where}: {_difference(difference)} points of test accuracy over {difference['count']} trainings."
    if difference["low"] is not None and difference["low"] > 0:
        ours += " The whole interval lies above zero, on this data and these trainings."
    return Finding("The paper trains no classical head beside the hybrid one.", ours, reached, _TWIN_WORDS)


def reaches(difference: dict[str, Any]) -> bool | None:
    """True if the interval of hybrid − twin reaches up to zero or above; None without an interval."""
    return None if difference["high"] is None else bool(difference["high"] >= 0)


def _difference(figure: dict[str, Any]) -> str:
    if figure["low"] is None:
        return points(figure["mean"])
    return f"{points(figure['mean'])} ({points(figure['low'])} to {points(figure['high'])})"
