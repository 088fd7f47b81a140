"""The summary of a run as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.scoring.outcome import Outcome
from serving.scoring.state import SUMMARY

__all__ = ["print_summary", "printable"]

_KINDS = {
    "excluded": "excluded",
    "hidden": "hidden",
    "links": "symbolic links",
    "other_files": "other files",
    "other_shards": "in other shards",
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
    table.add_row("unfamiliar", _unfamiliar(outcome))
    if summary["skipped"]:
        table.add_row("not scored", ", ".join(f"{count:,} {_KINDS.get(kind, kind)}" for kind, count in summary["skipped"].items()))
    if "parts" in summary:
        parts = ", ".join(f"{count:,} {kind}{'s' if count != 1 else ''}" for kind, count in summary["parts"].items())
        table.add_row("in files", f"{parts} among the images of {summary['files']:,} file{'s' if summary['files'] != 1 else ''}")
    if "tiles" in summary:
        table.add_row("tiles", Text(", ".join(f"{count:,} {printable(label)}" for label, count in summary["tiles"].items())))
    if summary["duplicates"]:
        table.add_row("duplicates", f"{summary['duplicates']:,} with the bytes of an earlier file; each has its answer")
    truth = summary.get("truth") or {}
    for what in ("images", "tiles"):
        if (figures := truth.get(what)) is not None:
            table.add_row(f"truth of {what}", _truth(figures))
    if truth.get("without_truth"):
        lines = [f"{truth['without_truth']:,} answers have no counterpart there", *map(printable, truth["problems"])]
        table.add_row("without truth", Text("\n".join(lines), style="yellow"))
    table.add_row("images", _images(outcome))
    table.add_row("backend", ", ".join(dict.fromkeys(map(_backend, summary["executions"]))) or "not used")
    table.add_row("calibration", ", ".join(summary["calibration"]) or "not used")
    names = outcome.files if outcome.complete else [name for name in outcome.files if name != SUMMARY]
    table.add_row("files", Text("\n".join(printable(str(outcome.out / name)) for name in names)))
    console.print(table)


def printable(name: str) -> str:
    """A name that a terminal can show: control characters and bytes that are not UTF-8 are escaped."""
    return name if name.isprintable() else "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _images(outcome: Outcome) -> str:
    new = outcome.done - outcome.resumed_at
    rate = (
        f", {outcome.rate:,.{1 if outcome.rate >= 1 else 3}f} per second in this run"
        if new
        else ", all of them by an earlier run"
        if outcome.done
        else ""
    )
    return f"{outcome.done:,} of {outcome.summary['images']:,}{rate}"


def _truth(figures: dict[str, Any]) -> str:
    """Precision, recall and F1 with their intervals."""
    shown = []
    for name, title in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        value, interval = figures[name]["value"], figures[name]["interval"]
        shown.append(f"{title} –" if value is None else f"{title} {value:.3f} ({interval[0]:.3f} – {interval[1]:.3f})")
    return f"{', '.join(shown)}; {figures['tp']:,} found, {figures['fn']:,} missed, {figures['fp']:,} false alarms"


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


def _unfamiliar(outcome: Outcome) -> Text:
    count = outcome.summary["unfamiliar"]
    if not count:
        return Text("not known: the bundle holds no reference" if count is None else "0")
    names = [printable(path) for _, path in outcome.strangers]
    return Text("\n".join([f"{count:,} unlike the training images, the least familiar first:", *names]), style="yellow")


def _backend(execution: dict[str, Any]) -> str:
    if execution["shots"] is None:
        return f"{execution['backend_used']} (exact)"
    options, shots = execution["options"], f"{execution['shots']:,}"
    if "max_shots" in options:
        shots += f" to {options['max_shots']:,}"
    text = f"{execution['backend_used']} ({shots} shots)"
    return f"{text}: {options['executions']:,} executions, {options['undecided']:,} undecided" if "undecided" in options else text
