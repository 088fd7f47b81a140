"""A survey of a data set for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from training.console import STDOUT
from training.data_info import DuplicateSet, Survey

__all__ = ["print_survey"]

_SHOWN = 12


def print_survey(found: Survey) -> None:
    """Counts first, then whatever is wrong, the worst first."""
    labels = found.dataset.labels
    table = Table("", *(Column(Text(label)) for label in labels), "together")
    for part, counts in found.counts.items():
        table.add_row(part, *(str(counts[label]) for label in labels), str(sum(counts.values())))
    STDOUT.print(table)
    for title, counted in (("sizes", found.sizes), ("kinds", found.kinds)):
        shown = [f"{name} ({count})" for name, count in list(counted.items())[:_SHOWN]]
        more = f", and {len(counted) - _SHOWN} more" if len(counted) > _SHOWN else ""
        _line(f"{title}: {', '.join(shown)}{more}")
    if found.num_sources is not None:
        _line(f"sources: {found.num_sources}")
    _print_problems(found)


def _print_problems(found: Survey) -> None:
    equal, near = sum(item.repeated for item in found.duplicates), sum(item.kind == "near" for item in found.duplicates)
    _line(f"duplicates: sets of equal files: {equal}, sets that look the same: {near}")
    _list("broken files", [f"{name}: {message}" for name, message in found.broken.items()])
    if found.divided:
        _list("pairs on two sides of the split (leakage)", [f"{kind}: {one} = {other}" for kind, one, other in found.leaks])
    else:
        _line("leakage: not looked for; --split 70/15/15 does")
    _list("sets in two classes", [_members(item, item.classes) for item in found.conflicts])
    if found.num_sources is not None:
        _list("sets from different sources", [_members(item, item.sources) for item in found.across_sources])


def _members(item: DuplicateSet, notes: Sequence[str]) -> str:
    files = [f"{name} ({note})" for name, note in zip(item.files, notes, strict=True)]
    return f"{item.kind}: " + " = ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")


def _list(title: str, lines: Sequence[str]) -> None:
    _line(f"{title}: {len(lines) or 'none'}")
    for line in lines[:_SHOWN]:
        _line(f"  {line}")
    if len(lines) > _SHOWN:
        _line(f"  … {len(lines) - _SHOWN} more; --json lists all")


def _line(text: str) -> None:
    STDOUT.print(Text(text.encode(errors="replace").decode()), soft_wrap=True)
