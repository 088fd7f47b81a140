"""Pictures of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hqtl_common.preprocess import open_image

__all__ = ["plot_confusion", "plot_curves", "plot_curves_together", "plot_gallery"]

_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"  # told apart by colour-blind readers too
_TWIN_STYLES: dict[str, dict[str, Any]] = {
    "bottleneck": {"color": _GREEN, "linestyle": "--", "linewidth": 1.1},
    "linear": {"color": _PINK, "linestyle": "-.", "linewidth": 1.1},
}


def plot_curves(metrics: Sequence[dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Loss and accuracy per epoch as PNG, of the model and of its twins.

    Args:
        metrics: Lines of metrics.jsonl.
        best_epoch: Marked by a vertical line.
        path: File to write.
    """
    figure, both = _curves([metrics])
    for axes in both:
        axes.axvline(best_epoch, color=_GREY, linestyle=":", linewidth=1)
        axes.annotate(
            f"best epoch {best_epoch}", (best_epoch, 1.01), xycoords=("data", "axes fraction"), ha="center", color=_GREY, fontsize=8
        )
    _save(figure, path)


def plot_curves_together(runs: Sequence[Sequence[dict[str, Any]]], path: Path) -> None:
    """The same of several runs: medians as lines, and for the model a band from the lowest to the highest.

    Args:
        runs: Lines of metrics.jsonl of each.
        path: File to write.
    """
    figure, both = _curves(runs)
    both[0].set_title(f"medians of {len(runs)} runs; bands: from the lowest to the highest", loc="left", fontsize=9, color=_GREY)
    _save(figure, path)


def _curves(runs: Sequence[Sequence[dict[str, Any]]]) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, runs, "hybrid", "train_loss", color=_BLUE, label="training")
    _curve(left, runs, "hybrid", "val_loss", color=_ORANGE, label="validation")
    _curve(right, runs, "hybrid", "val_accuracy", color=_ORANGE, label="validation")
    for name, style in _TWIN_STYLES.items():
        if "twins" in runs[0][0]:
            _curve(left, runs, name, "val_loss", label=f"validation, {name} twin", **style)
            _curve(right, runs, name, "val_accuracy", label=f"validation, {name} twin", **style)
    left.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy in %")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    return figure, (left, right)


def _curve(axes: Axes, runs: Sequence[Sequence[dict[str, Any]]], contender: str, key: str, **style: Any) -> None:
    """Median over the runs that reached an epoch, and the model's range where there are several; accuracies in percent."""
    scale = 100 if key == "val_accuracy" else 1
    values = [[scale * (line if contender == "hybrid" else line["twins"][contender])[key] for line in lines] for lines in runs]
    columns = [[column for column in each if column is not None] for each in itertools.zip_longest(*values)]
    epochs = range(1, len(columns) + 1)
    marker = "o" if len(columns) == 1 else None  # a line needs two points
    axes.plot(epochs, [float(np.median(column)) for column in columns], marker=marker, **style)
    if len(runs) > 1 and contender == "hybrid":
        low, high = zip(*((min(column), max(column)) for column in columns), strict=True)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def plot_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path) -> None:
    """A confusion matrix as PNG, counts and share of the true class in every cell.

    Args:
        confusion: (C, C) counts, rows are true classes.
        labels: C names.
        title: Above the picture.
        path: File to write.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.9 * len(labels)
    figure = Figure(figsize=(size + 0.4, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{count}\n{100 * share:.1f} %", ha="center", va="center", color=colour)
    ticks = range(len(labels))
    names = [_short(label) for label in labels]
    axes.set(xlabel="answer", ylabel="truth", xticks=ticks, yticks=ticks)
    axes.set_title(_short(title), parse_math=False)
    axes.set_xticklabels(names, parse_math=False)
    axes.set_yticklabels(names, parse_math=False)
    _save(figure, path)


def plot_gallery(items: Sequence[tuple[Path, str, float]], path: Path, columns: int = 6) -> None:
    """Photographs with their answers as PNG.

    Args:
        items: Image file, label and its probability.
        path: File to write.
        columns: Photographs per row.
    """
    rows = -(-len(items) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows), layout="constrained")
    for axes, (image, label, probability) in zip(figure.subplots(rows, columns, squeeze=False).flat, items, strict=False):
        pixels = np.asarray(open_image(image.read_bytes()))  # the plotting library would make deep grey black
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)  # the range of deep grey; colour needs none
        axes.set_title(f"{_short(label)} {100 * probability:.0f} %", fontsize=8, parse_math=False)
    for axes in figure.axes:
        axes.set_axis_off()
    _save(figure, path)


def _short(name: str) -> str:
    """Names of folders may be longer than a picture is wide."""
    return name if len(name) <= 24 else name[:23] + "…"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, metadata={"Software": None})
