"""Counts to expectation values and their covariance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hqtl_common.backends.base import check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.circuit import z_signs
from hqtl_common.errors import ConfigError, ShapeError
from hqtl_common.specs import HeadSpec

tables = st.integers(1, 4).flatmap(
    lambda n: arrays(np.int64, st.tuples(st.integers(1, 4), st.just(2**n)), elements=st.integers(0, 2000)).filter(
        lambda counts: (counts.sum(axis=1) > 0).all()
    )
)


@given(tables)
def test_covariance_is_that_of_the_counts_plus_two_even_shots(counts: np.ndarray) -> None:
    num_qubits = counts.shape[1].bit_length() - 1
    means, covs = estimate(counts, num_qubits)
    signs = z_signs(num_qubits)
    for row, mean, cov in zip(counts, means, covs, strict=True):
        shots = row.sum()
        np.testing.assert_allclose(mean, row @ signs / shots, atol=1e-12)
        p = (row + 2 / len(row)) / (shots + 2)
        centre = p @ signs
        np.testing.assert_allclose(cov, (signs.T * p @ signs - np.outer(centre, centre)) / (shots + 3), atol=1e-12)


@given(tables)
def test_covariance_is_positive_and_never_zero(counts: np.ndarray) -> None:
    means, covs = estimate(counts, counts.shape[1].bit_length() - 1)
    assert np.abs(means).max() <= 1 + 1e-12
    np.testing.assert_array_equal(covs, covs.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(covs).min() > 0


@pytest.mark.parametrize(("heads", "shots"), [(0, 1), (1, 1), (3, 10), (10, 10), (512, 1024), (0, 1024)])
def test_single_qubit_formula_of_the_docstring(heads: int, shots: int) -> None:
    _, covs = estimate(np.array([[shots - heads, heads]]), 1)
    p = (heads + 1) / (shots + 2)
    assert covs[0, 0, 0] == pytest.approx(4 * p * (1 - p) / (shots + 3), rel=1e-12)


def test_covariance_is_what_repeated_sampling_shows() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(16))
    means, covs = estimate(rng.multinomial(400, p, size=20_000), 4)
    observed = np.cov(means.T)
    np.testing.assert_allclose(covs.mean(axis=0), observed, atol=0.05 * np.abs(np.diagonal(observed)).max())


@pytest.mark.parametrize("shots", [0, -1, 1.0, True, "10", 10_000_001])
def test_illegal_shots(shots: object) -> None:
    with pytest.raises(ConfigError, match="shots must be"):
        check_shots(shots)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, "0", False, 2**63])
def test_illegal_seed(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed must be"):
        check_seed(seed, 10)  # type: ignore[arg-type]


def test_effective_seed() -> None:
    assert check_seed(5, None) is None  # nothing is sampled
    assert check_seed(0, 10) == 0
    drawn = {check_seed(None, 10) for _ in range(20)}
    assert len(drawn) == 20
    assert all(isinstance(seed, int) for seed in drawn)


def test_seeds_and_streams_never_share_their_noise() -> None:
    numbers = [0, 1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**40]  # a seed of 2³² is no stream 1 of the seed 0
    pairs = [(seed, stream) for seed in [*numbers, 2**63 - 1] for stream in numbers]
    assert len({tuple(stream_seed(*pair).generate_state(4)) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("weights", "angles", "message"),
    [
        (np.zeros((1, 4)), np.zeros(4), "angles must have"),
        (np.zeros((1, 4)), np.zeros((2, 3)), "angles must have"),
        (np.zeros(4), np.zeros((2, 4)), "weights must have"),
        (np.zeros((2, 4)), np.zeros((2, 4)), "weights must have"),
        (np.zeros((3, 1, 4)), np.zeros((2, 4)), "weights must have"),
        (np.full((1, 4), np.nan), np.zeros((2, 4)), "finite"),
        (np.zeros((1, 4)), np.full((2, 4), np.inf), "finite"),
    ],
)
def test_tables_that_do_not_fit(weights: np.ndarray, angles: np.ndarray, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        check_table(HeadSpec(), weights, angles)
