"""Temperature, threshold, and which of them an answer gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from hqtl_common.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, choose_calibration
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import ConfigError, InputError
from tests.tiny import calibration
from training.calibration import MIN_IMAGES, ThresholdRule, calibrate, choose_threshold, fit_temperature, measure_recall
from training.metrics import wilson_interval

EVEN = ThresholdRule()


def drawn(count: int, classes: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``scale`` times those the truth was drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 2
    truth = np.array([rng.choice(classes, p=p) for p in softmax(logits)])
    return scale * logits, truth


# ---------------------------------------------------------------- temperature


@settings(max_examples=60)
@given(count=st.integers(MIN_IMAGES, 200), classes=st.integers(2, 4), scale=st.floats(0.3, 4), seed=st.integers(0, 1000))
def test_temperature_is_where_scipy_finds_the_least_loss(count: int, classes: int, scale: float, seed: int) -> None:
    logits, truth = drawn(count, classes, scale, seed)
    found, notes = fit_temperature(logits, truth)

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / np.exp(log_t), axis=1)[np.arange(count), truth].mean())

    best = minimize_scalar(loss, bounds=np.log([MIN_TEMPERATURE, MAX_TEMPERATURE]), method="bounded", options={"xatol": 1e-9})
    if notes and "no better than it would by chance" in notes[0]:
        assert count * (loss(0.0) - best.fun) <= 1 + 1e-6
    elif not notes or "every image" not in notes[0]:
        assert loss(np.log(found)) <= best.fun + 1e-9
        assert count * (loss(0.0) - loss(np.log(found))) > 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scale", [0.25, 0.9, 3.0])
def test_temperature_undoes_a_known_scale(classes: int, scale: float) -> None:
    logits, truth = drawn(20_000, classes, scale)
    assert fit_temperature(logits, truth)[0] == pytest.approx(scale, rel=0.05)
    assert fit_temperature(logits + 7.0, truth)[0] == pytest.approx(fit_temperature(logits, truth)[0], rel=1e-5)  # a shift says nothing


@pytest.mark.parametrize(
    ("logits", "truth", "expected", "says"),
    [
        (np.zeros((MIN_IMAGES - 1, 2)), np.zeros(MIN_IMAGES - 1, int), 1.0, "19 images are too few to fit it"),
        (np.tile([1.0, -1.0], (30, 1)), np.zeros(30, int), 1.0, "every image is answered rightly"),
        (np.tile([1.0, -1.0], (30, 1)), np.ones(30, int), MAX_TEMPERATURE, "upper bound"),
        (np.tile([0.01, -0.01], (1000, 1)), np.arange(1000) // 999, MIN_TEMPERATURE, "lower bound"),
    ],
)
def test_where_there_is_no_temperature_it_says_why(logits: np.ndarray, truth: np.ndarray, expected: float, says: str) -> None:
    found, notes = fit_temperature(logits, truth)
    assert found == expected
    assert says in notes[0]


# ---------------------------------------------------------------- threshold

scores_and_truth = st.integers(2, 60).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, count, elements=st.floats(0.001, 0.999)), arrays(np.bool_, count).filter(lambda positive: positive.any())
    )
)


@given(scores_and_truth, st.floats(0.01, 1))
def test_threshold_by_recall_is_the_highest_that_reaches_it(given_: tuple[np.ndarray, np.ndarray], recall: float) -> None:
    scores, positive = given_
    threshold, _ = choose_threshold(scores, positive, ThresholdRule(recall=recall))
    assert (scores[positive] >= threshold).mean() >= recall - 1e-9
    higher = scores[scores >= threshold].min()  # no further score may be left out
    assert (scores[positive] > higher).mean() < recall


def test_threshold_by_costs_is_the_cheapest_of_all() -> None:
    logits, truth = drawn(40_000, 2, 1.0)
    scores, positive = softmax(logits)[:, 1], truth == 1
    found, _ = choose_threshold(scores, positive, ThresholdRule(cost_miss=10, cost_false_alarm=1))
    assert found == pytest.approx(1 / 11)
    tried = np.linspace(0.01, 0.99, 99)
    costs = [(10 * (positive & (scores < t)) + (~positive & (scores >= t))).mean() for t in tried]
    assert tried[int(np.argmin(costs))] == pytest.approx(found, abs=0.03)


@pytest.mark.parametrize(("positives", "warned"), [(380, True), (381, False)])
def test_recall_that_so_few_images_cannot_prove_is_said(positives: int, warned: bool) -> None:
    """381 found images of 381 are the fewest whose Wilson interval begins above 0.99."""
    assert (wilson_interval(positives, positives)[0] < 0.99) == warned
    _, notes = choose_threshold(np.full(positives, 0.9), np.ones(positives, bool), ThresholdRule(recall=0.99))
    assert [note.split(":")[0] for note in notes] == ["380 positive images cannot prove recall 0.99 (381 are needed)"] * warned


def test_even_odds_and_recall_of_nothing() -> None:
    assert choose_threshold(np.array([0.2]), np.array([False]), EVEN) == (0.5, [])
    assert measure_recall(np.array([0.2]), np.array([False]), 0.5) is None
    with pytest.raises(ConfigError, match="needs positive images"):
        choose_threshold(np.array([0.2]), np.array([False]), ThresholdRule(recall=0.9))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recall": 1.5}, "recall must lie between 0 and 1"),
        ({"cost_miss": 1.0}, "give both costs"),
        ({"cost_miss": 1.0, "cost_false_alarm": 0.0}, "costs must be above 0"),
        ({"recall": 0.9, "cost_miss": 1.0, "cost_false_alarm": 1.0}, "give one of them"),
    ],
)
def test_rules_that_make_no_sense(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ThresholdRule(**options)


# ---------------------------------------------------------------- both


def test_calibration_says_what_it_did() -> None:
    logits, truth = drawn(400, 2, 3.0)
    rule = ThresholdRule(recall=0.9)
    entry = calibrate(logits, truth, ["a", "b"], "b", rule, backend="aer", shots=100, subset="val", seed=3, options={"x": 1})
    assert (entry.label, entry.rule, entry.num_images, entry.seed, entry.options) == ("aer at 100 shots", "recall 0.9", 400, 3, {"x": 1})
    assert entry.after.nll < entry.before.nll
    assert entry.after.ece < entry.before.ece
    assert entry.threshold is not None
    assert entry.recall is not None
    answers = decide(softmax(logits / entry.temperature), 1, entry.threshold)
    assert entry.recall.recall == (answers[truth == 1] == 1).mean() >= 0.9
    assert entry.recall.false_alarms == (answers[truth == 0] == 1).mean()


def test_three_classes_have_a_temperature_and_no_threshold() -> None:
    logits, truth = drawn(300, 3, 2.0)
    entry = calibrate(logits, truth, ["a", "b", "c"], "b", EVEN, backend="statevector", shots=None, subset="val")
    assert (entry.threshold, entry.recall) == (None, None)
    assert entry.temperature > 1.3
    with pytest.raises(ConfigError, match="a threshold needs two classes; the model has 3"):
        calibrate(logits, truth, ["a", "b", "c"], "b", ThresholdRule(recall=0.9), backend="statevector", shots=None, subset="val")
    with pytest.raises(InputError, match="no usable image"):
        calibrate(logits[:0], truth[:0], ["a", "b", "c"], "b", EVEN, backend="statevector", shots=None, subset="val")


# ---------------------------------------------------------------- which one an answer gets

ENTRIES = [calibration(), calibration("statevector", 100), calibration("fake_lima", 1000), calibration("fake_lima", 10)]


@pytest.mark.parametrize(
    ("backend", "shots", "noise_free", "name"),
    [
        ("statevector", None, True, "statevector"),
        ("statevector", 10**6, True, "statevector"),
        ("statevector", 64, True, "statevector at 100 shots"),
        ("aer", 128, True, "statevector at 100 shots"),
        ("fake_lima", 800, False, "fake_lima at 1000 shots"),
        ("fake_lima", None, False, "fake_lima at 1000 shots"),
        ("fake_lima", 1, False, "fake_lima at 10 shots"),
        ("fake_kolkata", None, False, "uncalibrated for fake_kolkata: statevector's used"),
        ("fake_kolkata", 90, False, "uncalibrated for fake_kolkata: statevector at 100 shots's used"),
    ],
)
def test_nearest_entry_of_the_backend_comes_first(backend: str, shots: int | None, noise_free: bool, name: str) -> None:
    found, said = choose_calibration(ENTRIES, backend, shots, noise_free=noise_free)
    assert said == name
    assert found is not None
    assert found.label in name


def test_nothing_that_could_stand_in() -> None:
    assert choose_calibration([], "aer", None, noise_free=True) == (None, "uncalibrated")
    assert choose_calibration(ENTRIES[2:], "aer", 100, noise_free=True) == (None, "uncalibrated for aer")
