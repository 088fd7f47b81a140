"""Figure 6: test loss and accuracy of ten trainings for each of three gradient methods, with their training times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from training.paper.intervals import paired_difference
from training.paper.known import TABLE6_SECONDS
from training.paper.outcomes import Outcome, summary
from training.paper.protocol import MAIN_SPLIT, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table, points, twin_finding, twin_table, with_interval
from training.paper.style import (
    COLOURS,
    GREY,
    PAGE,
    accuracy_limits,
    boxes,
    format_seconds,
    in_style,
    new_figure,
    panel_letter,
    save,
    warn_of_random_weights,
)

__all__ = ["METHODS", "NAME", "collect", "describe", "draw", "parts"]

NAME = "figure6"
METHODS = {"backprop": "backprop", "finite-diff-forward": "finite-diff", "parameter-shift": "parameter-shift"}

_EASY = 0.98
_TOO_EASY = (
    " These images are told apart almost without an error, by the classical twins too: their accuracy cannot tell methods, devices or "
    "layers from one another, and only the losses can."
)


def parts(protocol: Protocol) -> list[Part]:
    """One part per method; all start from the same values and see the same images in the same order."""
    return [protocol.main_part(protocol.backbones[0], 1, method) for method in METHODS]


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The rows of every method, their means, and differences to backprop."""
    backbone = protocol.backbones[0]
    found = {method: outcomes[protocol.main_part(backbone, 1, method).name] for method in METHODS}
    rows = {method: outcome.rows() for method, outcome in found.items()}

    def to_backprop(figure: str) -> dict[str, dict[str, Any]]:
        sample = {method: [row[figure] for row in table] for method, table in rows.items()}
        return {method: paired_difference(sample[method], sample["backprop"]) for method in METHODS}

    return {
        "backbone": backbone,
        "random_weights": protocol.random_weights(backbone),
        "epochs": protocol.epochs,
        "batch_size": protocol.batch_size,
        "trainings": protocol.seeds,
        "counts": found["backprop"].data[0]["counts"],
        "rows": [{"method": method, **row} for method, table in rows.items() for row in table],
        "seconds": {method: outcome.times["seconds"] for method, outcome in found.items()},
        "cpu_seconds": {method: outcome.times["cpu_seconds"] for method, outcome in found.items()},
        "summary": {method: summary(table) for method, table in rows.items()},
        "to_backprop": to_backprop("accuracy"),
        "loss_to_backprop": to_backprop("loss"),
        "interval_of_one": found["backprop"].results[0]["test"]["accuracy_interval"],
    }


def draw(values: dict[str, Any], folder: Path) -> None:
    """Two panels of boxplots; the last box of each is the classical twin."""
    with in_style():
        figure = new_figure(PAGE, 2.7)
        left, right = figure.subplots(1, 2)
        _panel(left, values, "loss", 1.0)
        _panel(right, values, "accuracy", 100.0)
        panel_letter(left, "a", "test loss")
        panel_letter(right, "b", "test accuracy")
        left.set_ylabel("cross-entropy")
        right.set_ylabel("accuracy in %")
        right.set_ylim(accuracy_limits(*right.get_ylim()))
        warn_of_random_weights(figure, values["backbone"], values["random_weights"])
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    trainings, seconds = values["trainings"], values["seconds"]
    rows = tuple(
        (
            METHODS[method],
            with_interval(found["loss"], shares=False),
            with_interval(found["accuracy"]),
            format_seconds(seconds[method]),
            format_seconds(seconds[method] / trainings),
            format_seconds(values["cpu_seconds"][method]),
            format_seconds(TABLE6_SECONDS["resnet18"][0]) if method == "backprop" else "lost in our text; longer",
        )
        for method, found in values["summary"].items()
    )
    header = (
        "method",
        "test loss",
        "test accuracy",
        f"time of {trainings} at once",
        "time of one training",
        "processor time of all",
        "the paper's time of one",
    )
    results = Table("Means over seeds with 95 % intervals (Student's t)", header, rows)
    random = " (random weights)" if values["random_weights"] else ""
    return Section(
        NAME,
        "Figure 6: three gradient methods",
        f"{values['backbone']}{random}, L = 1, batch {values['batch_size']}, {values['epochs']} epochs, split {MAIN_SPLIT}, exact "
        f"simulator, {trainings} seeds on one split; the epoch with the smallest validation loss is tested. One training's test split "
        f"has {sum(values['counts']['test'].values())} images, so a single accuracy has the sampling interval "
        f"{100 * values['interval_of_one'][0]:.1f} to {100 * values['interval_of_one'][1]:.1f} % (Wilson), which the intervals over "
        "seeds below do not contain." + (_TOO_EASY if _is_easy(values) else ""),
        findings=_findings(values),
        pictures=(Picture(NAME, _caption(values)),),
        tables=(results, twin_table("Hybrid and classical twins, same features, seeds and batches", _named(values))),
        decisions=(
            "Epochs: 100, the number that section 5.4 gives for the simulated results. Batch size 4: that of the demonstration by Mari "
            "et al. 2020 on which the paper builds. Adam's step (4e-4, from the same source) and weight decay (2e-3) are this "
            "software's defaults.",
            "finite-diff is the forward difference of equation 6, with a step of 0.01 radians; the paper's step is lost.",
            "The paper's figure does not say which subset it shows; section 5.3 compares it with test figures, so the test split is "
            "shown here.",
            "All seeds of a method train as one batched program, so the time of one training is the batch's time divided by their number.",
        ),
    )


def _panel(axes: Axes, values: dict[str, Any], figure: str, scale: float) -> None:
    labels = []
    for position, (method, name) in enumerate(METHODS.items()):
        sample = [scale * row[figure] for row in values["rows"] if row["method"] == method]
        boxes(axes, [sample], [position], COLOURS[position], 0.5)
        labels.append(f"{name}\n{format_seconds(values['seconds'][method])}")
    twin = [scale * row[f"bottleneck_{figure}"] for row in values["rows"] if row["method"] == "backprop"]
    boxes(axes, [twin], [len(METHODS)], GREY, 0.5, "////")
    axes.set_xticks(range(len(METHODS) + 1), [*labels, "classical\ntwin"])
    axes.set_xlim(-0.6, len(METHODS) + 0.6)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")


def _is_easy(values: dict[str, Any]) -> bool:
    return all(found["accuracy"]["mean"] > _EASY for found in values["summary"].values())


def _caption(values: dict[str, Any]) -> str:
    return (
        f"Test loss (a) and test accuracy (b) of {values['trainings']} trainings per gradient method; boxes are quartiles, whiskers "
        f"reach 1.5 box lengths, dots are trainings. Below each name: the time of all {values['trainings']} trainings at once. The "
        "classical twin has a tanh layer where the hybrid has the circuit, and is trained on the same features and batches."
    )


def _named(values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(METHODS[method], found) for method, found in values["summary"].items()]


def _findings(values: dict[str, Any]) -> tuple[Finding, ...]:
    seconds = values["seconds"]
    ratio = {method: seconds[method] / seconds["backprop"] for method in METHODS}
    apart = [method for method, found in values["to_backprop"].items() if found["low"] is not None and found["low"] * found["high"] > 0]
    differences = ", ".join(
        f"{METHODS[method]} {points(found['mean'])}" for method, found in values["to_backprop"].items() if method != "backprop"
    )
    order = seconds["backprop"] < seconds["finite-diff-forward"] < seconds["parameter-shift"]
    agree = None if values["trainings"] < 2 else not apart
    losses = max(abs(found["mean"]) for found in values["loss_to_backprop"].values())
    words = "no interval lies on one side of zero" if not apart else f"apart from zero: {', '.join(METHODS[m] for m in apart)}"
    return (
        Finding(
            "The three methods yield similar results, up to slight differences in the variance.",
            f"Mean test accuracy against backprop, in points: {differences}; {words}. The mean test losses differ by at most {losses:.2g}.",
            agree,
        ),
        Finding(
            "Training takes much longer with finite-diff and longest with parameter-shift; with backprop 36 min 20 s (table 6, L = 1).",
            f"{values['trainings']} trainings at once take {format_seconds(seconds['backprop'])} with backprop, "
            f"{ratio['finite-diff-forward']:.1f} times that with finite-diff and {ratio['parameter-shift']:.1f} times with "
            "parameter-shift: all rows of a step are one execution here.",
            order,
        ),
        twin_finding(values["summary"]["backprop"], "with backprop"),
    )
