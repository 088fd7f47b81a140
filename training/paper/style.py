"""How the pictures look: sizes of a journal's columns, one type size, colours that colour-blind readers tell apart too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

__all__ = [
    "COLOURS",
    "COLUMN",
    "FORMATS",
    "GREY",
    "PAGE",
    "accuracy_limits",
    "boxes",
    "duration_axis",
    "format_seconds",
    "in_style",
    "new_figure",
    "panel_letter",
    "save",
    "warn_of_random_weights",
]

COLUMN, PAGE = 3.5, 7.2  # widths in inches: one column, both
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito 2008
GREY = "#8c8c8c"
FORMATS = ("png", "pdf", "svg")
_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#d9d9d9",
    "legend.frameon": False,
    "svg.hashsalt": "hqtl",
    "pdf.fonttype": 42,
}
_DPI = 300
_LEAST_SPAN = 4.0
_DURATIONS = (
    (0.01, "10 ms"),
    (0.1, "0.1 s"),
    (1, "1 s"),
    (10, "10 s"),
    (60, "1 min"),
    (600, "10 min"),
    (3600, "1 h"),
    (36000, "10 h"),
    (86400 * 4, "4 d"),
)
_DATELESS: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


@contextmanager
def in_style() -> Iterator[None]:
    """The settings below ``with``; everybody else's stay as they are."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that keeps its parts apart."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.png``, ``stem.pdf`` and ``stem.svg``; the same bytes for the same picture."""
    for kind in FORMATS:
        figure.savefig(stem.with_suffix(f".{kind}"), dpi=_DPI, metadata=_DATELESS[kind])


def panel_letter(axes: Axes, letter: str, title: str) -> None:
    """``(a) title`` above a panel, at its left."""
    axes.set_title(f"({letter}) {title}", loc="left", parse_math=False)


def warn_of_random_weights(figure: Figure, backbone: str, random: bool) -> None:
    """Say on the picture itself, above its right edge, that the backbone has random weights."""
    if random:
        figure.suptitle(f"{backbone} with random weights", x=0.995, ha="right", fontsize=8, fontweight="bold", color=COLOURS[1])


def boxes(axes: Axes, samples: Sequence[Sequence[float]], positions: Sequence[float], colour: str, width: float, hatch: str = "") -> Artist:
    """Boxplots with every value as a dot, and a patch for the legend.

    The box is the quartiles, its line the median, whiskers reach the last value within 1.5 of its length.

    Args:
        axes: Where.
        samples: One sequence of values per box.
        positions: Their places on the x axis.
        colour: Of edges and dots; the box is a lighter tone of it.
        width: Of a box.
        hatch: matplotlib's pattern, so that the boxes differ without colour too.
    """
    lines = {"color": colour, "linewidth": 0.9}
    drawn = axes.boxplot(
        [list(sample) for sample in samples],
        positions=list(positions),
        widths=width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        boxprops={"facecolor": _lighter(colour), "edgecolor": colour, "linewidth": 0.9, "hatch": hatch},
        whiskerprops=lines,
        capprops=lines,
        medianprops={"color": "black", "linewidth": 1.3, "solid_capstyle": "butt"},
    )
    rng = np.random.default_rng(0)
    for sample, position in zip(samples, positions, strict=True):
        spread = rng.uniform(-0.22, 0.22, len(sample)) * width
        axes.plot(position + spread, sample, "o", markersize=2.2, color=colour, markeredgewidth=0, alpha=0.8, zorder=3)
    for box in drawn["boxes"]:
        box.set_zorder(2)
    return Patch(facecolor=_lighter(colour), edgecolor=colour, hatch=hatch, linewidth=0.9)


def accuracy_limits(low: float, high: float) -> tuple[float, float]:
    """Limits in percent of an axis that would reach from ``low`` to ``high``: never far above 100, and at least four points apart."""
    middle, half = (low + high) / 2, max(high - low, _LEAST_SPAN) / 2
    top = min(middle + half, 100 + 0.1 * half)
    return max(0.0, min(low, top - 2 * half)), top


def duration_axis(axis: Axis) -> None:
    """Ticks of a logarithmic axis of seconds at round durations."""
    axis.set_major_locator(FixedLocator([seconds for seconds, _ in _DURATIONS]))
    axis.set_major_formatter(FixedFormatter([name for _, name in _DURATIONS]))
    axis.set_minor_locator(NullLocator())


def format_seconds(seconds: float) -> str:
    """A duration as the paper writes it: ``2 min 26 s``, ``17 h 01 min 30 s``; below a minute with a decimal, ``8.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s"


def _lighter(colour: str) -> tuple[float, float, float]:
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return (0.72 + 0.28 * red, 0.72 + 0.28 * green, 0.72 + 0.28 * blue)
