"""What the page shows of an answer, as HTML that a browser would take."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from hqtl_common import HeadSpec
from hqtl_common.backends.costs import estimated_qpu_seconds
from hqtl_common.circuit import operations
from serving.ui.view import draw_circuit, show_answer, show_job, show_map, show_problem


def answer(**changes: Any) -> dict[str, Any]:
    prediction = {
        "label": "crack<script>",
        "probability": 0.8125,
        "interval": [0.75, 0.9],
        "expvals": [0.5, -0.25, 0.0, 1.0],
        "expval_stds": [0.1, 0.1, 0.1, 0.1],
        "review": [],
        **changes,
    }
    shots = None if prediction["interval"] is None else 400
    execution = {"backend_used": "aer", "reason": None, "shots": shots, "calibration": None, "qpu_seconds": 0.0}
    return {"predictions": [prediction], "execution": execution}


def test_a_sampled_answer_with_its_interval_and_error_bars() -> None:
    page = show_answer(answer())
    assert "crack&lt;script&gt; <b>81.2 %</b>" in page
    assert "between 75.0 % and 90.0 %" in page
    assert len(re.findall('class="hq-bar"', page)) == len(re.findall('class="hq-error"', page)) == 4
    bar = re.search(r'<rect x="([\d.]+)" y="5" width="([\d.]+)"', page.split("⟨Z1⟩")[1])
    assert bar is not None
    assert (float(bar[1]), float(bar[2])) == (75.0, 25.0)  # from −0.25 to 0, on 200 pixels from −1 to 1
    assert f"400 shots: about {estimated_qpu_seconds(1, 400):.1f} QPU seconds" in page
    assert "M180.4" in page.split("⟨Z3⟩")[1]
    assert "H200" in page.split("⟨Z3⟩")[1]  # an interval ends where ⟨Z⟩ does


def test_an_exact_answer_has_no_bars_of_error() -> None:
    page = show_answer(answer(interval=None, expval_stds=None))
    assert "exact: no shot noise" in page
    assert "hq-error" not in page
    assert "1,000 are assumed" in page


def test_doubt_is_said() -> None:
    assert "A person should look at it: unfamiliar, interval" in show_answer(answer(review=["unfamiliar", "interval"]))


@pytest.mark.parametrize("state", ["waiting", "done"])
def test_a_job(state: str) -> None:
    job = {
        "id": "j<1>",
        "state": state,
        "backend_used": None,
        "backend_requested": "ibm:ibm_fez",
        "images": 1,
        "estimate": {"jobs": 1, "executions": 4000, "qpu_seconds": 3.0},
        "qpu_seconds": 2.5 if state == "done" else 3.0,
        "position": 2 if state == "waiting" else None,
        "created": "2026-01-01T00:00:00Z",
        "reason": None,
        "error": None,
        "answer": answer() if state == "done" else None,
    }
    page = show_job(job)
    assert "j&lt;1&gt;" in page
    assert ("2 jobs" in page) == (state == "waiting")
    assert (">2.5 QPU seconds" if state == "done" else ">about 3.0 QPU seconds") in page
    assert ("81.2 %" in page) == (state == "done")


def test_several_images_are_shown_one_after_the_other() -> None:
    first, second = answer(filename="a<b>.jpg"), answer(filename="c.jpg", probability=0.25, interval=None, expval_stds=None)
    page = show_answer({**first, "predictions": first["predictions"] + second["predictions"]})
    assert page.index("a&lt;b&gt;.jpg") < page.index("81.2 %") < page.index("c.jpg") < page.index("25.0 %")
    assert "on hardware" not in page, "what one image would cost says nothing of a job of several"


def test_problems_and_maps() -> None:
    assert "a &lt;b&gt; &amp; c" in show_problem("a <b> & c")
    assert 'src="data:image/png;base64,AAE="' in show_map(b"\0\1")


@pytest.mark.parametrize(
    "spec",
    [
        HeadSpec(),
        HeadSpec(num_layers=3, entangler="all_to_all"),
        HeadSpec(num_qubits=3, embedding="amplitude"),
        HeadSpec(ansatz="commuting"),
    ],
    ids=str,
)
def test_every_gate_of_the_circuit_is_drawn_and_none_over_another(spec: HeadSpec) -> None:
    drawn = draw_circuit(spec)
    root = ElementTree.fromstring(drawn)
    gates = list(operations(spec))
    words = [text.text for text in root.iter("text")]
    assert len([word for word in words if word and word.startswith(("H", "R"))]) == sum(gate.gate != "cx" for gate in gates)
    assert len(list(root.iter("circle"))) == 2 * sum(gate.gate == "cx" for gate in gates)
    boxes = [(rect.get("x"), rect.get("y")) for rect in root.iter("rect")]
    assert len(set(boxes)) == len(boxes)
    assert sum(f"w{index}" in word for word in words if word for index in (spec.num_weights - 1,)) >= 1
