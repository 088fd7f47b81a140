"""Running means beside those of the bundle."""

from __future__ import annotations

import numpy as np
import pytest

from hqtl_common import ModelBundle
from serving.metrics import Metrics, reference_means
from tests.tiny import calibration, tiny_bundle

TESTED = {"labels": ["crack", "no_crack"], "positive": "crack", "confusion": [[30, 10], [5, 55]], "mean_score": 0.36}


def answer(score: float, *, label: str = "crack", review: list[str] | None = None) -> dict[str, object]:
    prediction = {"label": label, "probabilities": {"crack": score, "no_crack": 1 - score}, "familiarity": None, "review": review or []}
    execution = {"backend_used": "statevector", "backend_requested": "statevector", "shots": None, "qpu_seconds": 0.0}
    return {"predictions": [prediction], "execution": execution}


def value(metrics: Metrics, name: str) -> float:
    lines = metrics.render().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name)))


def test_the_reference_is_what_the_test_images_gave(tmp_path: object, bundle: ModelBundle) -> None:
    known = tiny_bundle(tmp_path / "known", metrics={"test": TESTED}).manifest  # type: ignore[operator]
    assert reference_means(known) == {"score": 0.36, "positive": 0.35}
    assert reference_means(bundle.manifest) == {}
    older = {name: figure for name, figure in TESTED.items() if name != "mean_score"}
    assert reference_means(tiny_bundle(tmp_path / "older", metrics={"test": older}).manifest) == {"positive": 0.35}  # type: ignore[operator]


@pytest.mark.parametrize(("changes", "left"), [({}, {}), ({"temperature": 1.0, "threshold": 0.3}, {"score"})])
def test_a_calibration_that_changes_scores_leaves_no_reference(tmp_path: object, changes: dict[str, float], left: set[str]) -> None:
    entry = calibration(**changes)  # type: ignore[arg-type]
    manifest = tiny_bundle(tmp_path / "b", metrics={"test": TESTED}, calibration=(entry,)).manifest  # type: ignore[operator]
    assert reference_means(manifest).keys() == set(left)


def test_drift_is_the_running_mean_less_the_reference() -> None:
    metrics = Metrics("0", {"score": 0.4, "positive": 0.5})
    scores = np.random.default_rng(0).uniform(0, 1, 5000)
    mean = 0.0
    for number, score in enumerate(scores, 1):
        metrics.answered(answer(float(score), label="crack" if score > 0.5 else "no_crack", review=["close"] * int(score < 0.25)), "crack")
        mean += (score - mean) / min(number, 500)
        if number == 200:
            assert value(metrics, 'hqtl_recent_mean{quantity="score"}') == pytest.approx(scores[:200].mean())
    assert value(metrics, 'hqtl_recent_mean{quantity="score"}') == pytest.approx(mean)
    assert value(metrics, 'hqtl_drift{quantity="score"}') == pytest.approx(mean - 0.4)
    assert value(metrics, 'hqtl_drift{quantity="positive"}') == pytest.approx(0.0, abs=0.1)
    assert value(metrics, 'hqtl_recent_mean{quantity="review"}') == pytest.approx(0.25, abs=0.1)
    assert value(metrics, 'hqtl_reference_mean{quantity="score"}') == 0.4
    with pytest.raises(StopIteration):
        value(metrics, 'hqtl_drift{quantity="review"}')
