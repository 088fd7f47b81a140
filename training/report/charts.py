"""The charts of a page as SVG; text is drawn as outlines, so that a page looks the same everywhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn import metrics as sk

from training.metrics import wilson_interval
from training.reliability import bin_answers

__all__ = ["COLOURS", "curves_charts", "ranking_charts", "reliability_chart"]

COLOURS = {"hybrid": "#0072b2", "bottleneck": "#d55e00", "linear": "#009e73"}

_STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "hqtl", "font.size": 9, "axes.edgecolor": "#999999", "axes.linewidth": 0.8}
_NAMES = {"hybrid": "quantum head", "bottleneck": "classical twin", "linear": "linear twin"}

Scores = dict[str, NDArray[np.float64]]


@mpl.rc_context(_STYLE)
def curves_charts(metrics: Sequence[dict[str, Any]], best_epoch: int) -> list[bytes]:
    """Loss, and validation accuracy, per epoch.

    Args:
        metrics: Lines of metrics.jsonl.
        best_epoch: Marked.
    """
    epochs = [line["epoch"] for line in metrics]
    marker = "o" if len(epochs) == 1 else None
    left, right = _axes(4.0, 2.7), _axes(4.0, 2.7)
    left.plot(epochs, [line["train_loss"] for line in metrics], color="#56b4e9", marker=marker, label="training")
    left.plot(epochs, [line["val_loss"] for line in metrics], color=COLOURS["hybrid"], marker=marker, label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(epochs, [100 * line["val_accuracy"] for line in metrics], color=COLOURS["hybrid"], marker=marker)
    right.set(xlabel="epoch", ylabel="validation accuracy in %")
    for axes in (left, right):
        axes.axvline(best_epoch, color="#666666", linestyle=":", lw=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    late = 2 * best_epoch > epochs[0] + epochs[-1]
    place: Any = {"xytext": (-4 if late else 4, 4), "textcoords": "offset points", "ha": "right" if late else "left"}
    right.annotate(f"best: {best_epoch}", (best_epoch, 0), xycoords=("data", "axes fraction"), **place)
    return [_svg(left), _svg(right)]


@mpl.rc_context(_STYLE)
def ranking_charts(positives: NDArray[np.bool_], scores: Scores) -> list[bytes]:
    """ROC, and precision over recall, of the hybrid and its twins.

    Args:
        positives: (N,) truth, both kinds present.
        scores: (N,) probabilities of the positive class by contender.
    """
    left, right = _axes(4.0, 3.9), _axes(4.0, 3.9)
    left.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls="--")
    right.axhline(positives.mean(), color="#bbbbbb", lw=0.8, ls="--")
    for name, values in scores.items():
        false, true, _ = sk.roc_curve(positives, values)
        average = sk.average_precision_score(positives, values)
        precision, recall, _ = sk.precision_recall_curve(positives, values)
        style: Any = {"color": COLOURS[name], "lw": 1.8 if name == "hybrid" else 1.1, "zorder": 3 if name == "hybrid" else 2}
        left.plot(false, true, label=f"{_NAMES[name]}, area {sk.auc(false, true):.3f}", **style)
        right.step(recall, precision, where="post", label=f"{_NAMES[name]}, mean {average:.3f}", **style)
    left.set(xlabel="false alarm rate", ylabel="recall", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision over recall")
    left.legend(frameon=False, loc="lower right")
    right.legend(frameon=False, loc="lower left")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), aspect="equal")
    return [_svg(left), _svg(right)]


@mpl.rc_context(_STYLE)
def reliability_chart(series: dict[str, NDArray[np.float64]], truth: NDArray[np.intp], positive: int) -> bytes:
    """What share came true for each probability stated, the last series with 95 % Wilson intervals and its number of answers.

    Args:
        series: Probabilities (N, C) of the same answers by name, at most two.
        truth: (N,) positions of the true classes.
        positive: Position of the positive class.
    """
    figure = _figure(3.9, 4.1)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls="--")
    for (name, probabilities), colour in zip(series.items(), ("#e69f00", COLOURS["hybrid"])[-len(series) :], strict=True):
        bins = bin_answers(probabilities, truth, positive)
        upper.plot(bins.means, bins.shares, "o", ms=5, color=colour, mec="white", mew=0.5, label=name)
    intervals = [wilson_interval(round(share * count), int(count)) for share, count in zip(bins.shares, bins.counts, strict=True)]
    upper.vlines(bins.means, *zip(*intervals, strict=True), color=colour, lw=1, alpha=0.5)
    lower.bar(bins.means, bins.counts, width=0.045, color="#9ecae1")
    upper.set(ylabel="share that came true", ylim=(-0.03, 1.03))
    lower.set(xlabel="probability stated", ylabel="images", xlim=(-0.03, 1.03))
    upper.legend(frameon=False, loc="lower right", fontsize=8)
    for axes in (upper, lower):
        _clean(axes)
    return _svg(upper)


def _axes(width: float, height: float) -> Axes:
    axes = _figure(width, height).subplots()
    _clean(axes)
    return axes


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)


def _svg(axes: Axes) -> bytes:
    figure, buffer = axes.get_figure(root=True), io.BytesIO()
    assert figure is not None
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
