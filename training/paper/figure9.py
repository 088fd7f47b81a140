"""Figure 9 and table 6: two backbones and L = 1 … 6, test loss and accuracy of ten trainings each, and the training times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from training.paper.intervals import paired_difference, slope_interval
from training.paper.outcomes import Outcome, summary
from training.paper.protocol import MAIN_SPLIT, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table, points, twin_finding, twin_table, with_interval
from training.paper.style import COLOURS, PAGE, accuracy_limits, boxes, in_style, new_figure, panel_letter, save

__all__ = ["NAME", "backbone_name", "collect", "describe", "draw", "parts"]

NAME = "figure9"
_NAMES = {"resnet18": "ResNet18", "vgg16": "VGG16"}
_HATCHES = ("", "////", "....", "xxxx")


def parts(protocol: Protocol) -> list[Part]:
    """One part per backbone and L."""
    return [protocol.main_part(backbone, layers) for backbone in protocol.backbones for layers in protocol.layers]


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The rows of every combination, times, means, and what L and the backbone change."""
    rows, times = [], []
    for backbone in protocol.backbones:
        for layers in protocol.layers:
            outcome = outcomes[protocol.main_part(backbone, layers).name]
            key = {"backbone": backbone, "num_layers": layers}
            rows += [{**key, **row} for row in outcome.rows()]
            times.append({**key, **{name: outcome.times[name] for name in ("seconds", "cpu_seconds", "trainings")}})
    return {
        "backbones": {backbone: protocol.random_weights(backbone) for backbone in protocol.backbones},
        "layers": list(protocol.layers),
        "epochs": protocol.epochs,
        "batch_size": protocol.batch_size,
        "trainings": protocol.seeds,
        "rows": rows,
        "times": times,
        "summary": [
            {"backbone": backbone, "num_layers": layers, **summary(_rows(rows, backbone, layers))}
            for backbone in protocol.backbones
            for layers in protocol.layers
        ],
        "per_layer": {backbone: _slope(rows, backbone) for backbone in protocol.backbones},
        "between_backbones": _between(rows, protocol.backbones),
    }


def draw(values: dict[str, Any], folder: Path) -> None:
    """Two panels: boxes side by side for the backbones, for every L."""
    with in_style():
        figure = new_figure(PAGE, 3.0)
        left, right = figure.subplots(1, 2)
        handles = _panel(left, values, "loss", 1.0)
        _panel(right, values, "accuracy", 100.0)
        panel_letter(left, "a", "test loss")
        panel_letter(right, "b", "test accuracy")
        left.set_ylabel("cross-entropy")
        right.set_ylabel("accuracy in %")
        right.set_ylim(accuracy_limits(*right.get_ylim()))
        figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=len(handles))
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    found = {(row["backbone"], row["num_layers"]): row for row in values["summary"]}
    rows = tuple(
        (backbone_name(values, backbone), *(with_interval(found[backbone, layers]["accuracy"]) for layers in values["layers"]))
        for backbone in values["backbones"]
    )
    header = ("test accuracy", *(f"L = {layers}" for layers in values["layers"]))
    named = [
        (f"{backbone_name(values, backbone)}, L = {layers}", found[backbone, layers])
        for backbone in values["backbones"]
        for layers in values["layers"]
    ]
    return Section(
        NAME,
        "Figure 9: the backbone and the number of layers",
        f"{' and '.join(backbone_name(values, backbone) for backbone in values['backbones'])}, L = {values['layers'][0]} to "
        f"{values['layers'][-1]}, batch {values['batch_size']}, {values['epochs']} epochs, split {MAIN_SPLIT}, exact simulator with "
        f"backprop, {values['trainings']} seeds on one split. The features of VGG16 are the 4096 "
        "values before its last layer, those of ResNet18 are 512.",
        findings=_findings(values),
        pictures=(Picture(NAME, _caption(values)),),
        tables=(
            Table("Means over seeds with 95 % intervals (Student's t)", header, rows),
            twin_table("Hybrid and classical twins, same features, seeds and batches", named),
        ),
        decisions=(
            "The paper gives no epochs for this figure; the time of its ResNet18 at L = 1 is the one of figure 6, so these are the same "
            "trainings.",
        ),
    )


def backbone_name(values: dict[str, Any], backbone: str) -> str:
    """The backbone as the paper writes it, with ``(random weights)`` where they are."""
    name = _NAMES.get(backbone, backbone)
    return f"{name} (random weights)" if values["backbones"][backbone] else name


def _rows(rows: Sequence[dict[str, Any]], backbone: str, layers: int | None = None) -> list[dict[str, Any]]:
    return [row for row in rows if row["backbone"] == backbone and layers in (None, row["num_layers"])]


def _slope(rows: Sequence[dict[str, Any]], backbone: str) -> dict[str, Any]:
    mine = _rows(rows, backbone)
    return slope_interval([row["num_layers"] for row in mine], [row["accuracy"] for row in mine])


def _between(rows: Sequence[dict[str, Any]], backbones: Sequence[str]) -> dict[str, Any] | None:
    if len(backbones) != 2:
        return None
    first, second = (sorted(_rows(rows, backbone), key=lambda row: (row["num_layers"], row["seed"])) for backbone in backbones)
    return paired_difference([row["accuracy"] for row in second], [row["accuracy"] for row in first])


def _panel(axes: Axes, values: dict[str, Any], figure: str, scale: float) -> list[tuple[Any, str]]:
    backbones, layers = list(values["backbones"]), values["layers"]
    width = 0.8 / len(backbones)
    handles: list[tuple[Any, str]] = []
    for number, backbone in enumerate(backbones):
        samples = [[scale * row[figure] for row in _rows(values["rows"], backbone, count)] for count in layers]
        places = [position + (number - (len(backbones) - 1) / 2) * width for position in range(len(layers))]
        handles.append((boxes(axes, samples, places, COLOURS[number], 0.8 * width, _HATCHES[number % 4]), backbone_name(values, backbone)))
        twins = [scale * row["bottleneck_" + figure]["mean"] for row in values["summary"] if row["backbone"] == backbone]
        (marks,) = axes.plot(places, twins, "D", color="white", markeredgecolor="black", markersize=4, markeredgewidth=0.8, zorder=4)
    handles.append((marks, "mean of the classical twin"))
    axes.set_xticks(range(len(layers)), [str(count) for count in layers])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("number of variational layers L")
    axes.grid(axis="y")
    return handles


def _caption(values: dict[str, Any]) -> str:
    random = [backbone_name(values, backbone) for backbone, is_random in values["backbones"].items() if is_random]
    warning = (
        f" {' and '.join(random)}: ImageNet weights could not be had, so its figures say nothing about that network's features."
        if random
        else ""
    )
    return (
        f"Test loss (a) and test accuracy (b) of {values['trainings']} trainings for every number of layers; boxes are quartiles, dots "
        f"are trainings, diamonds the mean of the classical twin on the same features.{warning}"
    )


def _findings(values: dict[str, Any]) -> tuple[Finding, ...]:
    first = next(iter(values["backbones"]))
    found = [
        Finding(
            "More variational layers bring a minimal improvement, and not automatically.",
            "; ".join(f"{backbone_name(values, backbone)}: {_per_layer(values['per_layer'][backbone])}" for backbone in values["backbones"])
            + ".",
            _minimal(values["per_layer"][first]),
        )
    ]
    if (between := values["between_backbones"]) is not None:
        second = list(values["backbones"])[1]
        found.append(
            Finding(
                "Changing the classical network affects the results slightly.",
                f"{backbone_name(values, second)} minus {backbone_name(values, first)}: {points(between['mean'])} points of test "
                "accuracy in the mean" + ("; random features are no fair comparison." if any(values["backbones"].values()) else "."),
                None if any(values["backbones"].values()) else abs(between["mean"]) < 0.03,
            )
        )
    lowest = next(row for row in values["summary"] if row["backbone"] == first)
    return (*found, twin_finding(lowest, f"at L = {lowest['num_layers']} on {backbone_name(values, first)}"))


def _minimal(slope: dict[str, Any]) -> bool | None:
    """Less than a point of accuracy per layer either way."""
    return None if slope["low"] is None else abs(slope["slope"]) < 0.01


def _per_layer(slope: dict[str, Any]) -> str:
    limits = "" if slope["low"] is None else f" ({points(slope['low'])} to {points(slope['high'])})"
    return f"{points(slope['slope'])}{limits} points per layer"
