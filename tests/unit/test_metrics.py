"""Figures of merit against numbers computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.errors import ConfigError, InputError
from training.metrics import classification_metrics, find_positive, wilson_interval

LABELS = ("crack", "no_crack")


def binary(truth: str, cracks: list[float], threshold: float | None = 0.5, positive: str = "crack") -> dict[str, object]:
    """``truth`` has one letter per image, c or n; ``cracks`` the probability of a crack."""
    p = np.array(cracks)
    return classification_metrics(np.array(["cn".index(t) for t in truth]), np.stack([p, 1 - p], axis=1), LABELS, positive, threshold)


def test_two_classes_by_hand() -> None:
    # answers: c c n n c n; of four cracks two are found, of two plain images one is called a crack
    figures = binary("ccccnn", [0.9, 0.8, 0.4, 0.1, 0.7, 0.2])
    assert figures["confusion"] == [[2, 2], [1, 1]]
    assert figures["num_images"] == 6
    assert figures["accuracy"] == pytest.approx(3 / 6)
    assert figures["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["recall"] == pytest.approx(2 / 4)
    assert figures["f1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    # of 8 pairs (crack, plain) five are ranked right: 0.9>0.7, 0.9>0.2, 0.8>0.7, 0.8>0.2, 0.4>0.2
    assert figures["roc_auc"] == pytest.approx(5 / 8)
    losses = [0.9, 0.8, 0.4, 0.1, 0.3, 0.8]
    assert figures["loss"] == pytest.approx(-sum(map(math.log, losses)) / 6)
    assert figures["mean_score"] == pytest.approx((0.9 + 0.8 + 0.4 + 0.1 + 0.7 + 0.2) / 6)
    assert (figures["labels"], figures["positive"]) == (list(LABELS), "crack")


def test_the_other_class_can_be_the_positive_one() -> None:
    figures = binary("ccccnn", [0.9, 0.8, 0.4, 0.1, 0.7, 0.2], positive="no_crack")
    assert figures["confusion"] == [[2, 2], [1, 1]]
    assert (figures["precision"], figures["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert figures["roc_auc"] == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("threshold", "confusion"), [(0.05, [[3, 0], [1, 0]]), (0.3, [[2, 1], [1, 0]]), (0.5, [[2, 1], [0, 1]]), (0.95, [[0, 3], [0, 1]])]
)
def test_threshold_is_of_the_positive_class_and_included(threshold: float, confusion: list[list[int]]) -> None:
    assert binary("cccn", [0.9, 0.5, 0.1, 0.3], threshold)["confusion"] == confusion


def test_three_classes_by_hand() -> None:
    labels = ("bolt", "crack", "plain")
    truth = np.array([0, 0, 1, 1, 1, 2])
    answers = [0, 1, 1, 1, 2, 2]
    probabilities = np.full((6, 3), 0.2)
    probabilities[range(6), answers] = 0.6
    figures = classification_metrics(truth, probabilities, labels, "crack", 0.99)
    assert figures["confusion"] == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert figures["precision"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert figures["recall"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert figures["f1"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)
    # one against the rest, ties count half: bolt (4+2)/… by pairs
    bolt = (1 * 4 + 1 * 4 * 0.5) / 8  # the found bolt beats all 4 others, the other ties with them
    crack = (2 * (2 + 0.5) + 1 * (0 + 1.0)) / 9  # found ones beat two and tie one; the missed one ties with two and loses one
    plain = (4 + 0.5) / 5
    assert figures["roc_auc"] == pytest.approx((bolt + crack + plain) / 3)
    assert figures["loss"] == pytest.approx(-(4 * math.log(0.6) + 2 * math.log(0.2)) / 6)


@pytest.mark.parametrize(
    ("truth", "cracks", "accuracy", "recall"), [("cc", [0.9, 0.2], 0.5, 0.5), ("nn", [0.9, 0.2], 0.5, 0.0), ("n", [0.2], 1.0, 0.0)]
)
def test_a_single_class_has_no_auc_but_all_else(truth: str, cracks: list[float], accuracy: float, recall: float) -> None:
    figures = binary(truth, cracks)
    assert figures["roc_auc"] is None
    assert figures["accuracy"] == figures["balanced_accuracy"] == pytest.approx(accuracy)
    assert figures["recall"] == pytest.approx(recall)
    assert np.array(figures["confusion"]).shape == (2, 2)
    json.dumps(figures, allow_nan=False)


def test_absent_third_class() -> None:
    figures = classification_metrics(np.array([0, 1]), np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), ("a", "b", "c"), "a", None)
    assert figures["roc_auc"] is None
    assert figures["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert figures["balanced_accuracy"] == pytest.approx(0.5), "a class without images has no share in it"


def test_certain_answers_have_a_finite_loss() -> None:
    figures = binary("cn", [0.0, 1.0])
    assert figures["accuracy"] == 0.0
    assert np.isfinite(figures["loss"])
    assert binary("cn", [1.0, 0.0])["loss"] == pytest.approx(0.0, abs=1e-9)


def test_no_image() -> None:
    with pytest.raises(InputError, match="no usable image"):
        classification_metrics(np.array([], dtype=int), np.zeros((0, 2)), LABELS, "crack")


@given(data=st.data(), num_classes=st.integers(2, 5), num_images=st.integers(1, 40))
def test_everything_is_json_and_consistent(data: st.DataObject, num_classes: int, num_images: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    probabilities = rng.dirichlet(np.ones(num_classes), size=num_images)
    truth = rng.integers(0, num_classes, num_images)
    labels = [f"class {index}" for index in range(num_classes)]
    figures = classification_metrics(truth, probabilities, labels, labels[0])
    json.dumps(figures, allow_nan=False)
    confusion = np.array(figures["confusion"])
    assert confusion.sum() == figures["num_images"] == num_images
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(truth, minlength=num_classes))
    assert figures["accuracy"] == pytest.approx(np.trace(confusion) / num_images)
    low, high = figures["accuracy_interval"]
    assert 0 <= low <= figures["accuracy"] <= high <= 1
    assert (figures["roc_auc"] is None) == (len(set(truth)) < num_classes)


@given(trials=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_interval_by_its_formula(trials: int, share: float) -> None:
    successes = round(share * trials)
    z, p = 1.959963984540054, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert wilson_interval(successes, trials) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "wanted", "found"),
    [
        (("crack", "no_crack"), None, "crack"),
        (("Crack", "Plain"), None, "Crack"),
        (("negative", "positive"), None, "positive"),
        (("0", "1"), None, "1"),
        (("a", "b", "c"), None, "c"),
        (("crack", "no_crack"), "no_crack", "no_crack"),
    ],
)
def test_find_positive(labels: tuple[str, ...], wanted: str | None, found: str) -> None:
    assert find_positive(labels, wanted) == found


def test_unknown_positive() -> None:
    with pytest.raises(ConfigError, match="one of the classes a, b; got 'c'"):
        find_positive(("a", "b"), "c")
