"""Figures of calibration against scikit-learn's, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from hqtl_common.classifier import softmax
from training.reliability import NUM_BINS, bin_answers, plot_reliability, reliability_figures


def drawn(count: int, classes: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and outcomes drawn from them; ``scale`` sharpens what is said, not what is true."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 1.5
    truth = np.array([rng.choice(classes, p=p) for p in softmax(logits)])
    return softmax(scale * logits), truth


@settings(max_examples=20)
@given(count=st.integers(1, 120), seed=st.integers(0, 999), positive=st.integers(0, 1))
def test_two_classes_as_scikit_learn_has_them(count: int, seed: int, positive: int) -> None:
    probabilities, truth = drawn(count, 2, seed)
    found = reliability_figures(probabilities, truth, positive)
    stated, came_true = probabilities[:, positive], truth == positive
    assert found["brier"] == pytest.approx(sk.brier_score_loss(came_true, stated, labels=[False, True]))
    assert found["nll"] == pytest.approx(sk.log_loss(truth, probabilities, labels=[0, 1]))
    shares, means = calibration_curve(came_true, stated, n_bins=NUM_BINS)
    bins = bin_answers(probabilities, truth, positive)
    np.testing.assert_allclose((bins.shares, bins.means), (shares, means), atol=1e-12)
    assert found["ece"] == pytest.approx((bins.counts * np.abs(shares - means)).sum() / count)


def test_three_classes_speak_of_the_winner() -> None:
    probabilities, truth = drawn(300, 3, 0)
    found, bins = reliability_figures(probabilities, truth, 0), bin_answers(probabilities, truth, 0)
    assert bins.counts.sum() == 300
    assert (bins.shares * bins.counts).sum() == pytest.approx((probabilities.argmax(1) == truth).sum())
    assert found["brier"] == pytest.approx(((probabilities - np.eye(3)[truth]) ** 2).sum(axis=1).mean())
    assert found["nll"] == pytest.approx(sk.log_loss(truth, probabilities, labels=[0, 1, 2]))


def test_error_that_comes_by_chance_is_that_of_right_probabilities() -> None:
    """Over many samples whose probabilities are right, the error is what is said to come by chance, and it falls with the size."""
    found = [reliability_figures(*drawn(100, 2, seed), 0) for seed in range(25)]
    assert np.mean([one["ece"] for one in found]) == pytest.approx(np.mean([one["ece_chance"] for one in found]), rel=0.12)
    assert reliability_figures(*drawn(4000, 2, 1), 0)["ece_chance"] < 0.3 * found[0]["ece_chance"]


def test_overconfident_answers_stand_out() -> None:
    found = reliability_figures(*drawn(500, 2, 0, scale=4.0), 0)
    assert found["ece_low"] > found["ece_chance"]
    assert found["ece_low"] < found["ece"] < found["ece_high"]
    assert found == reliability_figures(*drawn(500, 2, 0, scale=4.0), 0)  # the resampling has a seed


def test_certain_answers_have_finite_figures() -> None:
    found = reliability_figures(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), 0)
    assert found["brier"] == 0.5
    assert np.isfinite(list(found.values())).all()


def test_picture(tmp_path: Path) -> None:
    before, truth = drawn(200, 2, 0, scale=3.0)
    after, _ = drawn(200, 2, 0)
    for name, series in (("both.png", {"uncalibrated": before, "calibrated": after}), ("one.png", {"calibrated": after})):
        plot_reliability(series, truth, ["crack $x_1$", "no_crack"], 0, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 500
            assert len(set(image.convert("L").get_flattened_data())) > 20  # not blank
