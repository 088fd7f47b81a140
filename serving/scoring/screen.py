"""The summary of a run as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.scoring.folder import Outcome
from serving.scoring.state import CSV, JSONL, SUMMARY

__all__ = ["print_summary", "printable"]

_KINDS = {
    "hidden": "hidden",
    "links": "symbolic links",
    "other_files": "other files",
    "output_folders": "the output folder",
    "special": "pipes, sockets or devices",
    "unreadable_folders": "folders that cannot be read",
}


def print_summary(outcome: Outcome, console: Console) -> None:
    """Counts, files and what to look at first, as a short table."""
    summary = outcome.summary
    table = Table(show_header=False, title="Scores" if outcome.complete else "Scores so far", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, count in summary["labels"].items():
        table.add_row(Text(printable(label)), f"{count:,}")
    table.add_row("errors", _errors(outcome))
    table.add_row("doubtful", _doubtful(outcome))
    if summary["skipped"]:
        table.add_row("not scored", ", ".join(f"{count:,} {_KINDS.get(kind, kind)}" for kind, count in summary["skipped"].items()))
    table.add_row("images", _images(outcome))
    table.add_row("backend", ", ".join(dict.fromkeys(map(_backend, summary["executions"]))) or "not used")
    names = (CSV, JSONL, SUMMARY) if outcome.complete else (CSV, JSONL)
    table.add_row("files", Text("\n".join(printable(str(outcome.out / name)) for name in names)))
    console.print(table)


def printable(name: str) -> str:
    """A name that a terminal can show: control characters and bytes that are not UTF-8 are escaped."""
    return name if name.isprintable() else "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _images(outcome: Outcome) -> str:
    new = outcome.done - outcome.resumed_at
    rate = f", {outcome.rate:,.1f} per second in this run" if new else ", all of them by an earlier run" if outcome.done else ""
    return f"{outcome.done:,} of {outcome.summary['images']:,}{rate}"


def _errors(outcome: Outcome) -> Text:
    errors = outcome.summary["errors"]
    total = sum(errors.values())
    if not total:
        return Text("0")
    kinds = ", ".join(f"{count:,} {code}" for code, count in errors.items())
    return Text("\n".join([f"{total:,} ({kinds}), first ones:", *(printable(path) for path in outcome.failed)]), style="red")


def _doubtful(outcome: Outcome) -> Text:
    if not outcome.summary["doubtful"]:
        return Text("0")
    names = [printable(path) for _, path in outcome.review]
    return Text("\n".join([f"{outcome.summary['doubtful']:,} close to another label, look first at:", *names]), style="yellow")


def _backend(execution: dict[str, Any]) -> str:
    if execution["shots"] is None:
        return f"{execution['backend_used']} (exact)"
    options, shots = execution["options"], f"{execution['shots']:,}"
    if "max_shots" in options:
        shots += f" to {options['max_shots']:,}"
    text = f"{execution['backend_used']} ({shots} shots)"
    return f"{text}: {options['executions']:,} executions, {options['undecided']:,} undecided" if "undecided" in options else text
