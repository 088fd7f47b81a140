"""Paired tests and intervals against SciPy and against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.significance import mcnemar, mean_interval, pooled, range_of


def test_mcnemar_by_hand() -> None:
    model = np.array([1, 1, 1, 1, 1, 0, 0, 1], dtype=bool)
    twin = np.array([0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)
    # five to one in six throws of a fair coin, in either direction: 2 · (1 + 6) / 64
    assert mcnemar(model, twin) == {"only_model": 5, "only_twin": 1, "p_value": pytest.approx(14 / 64)}
    assert mcnemar(twin, model)["p_value"] == pytest.approx(14 / 64)
    assert mcnemar(model, model) == {"only_model": 0, "only_twin": 0, "p_value": 1.0}


@given(b=st.integers(0, 60), c=st.integers(0, 60), agreeing=st.integers(0, 5))
def test_mcnemar_is_twice_the_binomial_tail(b: int, c: int, agreeing: int) -> None:
    right = np.array([True] * b + [False] * c + [True] * agreeing, dtype=bool)
    twin = np.array([False] * b + [True] * c + [True] * agreeing, dtype=bool)
    found = mcnemar(right, twin)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert (found["only_model"], found["only_twin"]) == (b, c)
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail))


def test_pooled_is_the_test_over_all_images() -> None:
    rng = np.random.default_rng(0)
    right, twin = rng.random((2, 90)) < 0.8
    parts = [mcnemar(right[part], twin[part]) for part in (slice(0, 30), slice(30, 50), slice(50, 90))]
    assert pooled(parts) == mcnemar(right, twin)


@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_interval_is_that_of_the_t_test(values: list[float]) -> None:
    found = mean_interval(values)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert found["count"] == len(values)
    if found["std"] > 1e-9:
        assert found["interval"] == pytest.approx(list(stats.ttest_1samp(values, 0).confidence_interval(0.95)), abs=1e-9)


def test_an_interval_is_cut_to_the_values_that_can_be() -> None:
    assert mean_interval([0.98, 1.0], range_of("accuracy"))["interval"] == [pytest.approx(0.863, abs=1e-3), 1.0]
    assert mean_interval([0.1, 2.0], range_of("test_loss"))["interval"] == [0.0, pytest.approx(13.12, abs=1e-2)]
    assert mean_interval([0.1, -0.2])["interval"][0] < -1, "a difference has no limits"


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.25]) == {"mean": 0.25, "std": None, "interval": None, "count": 1}
