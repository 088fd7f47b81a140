"""Beside the paper: does the hybrid reach its classical twin? Grouped splits, a new one for every seed, on one data set or more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from training.paper.outcomes import Outcome, summary
from training.paper.protocol import MAIN_SPLIT, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table, per_cent, twin_finding, twin_table
from training.paper.style import COLOURS, GREY, PAGE, accuracy_limits, in_style, new_figure, panel_letter, save, warn_of_random_weights

__all__ = ["NAME", "collect", "describe", "draw", "parts"]

NAME = "twin"
_SERIES = (
    ("accuracy", "hybrid", COLOURS[0], "o"),
    ("bottleneck_accuracy", "twin: tanh", GREY, "s"),
    ("linear_accuracy", "twin: linear", COLOURS[2], "^"),
)


def parts(protocol: Protocol) -> list[Part]:
    """One part per data set; every training has its own split."""
    return [_part(protocol, number) for number in range(len(protocol.twin_data))]


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Per data set: rows with McNemar's tests, means and paired differences."""
    sets: list[dict[str, Any]] = []
    for number, source in enumerate(protocol.twin_data):
        outcome = outcomes[_part(protocol, number).name]
        rows = outcome.rows()
        for row, result, data in zip(rows, outcome.results, outcome.data, strict=True):
            row["test_images"] = sum(data["counts"]["test"].values())
            row |= {f"mcnemar_p_{twin}": test["p_value"] for twin, test in result["mcnemar"].items()}
        sets.append({"name": source.name, "grouped": source.grouped, "rows": rows, "summary": summary(rows)})
    return {
        "sets": sets,
        "rows": [{"data": found["name"], **row} for found in sets for row in found["rows"]],
        "epochs": protocol.epochs,
        "batch_size": protocol.batch_size,
        "group_by": protocol.twin_group_by,
        "backbone": protocol.backbones[0],
        "random_weights": protocol.random_weights(protocol.backbones[0]),
        "trainings": protocol.twin_seeds,
    }


def draw(values: dict[str, Any], folder: Path) -> None:
    """Per data set: the accuracies of every split, joined by a line, of hybrid and twins."""
    with in_style():
        sets = values["sets"]
        figure = new_figure(min(PAGE, 1.1 + 2.3 * len(sets)), 2.5)
        for number, axes in enumerate(figure.subplots(1, len(sets), squeeze=False)[0]):
            found = sets[number]
            _lines(axes, found)
            axes.set_xticks(range(len(_SERIES)), [name.replace(": ", ":\n") for _, name, *_ in _SERIES])
            axes.set_xlim(-0.5, len(_SERIES) - 0.5)
            axes.tick_params(axis="x", length=0)
            axes.set_ylim(accuracy_limits(*axes.get_ylim()))
            axes.grid(axis="y")
            panel_letter(axes, "abcdefghij"[number % 10], found["name"])
            if not number:
                axes.set_ylabel("test accuracy in %")
        warn_of_random_weights(figure, values["backbone"], values["random_weights"])
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    random = " with random weights" if values["random_weights"] else ""
    loose = [found["name"] for found in values["sets"] if not found["grouped"]]
    warning = f" Of {', '.join(loose)} the photographs are not known: neighbouring patches may lie on both sides, and figures be too good."
    named = [(found["name"], found["summary"]) for found in values["sets"]]
    tests = tuple(
        (
            row["data"],
            str(row["seed"]),
            str(row["test_images"]),
            per_cent(row["accuracy"]),
            per_cent(row["bottleneck_accuracy"]),
            f"{row['mcnemar_p_bottleneck']:.2f}",
            per_cent(row["linear_accuracy"]),
            f"{row['mcnemar_p_linear']:.2f}",
        )
        for row in values["rows"]
    )
    header = ("data", "seed", "test images", "hybrid", "twin: tanh", "McNemar p", "twin: linear", "McNemar p")
    return Section(
        NAME,
        "Hybrid against classical twin",
        f"{values['backbone']}{random}, L = 1, exact simulator, batch {values['batch_size']}, {values['epochs']} epochs, split "
        f"{MAIN_SPLIT} grouped by {values['group_by']}, {values['trainings']} seeds, each with a split of its own. The twins see the "
        "same features, "
        "batches and number of steps, and their best epoch is chosen in the same way." + (warning if loose else ""),
        findings=(*(_finding(name, found) for name, found in named),),
        pictures=(
            Picture(
                NAME, "Test accuracy on every split (dots joined by a line) and its mean (bar) for the hybrid and its two classical twins."
            ),
        ),
        tables=(
            twin_table("Means over splits with 95 % intervals (Student's t), and paired differences", named),
            Table("Every split", header, tests),
        ),
        decisions=(
            "The hybrid counts as reaching its twin unless the whole 95 % interval of the paired difference lies below zero. An "
            "interval that holds zero says that these trainings do not tell the two apart, not that they are equal.",
        ),
    )


def _part(protocol: Protocol, number: int) -> Part:
    source = protocol.twin_data[number]
    options: dict[str, Any] = {
        "data": source.path,
        "group_by": protocol.twin_group_by,
        "split": MAIN_SPLIT,
        "split_seed": None,
        "diff_method": "backprop",
    }
    return protocol.part(f"twin-{number + 1}", f"hybrid and twins on {source.name}", range(protocol.twin_seeds), **options)


def _lines(axes: Axes, found: dict[str, Any]) -> None:
    """One line per split, the lines a little apart, so that equal accuracies stay visible; bars are means."""
    shifts = np.linspace(-0.14, 0.14, len(found["rows"])) if len(found["rows"]) > 1 else [0.0]
    for row, shift in zip(found["rows"], shifts, strict=True):
        places = [position + shift for position in range(len(_SERIES))]
        axes.plot(places, [100 * row[key] for key, *_ in _SERIES], color="#bbbbbb", linewidth=0.7, zorder=1)
        for place, (key, _, colour, marker) in zip(places, _SERIES, strict=True):
            axes.plot([place], [100 * row[key]], marker, color=colour, markersize=3.5, markeredgewidth=0)
    for position, (key, *_) in enumerate(_SERIES):
        axes.plot([position], [100 * found["summary"][key]["mean"]], "_", color="black", markersize=26, markeredgewidth=1.3)


def _finding(name: str, found: dict[str, Any]) -> Finding:
    return twin_finding(found, f"on {name}")
