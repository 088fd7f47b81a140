"""Table 3 and equation 9: how often the circuit is executed, by the paper's formula, by ours, and counted in real trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import FitConfig
from training.paper.known import PAPER_SPLITS
from training.paper.outcomes import Outcome
from training.paper.protocol import MAIN_SPLIT, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table
from training.paper.style import COLOURS, COLUMN, in_style, new_figure, save

__all__ = ["METHODS", "NAME", "Method", "collect", "describe", "draw", "paper_backward", "paper_calls", "parts"]

NAME = "table3"


@dataclass(frozen=True, slots=True)
class Method:
    """A gradient method.

    Args:
        name: As shown.
        options: Of the training.
        layers: L that is counted in real trainings.
        factor: The paper's evaluations per trained rotation in the backward pass; None where the paper has no such method.
        paper: The paper's total per image.
        ours: Ours, which counts the angles too, since pre_net is trained through them.
        per_image: Ours as a function of L and n.
    """

    name: str
    options: dict[str, Any]
    layers: tuple[int, ...]
    factor: int | None
    paper: str
    ours: str
    per_image: Callable[[int, int], int]


_ENDS = (1, 6)  # of the paper's range of L
METHODS: dict[str, Method] = {
    "backprop": Method("backpropagation", {"diff_method": "backprop"}, _ENDS, 0, "1", "1", lambda layers, n: 1),
    "finite-diff": Method(
        "finite-difference",
        {"diff_method": "finite-diff-forward"},
        _ENDS,
        1,
        "1 + Ln",
        "1 + (L+1)n",
        lambda layers, n: 1 + (layers + 1) * n,
    ),
    "parameter-shift": Method(
        "parameter-shift",
        {"diff_method": "parameter-shift"},
        _ENDS,
        2,
        "1 + 2Ln",
        "1 + 2(L+1)n",
        lambda layers, n: 1 + 2 * (layers + 1) * n,
    ),
    "lean-shift": Method("lean-shift", {"diff_method": "lean-shift"}, _ENDS, None, "–", "2 + 2Ln", lambda layers, n: 2 + 2 * layers * n),
    # on four qubits the commuting ansatz has generators for two layers
    "commuting": Method(
        "commuting ansatz",
        {"ansatz": "commuting", "diff_method": "commuting"},
        (1, 2),
        None,
        "–",
        "2 + 2⌊n/2⌋",
        lambda layers, n: 2 + n // 2 * 2,
    ),
}


def parts(protocol: Protocol) -> list[Part]:
    """One epoch of one training per method and L."""
    return [_part(protocol, key, layers) for key, method in METHODS.items() for layers in method.layers]


def paper_backward(factor: int, num_layers: int, num_qubits: int, images: int) -> int:
    """The paper's N_backward: ``factor`` executions per trained rotation and training image."""
    return factor * num_layers * num_qubits * images


def paper_calls(factor: int, num_layers: int, num_qubits: int, train: int, val: int) -> int:
    """The paper's equation 9: calls of an epoch, a forward pass of training and validation and a backward pass of training."""
    return train + val + paper_backward(factor, num_layers, num_qubits, train)


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Calls per image and per epoch for every method and L, and the paper's numbers for its own split."""
    rows = []
    for key in METHODS:
        for layers in METHODS[key].layers:
            outcome = outcomes[_part(protocol, key, layers).name]
            rows.append(_row(key, outcome.part.configs[0], outcome))
    train, val = (sum(PAPER_SPLITS[MAIN_SPLIT][part]) for part in (0, 1))
    equation = {key: paper_calls(method.factor, 1, 4, train, val) for key, method in METHODS.items() if method.factor is not None}
    drawn = {key: [method.per_image(layers, 4) for layers in _drawn(method)] for key, method in METHODS.items()}
    return {"rows": rows, "equation9": equation, "paper_train": train, "paper_val": val, "per_image": drawn}


def draw(values: dict[str, Any], folder: Path) -> None:
    """Executions per training image against L."""
    with in_style():
        figure = new_figure(COLUMN, 2.9)
        axes = figure.subplots()
        looks = zip((COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3], "#56b4e9"), "os^Dv", strict=True)
        for (key, calls), (colour, marker) in zip(values["per_image"].items(), looks, strict=False):
            layers = range(1, len(calls) + 1)
            axes.plot(layers, calls, color=colour, marker=marker, markersize=4, label=METHODS[key].name)
            factor = METHODS[key].factor
            if factor:
                paper = [1 + paper_backward(factor, count, 4, 1) for count in layers]
                axes.plot(layers, paper, color=colour, marker=marker, markersize=4, markerfacecolor="white", linestyle=":")
        axes.plot([], [], ":", color="black", marker="o", markersize=4, markerfacecolor="white", label="as the paper counts")
        axes.set(xlabel="number of variational layers L", ylabel="executions per training image", ylim=(0, None), xticks=range(1, 7))
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2)
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    formulas = tuple(
        (
            method.name,
            "N",
            "–" if method.factor is None else {0: "0", 1: "LnN", 2: "2LnN"}[method.factor],
            _times_n(method.paper),
            _times_n(method.ours),
        )
        for method in METHODS.values()
    )
    counted = tuple(
        (
            f"{METHODS[row['method']].name}, L = {row['num_layers']}",
            *(
                "–" if row[key] is None else f"{row[key]:,}"
                for key in ("paper_per_image", "per_image", "paper_per_epoch", "per_epoch", "counted")
            ),
        )
        for row in values["rows"]
    )
    row = values["rows"][0]
    return Section(
        NAME,
        "Table 3 and equation 9: calls of the circuit",
        f"Counted in one epoch on {row['train']} training and {row['val']} validation images, n = 4, one training per row.",
        findings=_findings(values),
        pictures=(
            Picture(
                NAME,
                "Executions per training image, forward and backward, for n = 4. Filled: with the angles, as trained here. Open: the "
                "paper's count.",
            ),
        ),
        tables=(
            Table("By formula, for N images", ("method", "forward", "backward (paper)", "total (paper)", "total (here)"), formulas),
            Table(
                "By formula and by count",
                ("method", "per image, paper", "per image, here", "per epoch, paper", "per epoch, here", "counted"),
                counted,
            ),
        ),
        decisions=(
            "The formulas of table 3 are lost in our text. Its sentences leave one reading: every training image needs L·n further "
            "evaluations with finite-difference and 2·L·n with parameter-shift, and none with backpropagation.",
            "Equation 9 is lost too. It is the number of calls per epoch from four quantities; taken as 856 training images, 184 "
            "validation images, n = 4 and L = 1 it gives 7,888 with parameter-shift (7,704 without the forward pass of validation).",
            "The paper counts the trained rotations only. The layer before the circuit learns too, and its gradient passes through the "
            "angles: n more parameters per image, which our count holds.",
        ),
    )


def _part(protocol: Protocol, key: str, layers: int) -> Part:
    title = f"one epoch to count calls: {METHODS[key].name}, L = {layers}"
    return protocol.part(f"calls-{key}-L{layers}", title, [0], **_options(key, layers))


def _options(key: str, layers: int) -> dict[str, Any]:
    return {"num_layers": layers, "split": MAIN_SPLIT, "epochs": 1, **METHODS[key].options}


def _times_n(per_image: str) -> str:
    """``1 + Ln`` → ``(1 + Ln) N``."""
    return {"1": "N", "–": "–"}.get(per_image, f"({per_image}) N")


def _drawn(method: Method) -> range:
    """1 to 6, the paper's range, as far as the ansatz goes."""
    return range(1, method.layers[-1] + 1)


def _row(key: str, config: FitConfig, outcome: Outcome) -> dict[str, Any]:
    counts = outcome.data[0]["counts"]
    train, val = (sum(counts[name].values()) for name in ("train", "val"))
    spec, factor = config.head_spec, METHODS[key].factor
    points = METHODS[key].per_image(spec.num_layers, spec.num_qubits)
    return {
        "method": key,
        "num_layers": spec.num_layers,
        "train": train,
        "val": val,
        "paper_per_image": None if factor is None else 1 + paper_backward(factor, spec.num_layers, spec.num_qubits, 1),
        "per_image": points,
        "paper_per_epoch": None if factor is None else paper_calls(factor, spec.num_layers, spec.num_qubits, train, val),
        "per_epoch": points * train + val,
        "counted": outcome.metrics[0]["parameter_sets"],
    }


def _findings(values: dict[str, Any]) -> tuple[Finding, ...]:
    exact = all(row["per_epoch"] == row["counted"] for row in values["rows"])
    equation = values["equation9"]
    shift = next(row for row in values["rows"] if row["method"] == "parameter-shift")
    return (
        Finding(
            "Equation 9: the calls of an epoch (the number itself is lost in our text).",
            f"Recomputed for {values['paper_train']} + {values['paper_val']} images at L = 1: "
            + ", ".join(f"{calls:,} with {METHODS[key].name}" for key, calls in equation.items())
            + ".",
            None,
        ),
        Finding(
            "Every training image yields L·n or 2·L·n additional evaluations.",
            f"With the gradient of the angles it is (L+1)·n and 2·(L+1)·n: {shift['per_image']} executions per image with "
            f"parameter-shift at L = 1 instead of {shift['paper_per_image']}. The executions counted in real trainings are "
            + ("those of our formula, one by one." if exact else "not those of our formula."),
            exact,
        ),
    )
