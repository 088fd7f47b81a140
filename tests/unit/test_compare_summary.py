"""Rows of runs put together: SciPy's intervals, pairs of hybrid and twin, words that claim no more; and the pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from training.compare.plots import FORMATS, plot_comparison
from training.compare.summary import standing, summarise, verdict

VARIED = ("num_layers", "seed")


def row(accuracy: float, twin: float = 0.8, *, num_layers: int = 1, seed: int = 0, status: str = "finished") -> dict[str, Any]:
    figures = dict.fromkeys(("test_balanced_accuracy", "test_f1", "test_loss", "seconds"), accuracy) | {
        "test_roc_auc": None,
        "test_ece": None,
    }
    costs = {"parameter_sets": 1000 * num_layers, "jobs": 10, "qpu_seconds": 0.5}
    limits = {"test_accuracy_low": accuracy - 0.05, "test_accuracy_high": accuracy + 0.05}
    return {
        "run": f"num_layers={num_layers},seed={seed}",
        "group": f"num_layers={num_layers}",
        "num_layers": num_layers,
        "seed": seed,
        "status": status,
        "test_accuracy": accuracy,
        "bottleneck_accuracy": twin,
        "linear_accuracy": twin - 0.1,
        **limits,
        **figures,
        **costs,
    }


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), min_size=2, max_size=12))
def test_intervals_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    (group,) = summarise([row(mine, twin, seed=seed) for seed, (mine, twin) in enumerate(pairs)], VARIED)
    mine, twin = np.array(pairs).T
    assert group["runs"] == len(pairs)
    assert group["test_accuracy_std"] == pytest.approx(mine.std(ddof=1), abs=1e-12)
    for name, values in (("test_accuracy", mine), ("minus_bottleneck", mine - twin)):
        if values.std() > 1e-6:
            interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            expected = [interval.low, interval.high] if name.startswith("minus") else [max(interval.low, 0), min(interval.high, 1)]
            assert [group[f"{name}_low"], group[f"{name}_high"]] == pytest.approx(expected)
    if (mine - twin).std() > 1e-6:
        decided = stats.ttest_rel(mine, twin).pvalue < 0.05
        assert (standing(group, "bottleneck") != "undecided") == decided


def test_groups_leave_out_what_did_not_finish() -> None:
    rows = [row(0.9, num_layers=2, seed=0), row(0.7, num_layers=1, seed=0), row(0.5, num_layers=1, seed=1, status="failed")]
    found = summarise(rows, VARIED)
    assert [(group["num_layers"], group["runs"], group["test_accuracy_mean"]) for group in found] == [(2, 1, 0.9), (1, 1, 0.7)]
    assert "seed" not in found[0]
    assert found[0]["test_accuracy_std"] is None
    assert found[0]["test_roc_auc_mean"] is None
    assert (found[0]["jobs"], found[0]["qpu_seconds"], found[0]["parameter_sets"]) == (10, 0.5, 2000)


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ([0.9], "10.0 percentage points above the classical twin in one run, which cannot tell a difference from chance"),
        ([0.75], "5.0 percentage points below the classical twin in one run"),
        ([0.7, 0.9, 0.82], "cannot be told apart from the classical twin by 3 runs"),
        ([0.7, 0.9, 0.7999999999999], "cannot be told apart from the classical twin by 3 runs (difference +0.0 points"),
        ([0.9, 0.91, 0.92], "better than the classical twin by 11.0 percentage points"),
        ([0.7, 0.71, 0.72], "worse than the classical twin by 9.0 percentage points"),
    ],
)
def test_words_say_what_the_interval_allows(accuracies: list[float], said: str) -> None:
    (group,) = summarise([row(accuracy, seed=seed) for seed, accuracy in enumerate(accuracies)], VARIED)
    assert verdict(group, "bottleneck").startswith(said)


@pytest.mark.parametrize("seeds", [1, 3])
def test_pictures_repeat_and_show_every_group(tmp_path: Path, seeds: int) -> None:
    rows = [row(0.6 + 0.1 * layers + 0.02 * seed, num_layers=layers, seed=seed) for layers in (1, 2, 3) for seed in range(seeds)]
    summary = summarise(rows, VARIED)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        plot_comparison(summary, rows, VARIED, folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(f"{name}.{suffix}" for name in ("accuracy", "cost") for suffix in FORMATS)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    with Image.open(tmp_path / "a" / "accuracy.png") as picture:
        blue = (np.abs(np.asarray(picture.convert("RGB")).astype(int) - (0, 114, 178)).max(axis=2) < 20).any(axis=1)
    blocks = int((np.diff(blue.astype(int)) == 1).sum())
    assert blocks >= 4  # three rows and the legend
