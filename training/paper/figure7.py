"""Figure 7: the confusion matrix after one epoch on ibmq_lima's stand-in at 70/15/15, and the images it gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hqtl_common.classifier import softmax
from hqtl_common.preprocess import open_image
from training.data import SPLIT_NAMES
from training.paper.known import LIMA
from training.paper.outcomes import Outcome
from training.paper.protocol import DEVICES, MAIN_SPLIT, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table, per_cent
from training.paper.style import PAGE, format_seconds, in_style, new_figure, panel_letter, save, warn_of_random_weights
from training.paper.table3 import paper_calls
from training.plan import read_prices
from training.planning import plan_fit

__all__ = ["NAME", "collect", "describe", "draw", "parts"]

NAME = "figure7"
_LIMA = DEVICES["ibmq_lima"]
_LISTED = 20  # wrong answers on the page; the CSV has all
_SHOWN = 4  # images of each kind; the paper shows its four false positives


def parts(protocol: Protocol) -> list[Part]:
    """A single training of one epoch."""
    return [_part(protocol)]


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Confusion matrices of the hybrid and its twin, the wrong answers, and the executions by equation 9, by plan and counted."""
    outcome = outcomes[_part(protocol).name]
    result, data, config = outcome.results[0], outcome.data[0], outcome.part.configs[0]
    images = {name: sum(data["counts"][name].values()) for name in SPLIT_NAMES}
    plan = plan_fit(config, images, read_prices())
    return {
        "data": str(protocol.data),
        "labels": data["labels"],
        "positive": result["positive"],
        "shots": protocol.shots,
        "batch_size": protocol.batch_size,
        "backbone": protocol.backbones[0],
        "random_weights": protocol.random_weights(protocol.backbones[0]),
        "images": images,
        "test": result["test"],
        "twins": {twin: figures["test"] for twin, figures in result["twins"].items()},
        "seconds": outcome.times["seconds"],
        "rows": _mistakes(outcome, data["labels"], result["positive"]),
        "counted": outcome.metrics[0]["parameter_sets"],
        "equation9": paper_calls(2, 1, 4, images["train"], images["val"]),
        "plan": plan.to_dict(),
    }


def draw(values: dict[str, Any], folder: Path) -> None:
    """The matrix at the left, the most certain mistakes of each kind at the right."""
    with in_style():
        figure = new_figure(PAGE, 2.9)
        parts_of_figure: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.75), wspace=0.02)
        left, right = parts_of_figure
        axes = left.subplots()
        _matrix(axes, values)
        panel_letter(axes, "a", f"test split, {_LIMA.label}")
        rows = right.subfigures(2, 1)
        for row, (kind, letter) in zip(rows, (("false positive", "b"), ("false negative", "c")), strict=True):
            _gallery(row, [item for item in values["rows"] if item["kind"] == kind], Path(values["data"]), letter, kind)
        warn_of_random_weights(figure, values["backbone"], values["random_weights"])
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    test, twin = values["test"], values["twins"]["bottleneck"]
    counts = _counts(values)
    random = " with random weights" if values["random_weights"] else ""
    wrong = tuple((item["path"], item["kind"], per_cent(item["probability"])) for item in values["rows"][:_LISTED])
    more = f"; {len(values['rows']) - _LISTED} more in figure7.csv" if len(values["rows"]) > _LISTED else ""
    figures = tuple(
        (
            name,
            per_cent(found["accuracy"]),
            " to ".join(f"{100 * limit:.1f}" for limit in found["accuracy_interval"]),
            f"{found['loss']:.3f}",
        )
        for name, found in (("hybrid", test), ("twin: Linear to 4, tanh, Linear", twin), ("twin: one Linear", values["twins"]["linear"]))
    )
    return Section(
        NAME,
        "Figure 7: one epoch on ibmq_lima",
        f"{values['backbone']}{random}, L = 1, parameter-shift, split {MAIN_SPLIT}, one epoch, batch {values['batch_size']}, "
        f"{values['shots']} shots, seed 0, on {_LIMA.backend}. {_LIMA.name} {_LIMA.note}.",
        findings=_findings(values, counts),
        pictures=(
            Picture(
                NAME,
                f"Confusion matrix of the test split after one epoch on {_LIMA.backend}, the stand-in for {_LIMA.name} (a), and the most "
                f"certain false positives (b) and false negatives (c) with the probability given to {values['positive']}.",
            ),
        ),
        tables=(
            Table("After one epoch, hybrid and classical twins", ("", "test accuracy", "Wilson interval, %", "test loss"), figures),
            Table(f"Wrong answers, with the probability of {values['positive']}{more}", ("image", "kind", "probability"), wrong),
        ),
        decisions=(
            "Batch size and shots as in the other items; the paper does not give them here. Its accuracy and most of its matrix are "
            "lost in our text.",
            "The paper says four false positives; whether its positive class is the crack is not said. Here it is.",
        ),
    )


def _part(protocol: Protocol) -> Part:
    options = {"backend": _LIMA.backend, "shots": protocol.shots, "diff_method": "parameter-shift", "split": MAIN_SPLIT, "epochs": 1}
    return protocol.part("lima", f"one epoch on {_LIMA.shown}", [0], **options)


def _mistakes(outcome: Outcome, labels: Sequence[str], positive: str) -> list[dict[str, Any]]:
    """Wrong answers, the most certain first; with more than two classes only those that involve the positive one."""
    found = outcome.predictions["test"]
    index = list(labels).index(positive)
    probabilities = softmax(np.asarray(found["logits"]["hybrid"], dtype=np.float64))
    truth = np.asarray(found["truth"])
    answered = probabilities[:, index] >= 0.5 if len(labels) == 2 else probabilities.argmax(1) == index
    wrong = np.flatnonzero(answered != (truth == index))
    items = [
        {
            "path": found["paths"][position],
            "kind": "false positive" if answered[position] else "false negative",
            "probability": float(probabilities[position, index]),
        }
        for position in wrong
    ]
    return sorted(items, key=lambda item: (item["kind"], -abs(item["probability"] - 0.5), item["path"]))


def _counts(values: dict[str, Any]) -> dict[str, int]:
    kinds = [item["kind"] for item in values["rows"]]
    return {kind: kinds.count(kind) for kind in ("false positive", "false negative")}


def _plural(counts: dict[str, int], kind: str) -> str:
    return f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}"


def _matrix(axes: Axes, values: dict[str, Any]) -> None:
    counts = np.asarray(values["test"]["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{100 * shares[row, column]:.1f} %", ha="center", va="center", color=colour)
    names = [_short(label) for label in values["labels"]]
    axes.set(xlabel="answer", ylabel="truth", xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, parse_math=False)
    axes.set_yticklabels(names, parse_math=False, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _gallery(part: Any, items: Sequence[dict[str, Any]], data: Path, letter: str, kind: str) -> None:
    row = part.subplots(1, _SHOWN)
    shown = min(len(items), _SHOWN)
    total = _plural({kind: len(items)}, kind)
    title = total if shown == len(items) else f"{total}, the {shown} most certain"
    part.suptitle(f"({letter}) {title}", x=0.01, ha="left", fontsize=8)
    for axes, item in zip(row, items, strict=False):
        axes.imshow(np.asarray(open_image((data / item["path"]).read_bytes())), cmap="gray", vmin=0, vmax=1)
        axes.text(0.5, -0.04, f"{100 * item['probability']:.0f} %", transform=axes.transAxes, ha="center", va="top", fontsize=7)
    for axes in row:
        axes.set_axis_off()
    if not items:
        row[0].text(0.0, 0.5, "none", transform=row[0].transAxes, va="center")


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _findings(values: dict[str, Any], counts: dict[str, int]) -> tuple[Finding, ...]:
    test, twin, plan = values["test"], values["twins"]["bottleneck"], values["plan"]
    low, high = test["accuracy_interval"]
    each = LIMA["execution_seconds"] / 7888
    return (
        Finding(
            "After one epoch the test performance is comparable to the simulated one after 100 epochs, with four false positives.",
            f"{per_cent(test['accuracy'])} ({100 * low:.1f} to {100 * high:.1f}, Wilson) after one epoch, with "
            f"{_plural(counts, 'false positive')} and {_plural(counts, 'false negative')}; figure 6 has the simulated figures.",
            None,
        ),
        Finding(
            "One epoch takes 4 days 6 h 30 min, of which 4 h are execution.",
            f"By equation 9 an epoch on these images needs {values['equation9']:,} calls (7,888 for the paper's 856 + 184, so {each:.1f} "
            f"s each); with the gradient of the angles {values['counted']:,} were counted. The stand-in takes "
            f"{format_seconds(values['seconds'])}; on today's hardware with one job per step an estimated "
            f"{format_seconds(plan['qpu_seconds'])} of QPU time in {plan['jobs']:,} jobs, queue not counted.",
            None,
        ),
        Finding(
            "The paper trains no classical head beside the hybrid one.",
            f"After the same epoch the classical twin has {per_cent(twin['accuracy'])} and the hybrid {per_cent(test['accuracy'])}: one "
            "training, so no interval.",
            None,
        ),
    )
