"""Do probabilities mean what they say? Figures of calibration, and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["NUM_BINS", "Bins", "bin_answers", "plot_reliability", "reliability_figures"]

F64 = NDArray[np.float64]

NUM_BINS = 15
_RESAMPLES = 1000
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"


@dataclass(frozen=True, slots=True)
class Bins:
    """Answers in bins of equal width from 0 to 1; empty bins are left out.

    Args:
        means: (K,) mean probability.
        shares: (K,) share that came true.
        counts: (K,) answers.
    """

    means: F64
    shares: F64
    counts: NDArray[np.intp]


def reliability_figures(probabilities: F64, truth: NDArray[np.intp], positive: int, seed: int = 0) -> dict[str, float]:
    """Loss and calibration of N answers, JSON-ready.

    ``nll`` is the mean negative log-likelihood. ``brier`` is the mean squared error of the positive class's probability with two
    classes, the sum over all classes with more (Brier 1950). ``ece`` is the expected calibration error in 15 bins of equal width
    (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599): of the positive class's probability with two classes, of the
    winner's with more. ``ece_low`` and ``ece_high`` are its 95 % interval over bootstrap samples of the answers. A finite sample
    has an error above zero even where every probability is right: ``ece_chance`` is the mean that then comes by chance, over
    outcomes drawn from the probabilities themselves (Bröcker and Smith 2007).

    Args:
        probabilities: (N, C).
        truth: (N,) positions of the true classes.
        positive: Position of the positive class.
        seed: Seed of the resampling.
    """
    stated, came_true = _stated(probabilities, truth, positive)
    rows, count = np.arange(len(truth)), len(truth)
    tiny = np.finfo(np.float64).tiny
    hits = np.zeros_like(probabilities)
    hits[rows, truth] = 1.0
    squares = (stated - came_true) ** 2 if probabilities.shape[1] == 2 else ((probabilities - hits) ** 2).sum(axis=1)
    places, rng = _places(stated), np.random.default_rng(seed)
    error = stated - came_true
    again = [_ece(places[pick], error[pick]) for pick in (rng.integers(0, count, count) for _ in range(_RESAMPLES))]
    chance = [_ece(places, stated - (rng.random(count) < stated)) for _ in range(_RESAMPLES)]
    return {
        "nll": float(-np.log(np.maximum(probabilities[rows, truth], tiny)).mean()),
        "brier": float(squares.mean()),
        "ece": _ece(places, error),
        "ece_low": float(np.quantile(again, 0.025)),
        "ece_high": float(np.quantile(again, 0.975)),
        "ece_chance": float(np.mean(chance)),
    }


def bin_answers(probabilities: F64, truth: NDArray[np.intp], positive: int) -> Bins:
    """The bins that the expected calibration error is summed over; arguments as in :func:`reliability_figures`."""
    stated, came_true = _stated(probabilities, truth, positive)
    places = _places(stated)
    counts = np.bincount(places, minlength=NUM_BINS)
    used = counts > 0
    means, shares = (np.bincount(places, weights=values, minlength=NUM_BINS)[used] / counts[used] for values in (stated, came_true))
    return Bins(means, shares, counts[used])


def plot_reliability(series: dict[str, F64], truth: NDArray[np.intp], labels: list[str], positive: int, path: Path) -> None:
    """A reliability diagram as PNG: what share came true for each probability stated, and how often each was stated.

    Args:
        series: Named probabilities (N, C) of the same answers, at most two; the last one is drawn with its intervals and counts.
        truth: (N,) positions of the true classes.
        labels: C names.
        positive: Position of the positive class.
        path: File to write.
    """
    figure = Figure(figsize=(4.8, 5.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1, label="as stated")
    for (name, probabilities), colour in zip(series.items(), (_ORANGE, _BLUE)[-len(series) :], strict=True):
        ece = reliability_figures(probabilities, truth, positive)["ece"]
        bins, last = bin_answers(probabilities, truth, positive), name == [*series][-1]
        sizes = 12 + 120 * bins.counts / bins.counts.max()
        axes.plot(bins.means, bins.shares, color=colour, linestyle="-" if last else "--", linewidth=0.8, alpha=0.6)
        axes.scatter(bins.means, bins.shares, sizes, color=colour, marker="o" if last else "s", label=f"{name} (ECE {ece:.3f})")
        if last:
            _draw_intervals(axes, bins, colour)
            centres = (np.minimum(np.floor(bins.means * NUM_BINS), NUM_BINS - 1) + 0.5) / NUM_BINS
            below.bar(centres, bins.counts, width=0.9 / NUM_BINS, color=colour, alpha=0.5)
    what = f"probability of {labels[positive]}" if len(labels) == 2 else "probability of the answer"
    axes.set(ylabel="share that came true", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    below.set(ylabel="images")
    below.set_xlabel(f"{what}, {len(truth)} images", parse_math=False)
    axes.set_title("area of a mark: images; lines: 95 % intervals", loc="left", fontsize=8, color=_GREY)
    axes.legend(frameon=False, fontsize=8, loc="lower right", markerscale=0.6)
    for part in (axes, below):
        part.spines[["top", "right"]].set_visible(False)
        part.grid(alpha=0.25)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw_intervals(axes: Axes, bins: Bins, colour: str) -> None:
    """95 % Wilson intervals of the shares."""
    hits = np.rint(bins.shares * bins.counts).astype(int)
    intervals = [binomtest(int(k), int(n)).proportion_ci(0.95, method="wilson") for k, n in zip(hits, bins.counts, strict=True)]
    axes.vlines(bins.means, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.4, linewidth=1)


def _stated(probabilities: F64, truth: NDArray[np.intp], positive: int) -> tuple[F64, F64]:
    """Probability and outcome (0 or 1) of what each answer states."""
    if probabilities.shape[1] == 2:
        return probabilities[:, positive], (truth == positive).astype(np.float64)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == truth).astype(np.float64)


def _places(stated: F64) -> NDArray[np.intp]:
    return np.minimum((stated * NUM_BINS).astype(np.intp), NUM_BINS - 1)


def _ece(places: NDArray[np.intp], error: F64) -> float:
    """Mean over all answers of the size of their bin's mean error."""
    return float(np.abs(np.bincount(places, weights=error, minlength=NUM_BINS)).sum() / len(error))
