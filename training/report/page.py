"""Fills the templates; everything that comes from outside is escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hqtl_common.durable import replace_file

__all__ = ["render", "svg_source", "write_page"]


def render(template: str, values: dict[str, Any]) -> str:
    """A page as HTML.

    Args:
        template: Name of a file in ``training/report/templates``.
        values: What it shows.
    """
    environment = Environment(
        loader=PackageLoader("training.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": _number, "thousands": _thousands, "seconds": _seconds}
    return environment.get_template(template).render(values)


def write_page(path: Path, html: str) -> Path:
    """Write a page in one step; a text that is no Unicode is written with replacement characters."""
    replace_file(path, html.encode("utf-8", "replace"))
    return path


def svg_source(svg: bytes) -> str:
    """An SVG as the ``src`` of an image element: drawn without scripts, and its identifiers stay its own."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"
