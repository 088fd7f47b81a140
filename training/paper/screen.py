"""A finished study on standard output."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from training.console import STDOUT
from training.paper.style import format_seconds

__all__ = ["print_study"]

_STYLES = {True: "green", False: "yellow", None: "dim"}


def print_study(result: dict[str, Any]) -> None:
    """Every finding with its verdict, and where the page is; ``result`` is that of :func:`training.paper.study.run_study`."""
    for item in result["items"].values():
        table = Table("here", "verdict", title=Text(item["title"], style="bold"), title_justify="left", box=None, pad_edge=False)
        for finding in item["findings"]:
            table.add_row(Text(finding["ours"]), Text(finding["verdict"], style=_STYLES[finding["agrees"]]))
        STDOUT.print(table)
        STDOUT.print(Text(f"{', '.join(item['files'])}\n", style="dim"))
    STDOUT.print(
        f"{format_seconds(result['seconds'])} ({format_seconds(result['cpu_seconds'])} of processor time); {result['page']}", markup=False
    )
