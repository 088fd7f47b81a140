"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hqtl_common.preprocess import open_image

__all__ = ["plot_confusion", "plot_curves", "plot_gallery"]

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"  # told apart by colour-blind readers too


def plot_curves(metrics: Sequence[dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Loss and accuracy per epoch as PNG.

    Args:
        metrics: Lines of metrics.jsonl.
        best_epoch: Marked by a vertical line.
        path: File to write.
    """
    epochs = [line["epoch"] for line in metrics]
    marker = "o" if len(epochs) == 1 else None  # a line needs two points
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line["train_loss"] for line in metrics], color=_BLUE, marker=marker, label="training")
    left.plot(epochs, [line["val_loss"] for line in metrics], color=_ORANGE, marker=marker, label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    right.plot(epochs, [100 * line["val_accuracy"] for line in metrics], color=_ORANGE, marker=marker, label="validation")
    right.set(xlabel="epoch", ylabel="accuracy in %")
    for axes in (left, right):
        axes.axvline(best_epoch, color=_GREY, linestyle=":", label=f"best epoch ({best_epoch})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    _save(figure, path)


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
