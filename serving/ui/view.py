"""What a route of the service answered → a piece of HTML; texts are escaped, pictures are drawn as SVG."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from hqtl_common.backends.costs import estimated_qpu_seconds
from hqtl_common.circuit import operations
from hqtl_common.specs import HeadSpec

__all__ = ["draw_circuit", "show_answer", "show_job", "show_map", "show_problem"]

_Z95 = 1.959963984540054
_STEP, _LINE = 62, 44  # of the drawing, in pixels
_LETTERS = {"angles": "θ", "weights": "w"}
_HARDWARE_SHOTS = 1000  # assumed where the answer is exact


def show_answer(answer: Mapping[str, Any]) -> str:
    """The answer of ``POST /v1/predict``; of several images one after the other, by their names."""
    predictions = answer["predictions"]
    return "".join(_show_image(prediction, answer["execution"], alone=len(predictions) == 1) for prediction in predictions)


def _show_image(prediction: Mapping[str, Any], execution: Mapping[str, Any], *, alone: bool) -> str:
    stds = prediction["expval_stds"] or [0.0] * len(prediction["expvals"])
    bars = [_bar(index, value, std) for index, (value, std) in enumerate(zip(prediction["expvals"], stds, strict=True))]
    shots = prediction.get("shots_used") or execution["shots"]
    cost = {"shots": shots or _HARDWARE_SHOTS, "seconds": estimated_qpu_seconds(1, shots or _HARDWARE_SHOTS), "assumed": shots is None}
    shown = {"prediction": prediction, "execution": execution, "bars": bars, "sampled": stds != [0.0] * len(stds), "cost": cost}
    return _render("answer.html.j2", **shown, alone=alone)


def show_map(picture: bytes) -> str:
    """The PNG of ``POST /v1/inspect``."""
    return _render("map.html.j2", picture=base64.b64encode(picture).decode())


def show_job(job: Mapping[str, Any]) -> str:
    """A job of ``GET /v1/jobs/{id}``, with its answer once it is there."""
    return _render("job.html.j2", job=job) + (show_answer(job["answer"]) if job["answer"] else "")


def show_problem(message: str, request_id: str | None = None) -> str:
    """An error."""
    return _render("problem.html.j2", message=message, request_id=request_id)


def draw_circuit(spec: HeadSpec) -> str:
    """The head as SVG, gate by gate."""
    free = [0] * spec.num_qubits  # the next free column of each qubit
    gates = []
    for one in operations(spec):
        low, high = min(one.qubits), max(one.qubits)
        column = max(free[low : high + 1])
        free[low : high + 1] = [column + 1] * (high - low + 1)
        x, ends = 40 + _STEP * column + _STEP // 2, [_LINE // 2 + _LINE * qubit for qubit in one.qubits]
        word = one.gate.upper() + (f" {_LETTERS[one.source]}{one.index}" if one.source else "")
        gates.append({"kind": one.gate, "x": x, "lines": ends, "text": word})
    width = 40 + _STEP * (max(free) + 1)
    lines = [{"y": _LINE // 2 + _LINE * qubit, "name": f"q{qubit}"} for qubit in range(spec.num_qubits)]
    return _render("circuit.svg.j2", width=width, height=_LINE * spec.num_qubits, lines=lines, gates=gates)


def _bar(index: int, value: float, std: float) -> dict[str, float]:
    """One ⟨Z⟩ on an axis of 200 pixels from −1 to 1."""
    low, high = (100 + 100 * max(-1.0, min(1.0, value + sign * _Z95 * std)) for sign in (-1, 1))
    end = 100 + 100 * value
    return {"index": index, "value": value, "std": std, "x": min(100, end), "width": abs(end - 100), "low": low, "high": high}


def _render(template: str, **values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("serving.ui").joinpath(template).read_text("utf-8")).render(**values)
