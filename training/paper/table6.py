"""Table 6: training times of two backbones for L = 1 … 6, from the trainings of figure 9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.paper import figure9
from training.paper.figure9 import backbone_name
from training.paper.intervals import slope_interval
from training.paper.known import TABLE6_SECONDS
from training.paper.outcomes import Outcome
from training.paper.protocol import Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table
from training.paper.style import COLOURS, COLUMN, duration_axis, format_seconds, in_style, new_figure, save

__all__ = ["NAME", "collect", "describe", "draw", "paper_seconds", "parts"]

NAME = "table6"
_MARKERS = ("o", "s", "^", "D")


def parts(protocol: Protocol) -> list[Part]:
    """Those of figure 9."""
    return figure9.parts(protocol)


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Times by backbone and L, ours and the paper's, and how straight the processor time grows."""
    rows = []
    for backbone in protocol.backbones:
        for layers in protocol.layers:
            times = outcomes[protocol.main_part(backbone, layers).name].times
            rows.append(
                {
                    "backbone": backbone,
                    "num_layers": layers,
                    "trainings": times["trainings"],
                    "seconds_together": times["seconds"],
                    "seconds_each": times["seconds"] / times["trainings"],
                    "cpu_seconds_together": times["cpu_seconds"],
                    "paper_seconds": paper_seconds(backbone, layers),
                }
            )
    lines = {backbone: _line(rows, backbone) for backbone in protocol.backbones}
    random = {backbone: protocol.random_weights(backbone) for backbone in protocol.backbones}
    return {"backbones": random, "layers": list(protocol.layers), "epochs": protocol.epochs, "rows": rows, "growth": lines}


def paper_seconds(backbone: str, layers: int) -> float | None:
    """The paper's time, None where its table has none."""
    known = TABLE6_SECONDS.get(backbone, ())
    return known[layers - 1] if layers <= len(known) else None


def draw(values: dict[str, Any], folder: Path) -> None:
    """Time of one training against L, ours and the paper's, on a logarithmic axis."""
    with in_style():
        figure = new_figure(COLUMN, 3.1)
        axes = figure.subplots()
        for number, backbone in enumerate(values["backbones"]):
            mine = [row for row in values["rows"] if row["backbone"] == backbone]
            look: dict[str, Any] = {"color": COLOURS[number], "marker": _MARKERS[number % 4], "markersize": 4}
            name = backbone_name(values, backbone)
            axes.plot(values["layers"], [row["seconds_each"] for row in mine], **look, label=f"{name}, here")
            if all(row["paper_seconds"] is not None for row in mine):
                paper = [row["paper_seconds"] for row in mine]
                short = backbone_name({"backbones": {backbone: False}}, backbone)
                axes.plot(values["layers"], paper, **look, linestyle=":", markerfacecolor="white", label=f"{short}, paper")
        axes.set(xlabel="number of variational layers L", ylabel="time of one training", yscale="log", xticks=values["layers"])
        duration_axis(axes.yaxis)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=1 if any(values["backbones"].values()) else 2)
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    header = ("time of one training", *(f"L = {layers}" for layers in values["layers"]))
    body = []
    for backbone in values["backbones"]:
        mine = [row for row in values["rows"] if row["backbone"] == backbone]
        name = backbone_name(values, backbone)
        body.append((f"{name}, here", *(format_seconds(row["seconds_each"]) for row in mine)))
        body.append((f"{name}, all {mine[0]['trainings']} at once", *(format_seconds(row["seconds_together"]) for row in mine)))
        body.append((f"{name}, processor time of all", *(format_seconds(row["cpu_seconds_together"]) for row in mine)))
        if all(row["paper_seconds"] is not None for row in mine):
            body.append(
                (
                    f"{backbone_name({'backbones': {backbone: False}}, backbone)}, paper",
                    *(format_seconds(row["paper_seconds"]) for row in mine),
                )
            )
            body.append(("faster by", *(f"{row['paper_seconds'] / row['seconds_each']:.0f} ×" for row in mine)))
    return Section(
        NAME,
        "Table 6: training times",
        f"Seconds spent in the {values['epochs']} epochs of the trainings of figure 9, validation after every epoch included, features "
        "not: they are computed once for all trainings, while the paper computes them again in every epoch. The paper used an Intel "
        "Xeon E5-2670.",
        findings=_findings(values),
        pictures=(
            Picture(NAME, "Time of one training against the number of layers, here (filled) and in the paper (open). Logarithmic axis."),
        ),
        tables=(Table("Training times, ours beside the paper's", header, tuple(body)),),
        decisions=(
            "Our time of one training is the time of the batch of all seeds divided by their number; both are given. Processor time "
            "does not depend on what else the machine does, and holds reading, measuring and drawing too.",
        ),
    )


def _line(rows: list[dict[str, Any]], backbone: str) -> dict[str, Any]:
    mine = [row for row in rows if row["backbone"] == backbone]
    return slope_interval([row["num_layers"] for row in mine], [row["cpu_seconds_together"] / row["trainings"] for row in mine])


def _findings(values: dict[str, Any]) -> tuple[Finding, ...]:
    each = [row["seconds_each"] for row in values["rows"]]
    found = [
        Finding(
            "One training takes from 36 min 20 s (ResNet18, L = 1) to 90 min 22 s (VGG16, L = 6).",
            f"Here from {format_seconds(min(each))} to {format_seconds(max(each))}, without computing features.",
            None,
        )
    ]
    growing = all(line["slope"] > 0 for line in values["growth"].values())
    straight = [line["r2"] for line in values["growth"].values() if line["r2"] is not None]
    if len(values["layers"]) > 2 and straight:
        words = "; ".join(
            f"{backbone_name(values, b)}: {line['slope']:+.2f} s of processor time per layer" for b, line in values["growth"].items()
        )
        found.append(
            Finding(
                "Training times grow linearly with the number of layers.",
                f"{words.replace('-', '−')}; a straight line explains {100 * min(straight):.0f} % of the variation or more.",
                growing and min(straight) > 0.9,
            )
        )
    backbones = list(values["backbones"])
    if len(backbones) == 2:
        total = [sum(row["seconds_each"] for row in values["rows"] if row["backbone"] == backbone) for backbone in backbones]
        found.append(
            Finding(
                "VGG16 takes longer to train than ResNet18: it is bigger, and its first linear layer has 4096 inputs instead of 512.",
                f"{backbone_name(values, backbones[1])} takes {total[1] / total[0]:.2f} times as long as "
                f"{backbone_name(values, backbones[0])}, without the backbone itself, whose features are cached.",
                total[1] > total[0],
            )
        )
    return tuple(found)
