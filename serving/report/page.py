"""One self-contained HTML page about a run: everything inside, nothing fetched, of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.bundle import ModelBundle
from serving.report.heatmaps import SCALE
from serving.report.results import name_of
from serving.report.selection import BINS, OF_FILE, Choice, Place, Selected
from serving.scoring.screen import printable

__all__ = ["Illustration", "render_page"]


def render_page(
    summary: dict[str, Any], bundle: ModelBundle, selected: Selected, illustrate: Callable[[Choice], Illustration], misses: str | None
) -> str:
    """The page as text.

    Args:
        summary: Of the run.
        bundle: The model.
        selected: What the page shows.
        illustrate: Gives the pictures of an image.
        misses: The picture of the misses as a data address; None without.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "count": lambda value: f"{value:,}",
        "name": printable,
        "number": _number,
        "title": lambda row: printable(name_of(row)),
        "address": lambda row: _address(Path(summary["folder"]), row),
    }
    worst = [(choice, illustrate(choice)) for choice in selected.ordered(selected.worst)]
    return environment.get_template("inspection.html.j2").render(
        summary=summary,
        options=summary["options"],
        manifest=bundle.manifest,
        head=bundle.head,
        positive=bundle.manifest.positive_label,
        worst=worst,
        review=selected.ordered(selected.review),
        selected=selected,
        bars=_bars(selected.histogram),
        misses=misses,
        scale=SCALE,
        of_file=OF_FILE,
        failures=sum(summary["errors"].values()),
        cost={name: sum(item[name] for item in summary["executions"]) for name in ("num_jobs", "num_rows", "qpu_seconds")},
        sampled=any(item["shots"] for item in summary["executions"]),
    )


@dataclass(frozen=True, slots=True)
class Illustration:
    """Pictures of one image, as data addresses.

    Args:
        whole: The image, with its map where it has one; None where it cannot be read.
        close: Its worst places, each with its picture.
    """

    whole: str | None
    close: list[tuple[Place, str]]


def _address(folder: Path, row: dict[str, Any]) -> str:
    """Where the file of a row lies; browsers begin a video at its frame."""
    return (folder / str(row["path"])).as_uri() + (f"#t={row['time_s']:g}" if row.get("time_s") else "")


def _percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent; what is not quite all or nothing is not rounded to it."""
    if share is None:
        return "–"
    text = f"{100 * share:.{digits}f}\u00a0%"
    if text == f"{100:.{digits}f}\u00a0%" and share < 1:
        return f"> {100 - 10**-digits:.{digits}f}\u00a0%"
    return f"< {10**-digits:.{digits}f}\u00a0%" if text == f"{0:.{digits}f}\u00a0%" and share > 0 else text


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _bars(histogram: list[int]) -> list[dict[str, float]]:
    """Bars of the histogram, heights 0 to 100 on a square-root scale so that single images stay visible."""
    highest = max(1, *histogram)
    return [{"from": index / BINS, "count": count, "height": 100 * math.sqrt(count / highest)} for index, count in enumerate(histogram)]
