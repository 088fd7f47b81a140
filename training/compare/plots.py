"""Pictures of a comparison: accuracy with intervals by option, and what it cost."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from hqtl_common.durable import replace_file
from training.compare.options import REPLICATES
from training.twins import TWINS

__all__ = ["FORMATS", "plot_comparison"]

FORMATS = ("png", "svg", "pdf")

_BLUE, _GREY, _LIGHT = "#0072b2", "#777777", "#9ecae1"  # told apart by colour-blind readers too
_TWINS = {"bottleneck": ("#d55e00", "s", "classical twin"), "linear": ("#009e73", "^", "linear twin")}
_MAX_ROWS = 60
_MAX_LABEL = 44
_SHORT = {"num_layers": "L =", "num_qubits": "qubits", "data": "", "diff_method": "", "embedding": "", "entangler": "", "backbone": ""}
_LOG_FROM = 20  # times the smallest value
_STYLE: Any = {"svg.fonttype": "path", "pdf.fonttype": 42, "svg.hashsalt": "hqtl", "font.size": 9, "font.family": "DejaVu Sans"}


def plot_comparison(summary: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], varied: Sequence[str], out: Path) -> None:
    """Write ``accuracy`` and ``cost`` in every format of :data:`FORMATS`.

    Args:
        summary: Of :func:`training.compare.summary.summarise`; beyond 60 groups only the first are drawn.
        rows: Of :func:`training.compare.results.result_rows`.
        varied: Names of the varied options.
        out: Folder.
    """
    shown = list(summary[:_MAX_ROWS])
    with mpl.rc_context(_STYLE):
        for name, figure in (("accuracy", _accuracy(shown, rows, varied)), ("cost", _cost(shown, varied))):
            _save(figure, out / name)


def _accuracy(summary: list[dict[str, Any]], rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> Figure:
    figure, (axes,) = _rows_figure(summary, varied, 1)
    for position, group in zip(_positions(summary, varied), summary, strict=True):
        members = [row for row in rows if row["group"] == group["group"] and row["status"] == "finished"]
        if len(members) > 1:
            axes.plot([100 * row["test_accuracy"] for row in members], [position - 0.2] * len(members), "o", ms=3, color=_LIGHT, zorder=2)
        _interval(axes, position, group, "test_accuracy", _single(members), color=_BLUE, marker="o", size=6.5)
        for offset, twin in zip((0.24, 0.42), TWINS, strict=True):
            colour, marker, _ = _TWINS[twin]
            _interval(axes, position + offset, group, f"{twin}_accuracy", None, color=colour, marker=marker, size=4)
    for label, colour, marker, size in (("hybrid", _BLUE, "o", 6.5), *((name, c, m, 4) for c, m, name in _TWINS.values())):
        axes.plot([], [], color=colour, marker=marker, ms=size, lw=1.2, label=label)
    repeated = any(group["runs"] > 1 for group in summary)
    if repeated:
        axes.plot([], [], "o", ms=3, color=_LIGHT, label="single runs of the hybrid")
    axes.set_xlabel("test accuracy in %, with 95 % interval " + ("of the mean over runs" if repeated else "(Wilson)"))
    figure.legend(loc="outside upper left", ncols=4, frameon=False, handletextpad=0.5, columnspacing=1.4)
    return figure


def _cost(summary: list[dict[str, Any]], varied: Sequence[str]) -> Figure:
    figure, (left, right) = _rows_figure(summary, varied, 2)
    positions = _positions(summary, varied)
    for position, group in zip(positions, summary, strict=True):
        _interval(left, position, group, "seconds", None, color=_BLUE, marker="o", size=5, scale=1.0, most=math.inf)
    right.plot([group["parameter_sets"] / group["runs"] for group in summary], positions, "o", ms=5, color=_BLUE)
    left.set_xlabel("training time in s")
    right.set_xlabel("parameter sets per run")
    for axes, values in (
        (left, [row["seconds_mean"] for row in summary]),
        (right, [row["parameter_sets"] / row["runs"] for row in summary]),
    ):
        if min(values) > 0 and max(values) > _LOG_FROM * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, None)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    return figure


def _rows_figure(summary: list[dict[str, Any]], varied: Sequence[str], columns: int) -> tuple[Figure, Sequence[Axes]]:
    """Axes with a named row per group; with several options, under a heading for each value of the first one."""
    positions = _positions(summary, varied)
    figure = Figure(figsize=(7.2, 1.2 + 0.42 * (positions[-1] + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    found: Sequence[Axes] = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    first, *rest = _options(varied) or ["group"]
    for axes in found:
        axes.set_yticks(positions)
        axes.set_yticklabels([_label(group, rest or [first]) for group in summary], parse_math=False)
        axes.set_ylim(positions[-1] + 0.75, positions[0] - (1.1 if rest else 0.5))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    before = None
    for position, group in zip(positions, summary, strict=True):
        if rest and group[first] != before:
            place: Any = {"transform": found[0].get_yaxis_transform(), "ha": "right", "va": "center", "weight": "bold"}
            found[0].text(-0.02, position - 0.72, _label(group, [first]), parse_math=False, **place)
            before = group[first]
    return figure, found


def _positions(summary: Sequence[dict[str, Any]], varied: Sequence[str]) -> list[float]:
    options = _options(varied)
    found = [0.0]
    for before, group in itertools.pairwise(summary):
        apart = len(options) > 1 and before[options[0]] != group[options[0]]
        found.append(found[-1] + (1.9 if apart else 1.0))
    return found


def _options(varied: Sequence[str]) -> list[str]:
    return [name for name in varied if name not in REPLICATES]


def _label(group: dict[str, Any], options: Sequence[str]) -> str:
    words = [f"{_SHORT.get(name, name.replace('_', ' '))} {group[name]}".strip() for name in options if group.get(name) is not None]
    text = ", ".join(words).removeprefix("group ") or "as in base"
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def _single(members: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Of a group of one run, the interval that its number of images leaves."""
    return (members[0]["test_accuracy_low"], members[0]["test_accuracy_high"]) if len(members) == 1 else None


def _interval(
    axes: Axes,
    position: float,
    group: dict[str, Any],
    name: str,
    limits: tuple[float, float] | None,
    *,
    color: str,
    marker: str,
    size: float,
    scale: float = 100.0,
    most: float = 100.0,
) -> None:
    mean = scale * group[f"{name}_mean"]
    low, high = limits or (group[f"{name}_low"], group[f"{name}_high"])
    if low is not None and high is not None:
        ends = [max(scale * low, 0.0), min(scale * high, most)]
        axes.plot(ends, [position] * 2, color=color, lw=1.6 if size > 5 else 1.0, solid_capstyle="butt", zorder=3)
    axes.plot([mean], [position], marker=marker, ms=size, color=color, mec="white", mew=0.6, zorder=4)


def _save(figure: Figure, path: Path) -> None:
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    for suffix in FORMATS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=200, metadata=metadata[suffix])
        replace_file(path.with_name(f"{path.name}.{suffix}"), buffer.getvalue())
