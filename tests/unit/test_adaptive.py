"""Adaptive shots: the error rate holds, clear images are cheap, rounds are few, and the same batch gives the same answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common import Evaluation, ExecutionRecord, HeadSpec, HybridClassifier, InferenceBatch, ModelBundle, get_backend
from hqtl_common.adaptive import AdaptiveEvaluation, DecisionRule, ShotPlan, evaluate_adaptively, pool, round_stream
from hqtl_common.backends.base import Backend, estimate, stream_seed
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import CapabilityError, ConfigError
from tests.tiny import tiny_bundle

SPEC = HeadSpec()
WEIGHTS = np.random.default_rng(1).uniform(-np.pi, np.pi, SPEC.weights_shape)
ALPHA = 0.05


class Counting:
    """A backend that notes its calls: (rows, stream)."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.name, self.shots, self.seed = inner, inner.name, inner.shots, inner.seed
        self.OPTIONS = inner.OPTIONS
        self.calls: list[tuple[int, int]] = []

    def run(self, spec: HeadSpec, weights: Any, angles: Any, *, stream: int = 0) -> Evaluation:
        self.calls.append((len(angles), stream))
        answer = self.inner.run(spec, weights, angles, stream=stream)
        return dataclasses.replace(answer, record=dataclasses.replace(answer.record, job_ids=(f"job{stream}",), qpu_seconds=2.0))

    def close(self) -> None:
        self.inner.close()


class Dice:
    """A head of given outcome probabilities (P, 2^n); the first angle of a row says which."""

    OPTIONS: frozenset[str] = frozenset()
    name = "dice"

    def __init__(self, table: np.ndarray, shots: int, seed: int) -> None:
        self.table, self.shots, self.seed = table, shots, seed

    def run(self, spec: HeadSpec, weights: Any, angles: Any, *, stream: int = 0) -> Evaluation:
        drawn = np.random.default_rng(stream_seed(self.seed, stream)).multinomial(self.shots, self.table[angles[:, 0].astype(int)])
        return Evaluation(*estimate(drawn, spec.num_qubits), ExecutionRecord(self.name, self.name, self.shots, self.seed, len(angles)))

    def close(self) -> None:
        pass


def angles_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-np.pi / 2, np.pi / 2, (count, 4))


def exact(angles: np.ndarray) -> np.ndarray:
    return get_backend("statevector").run(SPEC, WEIGHTS, angles).expvals


def rule_of(classes: int = 2, seed: int = 2) -> DecisionRule:
    weight = np.random.default_rng(seed).normal(size=(4, classes), scale=2.0)
    centre = exact(angles_of(1000, seed=9)).mean(axis=0)
    return DecisionRule(weight, -centre @ weight)  # every label happens


def labels(rule: DecisionRule, expvals: np.ndarray) -> np.ndarray:
    winners: np.ndarray = (expvals @ rule.weight + rule.bias).argmax(axis=1)
    return winners


def allowed(count: int, rate: float = ALPHA) -> float:
    """Four standard deviations above the expected number of errors."""
    return count * rate + 4 * np.sqrt(count * rate * (1 - rate))


def sampled(backend: Backend, angles: np.ndarray, rule: DecisionRule, max_shots: int, *, stream: int = 0) -> AdaptiveEvaluation:
    return evaluate_adaptively(backend, SPEC, WEIGHTS, angles, rule, ShotPlan.of(backend, max_shots, ALPHA), stream=stream)


# ---------------------------------------------------------------- the error rate


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("shots", "max_shots"), [(16, 1024), (128, 4096)])
def test_error_rate_near_the_boundary(classes: int, shots: int, max_shots: int) -> None:
    rule, angles = rule_of(classes), angles_of(100_000, seed=3)
    scores = np.sort(exact(angles) @ rule.weight + rule.bias, axis=1)
    close = np.argsort(scores[:, -1] - scores[:, -2])[:2000]
    found = sampled(get_backend("statevector", shots=shots, seed=4), angles[close], rule, max_shots)
    wrong = found.decided & (labels(rule, found.answer.expvals) != labels(rule, exact(angles[close])))
    assert wrong.sum() <= allowed(len(close))
    assert (~found.decided).mean() > 0.5  # they are doubtful, indeed
    assert set(found.shots_used[~found.decided]) == {max_shots}


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("mean", [0.0, 0.5, 0.9, 0.97, 0.997])
@pytest.mark.parametrize(("shots", "max_shots"), [(10, 640), (100, 6400), (1024, 8192)])
def test_error_rate_where_outcomes_are_rare(shots: int, max_shots: int, mean: float, side: int) -> None:
    """The boundary stands at the image's own ⟨Z_0⟩, close to ±1: the normal interval alone is wrong in up to 11 % here."""
    one = (1 - mean) / 2
    dice = Dice(np.array([[(1 - one) / 2, (1 - one) / 2, one / 2, one / 2]]), shots, 5)
    offset = mean + side * 1e-9
    rule = DecisionRule(np.array([[1.0, -1.0], [0.0, 0.0]]), np.array([-offset, offset]))
    angles = np.zeros((4000, 2))
    found = evaluate_adaptively(dice, HeadSpec(num_qubits=2), np.zeros((1, 2)), angles, rule, ShotPlan.of(dice, max_shots, ALPHA))
    wrong = found.decided & (labels(rule, found.answer.expvals) != (1 if side > 0 else 0))
    assert wrong.sum() <= allowed(len(angles))


def test_clear_images_are_cheap_and_doubtful_ones_are_not() -> None:
    rule, angles = rule_of(), angles_of(4000)
    backend = Counting(get_backend("statevector", shots=128, seed=1))
    found = sampled(backend, angles, rule, 4096)
    leads = np.abs(np.diff(exact(angles) @ rule.weight + rule.bias, axis=1)[:, 0])
    clear, close = np.argsort(leads)[-1000:], np.argsort(leads)[:40]
    assert (found.shots_used[clear] == 128).all()
    assert (found.shots_used[close] == 4096).mean() > 0.9
    saving = 4096 * len(angles) / found.shots_used.sum()
    print(f"{saving:.1f} times fewer executions than 4096 shots for all")
    assert saving > 5
    wrong = labels(rule, found.answer.expvals) != labels(rule, exact(angles))
    assert (wrong & found.decided).mean() < 0.005
    assert len(backend.calls) <= len(ShotPlan(128, 4096).looks) == 6
    assert found.answer.record.num_rows * 128 == found.answer.record.options["executions"] == found.shots_used.sum()


# ---------------------------------------------------------------- rounds


@pytest.mark.parametrize(
    ("shots", "max_shots", "looks"), [(10, 10, (1,)), (10, 19, (1,)), (10, 20, (1, 2)), (10, 80, (1, 2, 4, 8)), (10, 59, (1, 2, 4, 5))]
)
def test_looks_double_and_never_pass_the_bound(shots: int, max_shots: int, looks: tuple[int, ...]) -> None:
    assert ShotPlan(shots, max_shots).looks == looks


def test_error_rate_is_split_over_looks_and_rivals() -> None:
    assert ShotPlan(10, 10).quantile(2) == pytest.approx(1.6449, abs=1e-4)
    assert ShotPlan(10, 20, 0.1).quantile(2) == pytest.approx(1.6449, abs=1e-4)
    assert ShotPlan(10, 20, 0.1).quantile(3) == pytest.approx(1.9600, abs=1e-4)


def test_every_round_is_one_call_with_its_own_stream() -> None:
    backend = Counting(get_backend("statevector", shots=10, seed=1))
    always = DecisionRule(np.array([[1.0, -1.0], [0, 0], [0, 0], [0, 0]]), np.zeros(2))
    mean = exact(angles := angles_of(1))[0, 0]
    found = sampled(backend, np.repeat(angles, 3, axis=0), dataclasses.replace(always, bias=np.array([-mean, mean])), 50, stream=7)
    assert backend.calls == [(3, 7), (3, round_stream(7, 1)), (6, round_stream(7, 2)), (3, round_stream(7, 3))]
    record = found.answer.record
    assert (record.shots, record.num_rows, record.num_jobs, record.qpu_seconds) == (10, 15, 4, 8.0)
    assert record.job_ids == tuple(f"job{stream}" for _, stream in backend.calls)
    assert record.options == {"max_shots": 50, "error_rate": ALPHA, "rounds": 4, "executions": 150, "undecided": 3}
    np.testing.assert_array_equal(found.shots_used, 50)


@given(st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 40)), st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 40)))
def test_streams_never_collide(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (round_stream(*one) == round_stream(*other)) == (one == other)
    assert round_stream(one[0], 0) == one[0]


def test_first_round_is_the_plain_run() -> None:
    rule, angles = rule_of(), angles_of(50)
    backend = get_backend("statevector", shots=100, seed=1)
    plain = backend.run(SPEC, WEIGHTS, angles, stream=3)
    found = sampled(backend, angles, rule, 1600, stream=3)
    once = found.shots_used == 100
    assert once.any()
    assert plain.expval_covs is not None
    assert found.answer.expval_covs is not None
    np.testing.assert_array_equal(found.answer.expvals[once], plain.expvals[once])
    np.testing.assert_array_equal(found.answer.expval_covs[once], plain.expval_covs[once])
    assert (found.answer.expvals[~once] != plain.expvals[~once]).any(axis=1).all()


def test_same_seed_stream_and_batch_repeat_the_answer() -> None:
    rule, angles = rule_of(), angles_of(60)
    found = [sampled(get_backend("statevector", shots=50, seed=seed), angles, rule, 800, stream=stream) for seed, stream in [(1, 0)] * 2]
    np.testing.assert_array_equal(found[0].answer.expvals, found[1].answer.expvals)
    np.testing.assert_array_equal(found[0].shots_used, found[1].shots_used)
    for seed, stream in [(2, 0), (1, 1)]:
        other = sampled(get_backend("statevector", shots=50, seed=seed), angles, rule, 800, stream=stream)
        assert (found[0].answer.expvals != other.answer.expvals).any()


def test_no_images() -> None:
    found = sampled(get_backend("statevector", shots=50, seed=1), np.zeros((0, 4)), rule_of(), 800)
    assert found.answer.expvals.shape == (0, 4)
    assert found.answer.record.options["executions"] == 0


# ---------------------------------------------------------------- pooling


@given(st.integers(0, 2**31), st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_pooled_samples_are_the_joint_sample(seed: int, shots: list[int]) -> None:
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(8, 0.3), size=4)
    counts = [rng.multinomial(number, table) for number in shots]
    parts = [estimate(part, 3) for part in counts]
    mean, cov = pool(np.stack([m for m, _ in parts]), np.stack([c for _, c in parts]), np.array(shots))
    joint_mean, joint_cov = estimate(np.sum(counts, axis=0), 3)
    np.testing.assert_allclose(mean, joint_mean, atol=1e-12)
    np.testing.assert_allclose(cov, joint_cov, atol=1e-12)


def test_pooling_many_shots_keeps_its_precision() -> None:
    counts = np.array([[9_999_990, 10, 0, 0]])
    mean, cov = estimate(counts, 2)
    pooled = pool(np.stack([mean] * 64), np.stack([cov] * 64), np.full(64, 10_000_000))[1]
    np.testing.assert_allclose(pooled, estimate(64 * counts, 2)[1], rtol=1e-6, atol=1e-18)


# ---------------------------------------------------------------- the classifier


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8])
def test_rule_is_that_of_decide(threshold: float) -> None:
    rule, expvals = rule_of(), exact(angles_of(500))
    logits = expvals @ rule.weight + rule.bias
    shifted = DecisionRule.of(rule.weight, rule.bias, 1, threshold)
    np.testing.assert_array_equal(labels(shifted, expvals), decide(softmax(logits), 1, threshold))
    assert len(set(labels(shifted, expvals))) == 2


@pytest.mark.parametrize("names", [("crack", "no_crack"), ("a", "b", "c")])
def test_classifier_counts_shots_per_image(names: tuple[str, ...], tmp_path: Any) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", seed=11, labels=names)
    angles = angles_of(40).astype(np.float32)
    with HybridClassifier(bundle, get_backend("statevector", shots=64, seed=1)) as classifier:
        result = classifier.run(InferenceBatch(angles=angles), max_shots=2048, stream=2)
        truth = classifier.run(InferenceBatch(angles=angles), backend=get_backend("statevector"))
        plain = classifier.run(result, max_shots=None, stream=2)
        fixed = classifier.run(InferenceBatch(angles=angles), backend=get_backend("statevector", shots=2048, seed=3))
    assert result.shots_used is not None
    assert result.execution is not None
    assert len(set(result.shots_used)) > 1
    assert result.execution.options["executions"] == result.shots_used.sum() < 0.7 * 2048 * 40
    assert truth.label_indices is not None
    assert np.mean(result.label_indices == truth.label_indices) >= 0.9
    answers = result.predictions()
    assert [answer.shots_used for answer in answers] == [answer.to_dict()["shots_used"] for answer in answers] == result.shots_used.tolist()
    assert plain.shots_used is None
    assert "shots_used" not in plain.predictions()[0].to_dict()
    most = result.shots_used == 2048
    assert most.any()
    assert fixed.expval_stds is not None
    assert result.expval_stds is not None
    np.testing.assert_allclose(result.expval_stds[most], fixed.expval_stds[most], rtol=0.1, atol=2e-3)  # of at most 0.022


def test_threshold_moves_the_doubt(bundle: ModelBundle) -> None:
    batch = InferenceBatch(angles=angles_of(30).astype(np.float32))
    with HybridClassifier(bundle, get_backend("statevector", shots=100, seed=1)) as classifier:
        half, high = (classifier.run(batch, max_shots=1600, threshold=threshold) for threshold in (0.5, 0.95))
        exact_answer = classifier.run(batch, backend=get_backend("statevector"))
    assert half.shots_used is not None
    assert high.shots_used is not None
    assert exact_answer.probabilities is not None
    for result, threshold in ((half, 0.5), (high, 0.95)):
        log_odds = np.log(exact_answer.probabilities[:, 0] / exact_answer.probabilities[:, 1]) - np.log(threshold / (1 - threshold))
        order = np.argsort(np.abs(log_odds))
        assert result.shots_used is not None
        assert result.shots_used[order[:5]].mean() > result.shots_used[order[-5:]].mean()
    assert (half.shots_used != high.shots_used).any()


def test_refusals(bundle: ModelBundle) -> None:
    batch = InferenceBatch(angles=angles_of(2).astype(np.float32))
    with HybridClassifier(bundle) as classifier:
        with pytest.raises(CapabilityError, match="'statevector' gives exact ones here; set shots"):
            classifier.run(batch, max_shots=100)
        for limit in (99, 102_401):
            with pytest.raises(ConfigError, match="between shots and 1,024 times"):
                classifier.run(batch, backend=get_backend("statevector", shots=100), max_shots=limit)
    with pytest.raises(ConfigError, match="shots must be a whole number"):
        ShotPlan(1, 0)
    with pytest.raises(ConfigError, match="error_rate must lie between"):
        ShotPlan(1, 2, 0.5)
    with pytest.raises(ConfigError, match="stream must be"):
        round_stream(2**48, 1)


def test_mitigated_estimates_are_refused() -> None:
    pytest.importorskip("qiskit_aer")
    with pytest.raises(CapabilityError, match="cannot promise its error rate with mitigation on 'aer'"):
        sampled(get_backend("aer", shots=50, seed=1, mitigation="readout"), angles_of(2), rule_of(), 100)
