"""Table 5: test loss, accuracy and training time at 4/4/92 on the paper's four devices, or on what stands in for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data import SPLIT_NAMES
from training.paper.intervals import paired_difference
from training.paper.known import TABLE5_SECONDS
from training.paper.outcomes import Outcome, summary
from training.paper.protocol import DEVICE_SPLIT, DEVICES, Part, Protocol
from training.paper.sections import Finding, Picture, Section, Table, per_cent, points, twin_finding, twin_table, with_interval
from training.paper.style import (
    COLOURS,
    GREY,
    PAGE,
    accuracy_limits,
    duration_axis,
    format_seconds,
    in_style,
    new_figure,
    panel_letter,
    save,
    warn_of_random_weights,
)
from training.plan import read_prices
from training.planning import plan_fit

__all__ = ["NAME", "collect", "describe", "draw", "parts"]

NAME = "table5"
_SIMULATOR, _QASM, _KOLKATA, _EHNINGEN = _NAMES = tuple(TABLE5_SECONDS)


def parts(protocol: Protocol) -> list[Part]:
    """One part per device, all with parameter-shift."""
    return [_part(protocol, name) for name in _NAMES]


def collect(protocol: Protocol, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Rows per device and training, means, times, and what the same training would cost on hardware today."""
    found = {name: outcomes[_part(protocol, name).name] for name in _NAMES}
    rows = {name: outcome.rows() for name, outcome in found.items()}
    accuracies = {name: [row["accuracy"] for row in table] for name, table in rows.items()}
    sampled = found[_KOLKATA].part.configs[0]
    counts = found[_KOLKATA].data[0]["counts"]
    plan = plan_fit(sampled, {name: sum(counts[name].values()) for name in SPLIT_NAMES}, read_prices())
    return {
        "epochs": protocol.device_epochs,
        "batch_size": protocol.batch_size,
        "shots": protocol.shots,
        "trainings": protocol.device_seeds,
        "backbone": protocol.backbones[0],
        "random_weights": protocol.random_weights(protocol.backbones[0]),
        "counts": counts,
        "rows": [{"device": name, "backend": DEVICES[name].backend, **row} for name, table in rows.items() for row in table],
        "seconds": {name: outcome.times["seconds"] for name, outcome in found.items()},
        "cpu_seconds": {name: outcome.times["cpu_seconds"] for name, outcome in found.items()},
        "summary": {name: summary(table) for name, table in rows.items()},
        "interval_of_one": {name: outcome.results[0]["test"]["accuracy_interval"] for name, outcome in found.items()},
        "to_simulator": {name: paired_difference(accuracies[name], accuracies[_SIMULATOR]) for name in _NAMES},
        "to_qasm": {name: paired_difference(accuracies[name], accuracies[_QASM]) for name in _NAMES},
        "plan": plan.to_dict(),
    }


def draw(values: dict[str, Any], folder: Path) -> None:
    """Accuracy with its trainings at the left, times beside the paper's at the right."""
    with in_style():
        figure = new_figure(PAGE, 2.6)
        left, right = figure.subplots(1, 2, sharey=True)
        trainings = values["trainings"]
        for position, name in enumerate(_NAMES):
            sample = [100 * row["accuracy"] for row in values["rows"] if row["device"] == name]
            twin = 100 * values["summary"][name]["bottleneck_accuracy"]["mean"]
            left.plot(sample, [position] * trainings, "o", color=COLOURS[0], markersize=4, label="one training" if not position else None)
            left.plot([sum(sample) / trainings], [position], "|", color="black", markersize=14, label="mean" if not position else None)
            left.plot([twin], [position], "x", color=GREY, markersize=5, label="classical twin (mean)" if not position else None)
            each = values["seconds"][name] / trainings
            right.plot([each], [position], "o", color=COLOURS[0], markersize=5, label="here, one training" if not position else None)
            paper = TABLE5_SECONDS[name]
            right.plot([paper], [position], "s", color=COLOURS[1], markersize=5, label="paper" if not position else None)
            right.plot([each, paper], [position, position], color=GREY, linewidth=0.7, zorder=1)
        left.set_yticks(range(len(_NAMES)), [f"{name}\n{DEVICES[name].label}" for name in _NAMES])
        left.set_ylim(len(_NAMES) - 0.5, -0.5)
        left.set_xlabel("test accuracy in %")
        left.set_xlim(accuracy_limits(*left.get_xlim()))
        right.set(xscale="log", xlabel="training time")
        duration_axis(right.xaxis)
        for axes in (left, right):
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.0, handletextpad=0.3)
        panel_letter(left, "a", "test accuracy")
        panel_letter(right, "b", "training time")
        warn_of_random_weights(figure, values["backbone"], values["random_weights"])
        save(figure, folder / NAME)


def describe(values: dict[str, Any]) -> Section:
    """The section of the page."""
    trainings = values["trainings"]
    rows = tuple(
        (
            DEVICES[name].shown,
            with_interval(values["summary"][name]["loss"], shares=False),
            with_interval(values["summary"][name]["accuracy"]),
            " to ".join(f"{100 * limit:.1f}" for limit in values["interval_of_one"][name]),
            with_interval(values["summary"][name]["bottleneck_accuracy"]),
            format_seconds(values["seconds"][name] / trainings),
            format_seconds(TABLE5_SECONDS[name]),
        )
        for name in _NAMES
    )
    header = (
        "device",
        "test loss",
        "test accuracy",
        "Wilson interval of seed 0, %",
        "classical twin",
        "time of one training",
        "the paper's time",
    )
    counts = {name: sum(values["counts"][name].values()) for name in SPLIT_NAMES}
    random = " with random weights" if values["random_weights"] else ""
    return Section(
        NAME,
        "Table 5: four devices",
        f"{values['backbone']}{random}, L = 1, parameter-shift, split {DEVICE_SPLIT} ({counts['train']} / {counts['val']} / "
        f"{counts['test']} images), batch {values['batch_size']}, {values['epochs']} epochs, {values['shots']} shots on the sampled "
        f"devices, {trainings} seeds on "
        "one split. " + " ".join(f"{name} {DEVICES[name].note}." for name in _NAMES),
        findings=_findings(values),
        pictures=(
            Picture(
                NAME,
                f"Test accuracy of {trainings} trainings per device (a) and the time of one training beside the paper's (b). "
                + _stand_ins(),
            ),
        ),
        tables=(
            Table("Loss and accuracy: means over seeds with 95 % intervals (Student's t)", header, rows),
            twin_table(
                "Hybrid and classical twins, same features, seeds and batches",
                [(DEVICES[name].shown, values["summary"][name]) for name in _NAMES],
            ),
        ),
        decisions=(
            f"Shots: 1024, the default of PennyLane's plugin for Qiskit. Epochs: {values['epochs']}; both numbers are lost in our text. "
            "The paper's losses and accuracies are lost too.",
            "One training per device in the paper; several here, because a single one on 49 images says little.",
        ),
    )


def _part(protocol: Protocol, name: str) -> Part:
    device = DEVICES[name]
    options = {
        "backend": device.backend,
        "shots": protocol.shots if device.sampled else None,
        "diff_method": "parameter-shift",
        "split": DEVICE_SPLIT,
        "epochs": protocol.device_epochs,
    }
    return protocol.part(f"device-{device.backend.replace(':', '-')}", device.shown, range(protocol.device_seeds), **options)


def _stand_ins() -> str:
    return "Stand-ins: " + ", ".join(f"{DEVICES[name].backend} for {name}" for name in _NAMES if DEVICES[name].sampled) + "."


def _findings(values: dict[str, Any]) -> tuple[Finding, ...]:
    accuracy = {name: values["summary"][name]["accuracy"]["mean"] for name in _NAMES}
    each = {name: values["seconds"][name] / values["trainings"] for name in _NAMES}
    factor = each[_QASM] / each[_SIMULATOR]
    machines = [values["to_qasm"][name] for name in (_KOLKATA, _EHNINGEN)]
    similar = None if machines[0]["low"] is None else all(found["low"] <= 0 <= found["high"] for found in machines)
    plan = values["plan"]
    return (
        Finding(
            "PennyLane's default simulator has a higher test accuracy than the other three.",
            f"{per_cent(accuracy[_SIMULATOR])} against "
            + ", ".join(f"{per_cent(accuracy[name])} on {DEVICES[name].shown}" for name in _NAMES[1:])
            + "."
            + _apart(values),
            _is_best(values),
        ),
        Finding(
            "The real backends yield results quite similar to qasm_simulator.",
            "Their stand-ins differ from qasm_simulator's by "
            + " and ".join(f"{points(values['to_qasm'][name]['mean'])} points ({DEVICES[name].backend})" for name in (_KOLKATA, _EHNINGEN))
            + " in the mean.",
            similar,
        ),
        Finding(
            "qasm_simulator takes around six times as long as the default simulator (12 min 05 s against 2 min 26 s, a factor of 5.0).",
            f"Here {format_seconds(each[_QASM])} against {format_seconds(each[_SIMULATOR])}, a factor of {factor:.1f}.",
            2 < factor < 20,
        ),
        Finding(
            "17 h 01 min 30 s on ibmq_kolkata and 16 h 45 min 28 s on ibmq_ehningen, mostly waiting in the queue.",
            f"The stand-ins take {format_seconds(each[_KOLKATA])} and {format_seconds(each[_EHNINGEN])} and have no queue. One job per "
            f"step on today's hardware: {plan['jobs']:,} jobs with {plan['parameter_sets']:,} parameter sets, an estimated "
            f"{format_seconds(plan['qpu_seconds'])} of QPU time and {format_seconds(plan['wall_seconds'])} at least with the rate of "
            "submission, queue not counted (`hqtl-train plan`).",
            None,
        ),
        twin_finding(values["summary"][_KOLKATA], "on fake_kolkata"),
    )


def _is_best(values: dict[str, Any]) -> bool | None:
    """True if the simulator is clear of all others, False if another is clear of it, else None."""
    found = [values["to_simulator"][name] for name in _NAMES[1:]]
    if any(difference["low"] is None for difference in found):
        return None
    if any(difference["low"] > 0 for difference in found):
        return False
    return True if all(difference["high"] < 0 for difference in found) else None


def _apart(values: dict[str, Any]) -> str:
    found = values["to_simulator"]
    clear = [name for name in _NAMES[1:] if found[name]["high"] is not None and found[name]["high"] < 0]
    if not clear:
        return " No difference is clear of its interval."
    return f" Clear of its interval: {', '.join(DEVICES[name].shown for name in clear)}."
