"""Costs are counted as the engine incurs them: per image, per training, per job."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends.costs import MAX_EXECUTIONS, estimated_qpu_seconds
from hqtl_common.backends.mitigation import mitigation_of
from hqtl_common.errors import CapabilityError, ConfigError
from hqtl_common.records import Evaluation
from hqtl_common.shifts import finite_diff, parameter_shift
from training.config import FitConfig
from training.head import ShiftHead, make_head
from training.model import build_model
from training.plan import PRICES, Counts, Plan, cost_of, evaluate_counts, fit_counts, points_per_image, read_prices
from training.planning import plan_answers, plan_training
from training.runs import RunFolder
from training.stack import make_lineup
from training.trainer import Trainer, TrainingData

METHODS = ("backprop", "parameter-shift", "lean-shift", "finite-diff", "finite-diff-forward", "spsa")
SPECS = st.builds(HeadSpec, num_qubits=st.integers(2, 4), num_layers=st.integers(1, 3))
FEATURES = 3


@given(spec=SPECS)
def test_points_per_image_are_those_of_the_papers_table_3(spec: HeadSpec) -> None:
    """One forward pass and a backward pass of 0, P or 2·P evaluations; the paper's P is n·L, ours with the angles n·L + n."""
    for angles, count in ((False, spec.num_qubits * spec.num_layers), (True, spec.num_qubits * (spec.num_layers + 1))):
        assert points_per_image(spec, "backprop", angles=angles) == points_per_image(spec, "adjoint", angles=angles) == 1
        assert points_per_image(spec, "parameter-shift", angles=angles) == 1 + 2 * count == parameter_shift(count).num_points
        assert points_per_image(spec, "finite-diff", angles=angles) == 1 + 2 * count == finite_diff(count).num_points  # central
        assert points_per_image(spec, "spsa", angles=angles) == 3
        assert finite_diff(count, central=False).num_points == 1 + count  # the paper's own, forward
    assert points_per_image(spec, "parameter-shift") == points_per_image(spec, "parameter-shift", angles=True)


def test_the_papers_own_numbers() -> None:
    """4 qubits, L = 1: N = 1 + 2·4 with the parameter-shift rule, and 912 = 57 · 16 with the angles of a batch of 16."""
    assert points_per_image(HeadSpec(), "parameter-shift", angles=False) == 9
    assert 16 * points_per_image(HeadSpec(num_layers=6), "parameter-shift") == 16 * 57 == 912


class Counting:
    """A backend that keeps the number of rows of every call."""

    OPTIONS = frozenset[str]()

    def __init__(self, shots: int | None) -> None:
        self._inner = get_backend("statevector", shots=shots, seed=0)
        self.name, self.shots, self.seed = "statevector", shots, 0
        self.calls: list[int] = []

    def run(self, spec: HeadSpec, weights: NDArray[Any], angles: NDArray[Any], *, stream: int = 0) -> Evaluation:
        self.calls.append(len(angles))
        return self._inner.run(spec, weights, angles, stream=stream)

    def close(self) -> None:
        self._inner.close()


@settings(max_examples=25)
@given(
    spec=SPECS,
    method=st.sampled_from(METHODS),
    sizes=st.tuples(st.integers(1, 13), st.integers(1, 5), st.integers(1, 5)),
    batch_size=st.integers(1, 14),
    epochs=st.integers(1, 3),
    shots=st.sampled_from([None, 1, 16]),
)
@example(HeadSpec(), "parameter-shift", (12, 3, 2), 4, 2, 16)
@example(HeadSpec(), "spsa", (13, 3, 2), 4, 2, 16)
def test_a_training_costs_what_was_planned(
    tmp_path_factory: pytest.TempPathFactory,
    spec: HeadSpec,
    method: str,
    sizes: tuple[int, int, int],
    batch_size: int,
    epochs: int,
    shots: int | None,
) -> None:
    if method == "backprop":
        shots = None
    images = dict(zip(("train", "val", "test"), sizes, strict=True))
    rng = torch.Generator().manual_seed(0)
    data = {name: (torch.rand(n, FEATURES, generator=rng), torch.arange(n) % 2) for name, n in images.items()}
    model, counting = build_model(FEATURES, 2, spec), Counting(shots)
    weights = model.head.weights[None]
    head = make_head(spec, weights) if method == "backprop" else ShiftHead(spec, weights, counting, method)
    lineup = make_lineup([model], head, [0])
    config = FitConfig(data=Path("none"), batch_size=batch_size, epochs=epochs, num_layers=spec.num_layers)
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    run.start(config)
    Trainer(lineup, [config], [run]).train([TrainingData(data["train"], data["val"])], lambda reports: None)
    with torch.no_grad():  # the final figures
        for name in ("val", "test"):
            lineup(data[name][0][None])
    planned = fit_counts(spec, method, images, batch_size=batch_size, epochs=epochs, shots=shots)
    assert planned == Counts(head.num_jobs, head.num_rows)
    if method != "backprop":
        assert planned == Counts(len(counting.calls), sum(counting.calls))


@pytest.mark.parametrize(("method", "shots"), [("auto", None), ("spsa", 8), ("parameter-shift", 8)])
def test_a_whole_fit_costs_what_was_planned(method: str, shots: int | None, train: Any, photographs: Path, tmp_path: Path) -> None:
    options = {"epochs": 2, "batch_size": 5, "diff_method": method, "shots": shots}
    result = train(tmp_path / "run", **options)
    plan = plan_training(FitConfig.parse({"data": photographs, "weights": "none", **options}))["as given"]
    assert (plan.counts.jobs, plan.counts.parameter_sets) == (result["jobs"], result["parameter_sets"])
    assert plan.executions == (shots or 0) * result["parameter_sets"]


@given(rows=st.integers(0, 10**6), shots=st.integers(1, MAX_EXECUTIONS))
@example(rows=5, shots=MAX_EXECUTIONS)
@example(rows=10, shots=1_000_000)
@example(rows=11, shots=1_000_000)
@example(rows=3, shots=6_000_000)
def test_a_call_is_split_at_the_platforms_limit(rows: int, shots: int) -> None:
    counts = evaluate_counts(rows, shots)
    assert counts.parameter_sets == rows
    rows_of_a_job = math.ceil(rows / counts.jobs) if counts.jobs else 0
    assert rows_of_a_job * shots <= MAX_EXECUTIONS
    assert counts.jobs == 0 or (counts.jobs - 1) * (MAX_EXECUTIONS // shots) < rows, "no more jobs than needed"


def test_the_split_is_that_of_every_call_and_not_of_the_sum() -> None:
    images = {"train": 8, "val": 3, "test": 0}
    counts = fit_counts(HeadSpec(), "parameter-shift", images, batch_size=4, epochs=2, shots=1_000_000)
    # a step has 4 · 17 rows and a job at most 10; a validation has 3 rows; there is nothing to test
    assert counts == Counts(2 * (2 * 7 + 1) + 1, 2 * (8 * 17 + 3) + 3)


@given(rows=st.integers(1, 10**4), shots=st.integers(1, 10**4), zne=st.sampled_from([None, (1, 3), (1, 3, 5)]), readout=st.booleans())
def test_mitigation_is_counted_as_a_machine_splits_it(rows: int, shots: int, zne: tuple[int, ...] | None, readout: bool) -> None:
    from hqtl_common.backends.hardware import HardwareBackend

    mitigation = mitigation_of(shots, "readout" if readout else None, None, zne)
    machine = types.SimpleNamespace(_mitigation=mitigation, shots=shots)
    rows_of_a_job = HardwareBackend._rows_of_a_job(machine)  # type: ignore[arg-type]
    parts = [min(rows_of_a_job, rows - start) for start in range(0, rows, rows_of_a_job)]
    counts = evaluate_counts(rows, shots, None, mitigation)
    plan = cost_of(counts, shots, {}, mitigation)
    assert counts == Counts(len(parts), rows)
    assert plan.executions == sum(mitigation.executions(part, shots) for part in parts)
    depth = 30 * max(mitigation.factors)
    assert plan.qpu_seconds == pytest.approx(sum(estimated_qpu_seconds(1, mitigation.executions(part, shots), depth) for part in parts))


def test_backend_options_count_in_plans(photographs: Path) -> None:
    options = {"mitigation": "readout", "calibration_shots": 500, "zne": [1, 3], "twirling": True}
    given_ = FitConfig.parse({"data": photographs, "backend": "ibm:ibm_fez", "epochs": 1, "shots": 100, "backend_options": options})
    plan = plan_training(given_)["as given"]
    assert plan.executions == 2 * 100 * plan.counts.parameter_sets + 1000 * plan.counts.jobs
    assert plan_answers(10, "ibm:ibm_fez", 100, None, None, options)["as given"].executions == 2 * 10 * 100 + 1000
    with pytest.raises(ConfigError, match="zne must be"):
        plan_answers(10, "ibm:ibm_fez", 100, None, None, {"zne": [2]})


def test_scoring_is_one_job_per_chunk() -> None:
    assert evaluate_counts(0, 100) == evaluate_counts(0, 100, 8) == Counts(0, 0)
    assert evaluate_counts(16, 100, 8) == Counts(2, 16)
    assert evaluate_counts(17, 100, 8) == Counts(3, 17)
    assert evaluate_counts(17, None, 8) == Counts(3, 17)
    assert evaluate_counts(25, 1_000_000, 12) == Counts(2 + 2 + 1, 25)


def test_costs_by_hand() -> None:
    plan = cost_of(Counts(10, 68_000), 1000, {"pay-as-you-go": 1.6, "free": 0.0})
    assert plan.executions == 68_000_000
    seconds = 10 * 2 + 68_000_000 * (250e-6 + 30 * 100e-9)
    assert plan.qpu_seconds == pytest.approx(seconds) == pytest.approx(17_224)
    assert plan.wall_seconds == pytest.approx(seconds)  # more than the 2 minutes that ten submits take
    assert plan.open_plan_share == pytest.approx(seconds / 600)
    assert plan.prices == {"pay-as-you-go": pytest.approx(1.6 * seconds), "free": 0.0}
    assert cost_of(Counts(10, 10), 1, {}).wall_seconds == 120  # five submits a minute


def test_exact_values_cost_nothing() -> None:
    plan = cost_of(Counts(1000, 1000), None, PRICES)
    assert (plan.executions, plan.qpu_seconds, plan.wall_seconds, plan.open_plan_share) == (0, 0, 0, 0)
    assert set(plan.prices.values()) == {0}


@given(jobs=st.integers(0, 10**4), sets=st.integers(0, 10**6), shots=st.one_of(st.none(), st.integers(1, 10**6)))
def test_a_plan_is_json(jobs: int, sets: int, shots: int | None) -> None:
    plan = cost_of(Counts(jobs, sets), shots, PRICES)
    assert json.loads(json.dumps(plan.to_dict(), allow_nan=False)) == plan.to_dict()
    assert all(value >= 0 for value in [plan.qpu_seconds, plan.wall_seconds, *plan.prices.values()])


def test_the_estimate_is_the_emulators_tariff_and_grows_with_the_depth() -> None:
    assert estimated_qpu_seconds(0, 0) == 0
    assert estimated_qpu_seconds(1, 1000, depth=1030) - estimated_qpu_seconds(1, 1000) == pytest.approx(0.1)


# ---------------------------------------------------------------- prices


def test_prices_are_the_built_in_ones_or_a_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HQTL_PRICES", raising=False)
    assert read_prices() == PRICES
    read_prices()["open"] = 5.0
    assert read_prices() == PRICES, "a caller's change must not stay"
    (tmp_path / "mine.json").write_text('{"ours": 2, "theirs": 0.5}')
    (tmp_path / "other.json").write_text('{"other": 1}')
    monkeypatch.setenv("HQTL_PRICES", str(tmp_path / "mine.json"))
    assert read_prices() == {"ours": 2.0, "theirs": 0.5}
    assert read_prices(tmp_path / "other.json") == {"other": 1.0}, "what is given counts first"


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "3", '{"plan": "cheap"}', '{"plan": null}', '{"plan": [1]}', '{"plan": NaN}', '{"plan": Infinity}', '{"plan": -1}', "\xff"],
)
def test_prices_that_are_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("HQTL_PRICES", str(path))
    with pytest.raises(ConfigError, match="JSON object of US dollars per QPU second by plan"):
        read_prices()


def test_prices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json"):
        read_prices(tmp_path / "absent.json")


# ---------------------------------------------------------------- alternatives


def sampled(plans: dict[str, Plan]) -> dict[str, Plan]:
    return {name: plan for name, plan in plans.items() if name != "as given"}


def test_alternatives_of_a_training_are_cheaper(photographs: Path) -> None:
    config = FitConfig.parse({"data": photographs, "backend": "ibm:ibm_fez", "epochs": 3, "shots": 2000})
    plans = plan_training(config)
    given_ = plans["as given"]
    assert given_.shots == 2000
    assert set(plans) == {"as given", "a quarter of the shots", "spsa", "lean-shift", "4 × the batch size"}
    assert all(plan.qpu_seconds < given_.qpu_seconds for plan in sampled(plans).values())
    assert plans["a quarter of the shots"].executions * 4 == given_.executions
    assert plans["4 × the batch size"].executions == given_.executions
    assert plans["4 × the batch size"].counts.jobs < given_.counts.jobs
    assert plans["lean-shift"].counts.jobs == given_.counts.jobs


def test_the_leaner_method_of_a_plan_is_that_of_the_ansatz(photographs: Path) -> None:
    options = {"data": photographs, "backend": "ibm:ibm_fez", "epochs": 2, "batch_size": 4}
    steps, answers = 2 * 28, 2 * 6 + 6 + 6  # 40 images at 70/15/15
    paper = plan_training(FitConfig.parse(options))
    assert (paper["as given"].counts.parameter_sets, paper["lean-shift"].counts.parameter_sets) == (
        17 * steps + answers,
        10 * steps + answers,
    )
    given_ = plan_training(FitConfig.parse({**options, "ansatz": "commuting"}))
    assert given_["as given"].counts.parameter_sets == 6 * steps + answers  # auto takes the ansatz's own method
    shifted = plan_training(FitConfig.parse({**options, "ansatz": "commuting", "diff_method": "parameter-shift"}))
    assert shifted["as given"].counts == paper["as given"].counts
    assert shifted["commuting"].counts == given_["as given"].counts
    assert {"commuting", "lean-shift"}.isdisjoint(given_)


def test_a_machine_without_shots_takes_the_default_of_1024(photographs: Path) -> None:
    assert plan_training(FitConfig.parse({"data": photographs, "backend": "ibm:ibm_fez"}))["as given"].shots == 1024
    assert plan_answers(10, "aer", None, None)["as given"].executions == 10 * 1024
    assert plan_answers(10, "statevector", None, None)["as given"].executions == 0
    assert plan_answers(100, "ibm:ibm_fez", 100, 8)["8 × the images per job"].counts == Counts(2, 100)


def test_a_method_that_is_not_legal_is_refused_by_the_plan_too(photographs: Path) -> None:
    with pytest.raises(CapabilityError, match="legal are parameter-shift, lean-shift, finite-diff, finite-diff-forward, spsa"):
        plan_training(FitConfig.parse({"data": photographs, "backend": "ibm:ibm_fez", "diff_method": "backprop"}))
