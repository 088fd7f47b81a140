"""Familiarity against scikit-learn's nearest neighbours, and what its level promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from hqtl_common.errors import InputError
from training.familiarity import LEVEL, build_reference

WIDTH = 96


def features(count: int, seed: int, centre: float = 0.0) -> np.ndarray:
    """Two clusters of positive features, as behind a ReLU."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).gamma(1.0, size=(2, WIDTH)) + centre * np.random.default_rng(8).gamma(1.0, size=WIDTH)
    return np.abs(means[rng.integers(0, 2, count)] + 0.2 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def test_distances_are_those_of_scikit_learn() -> None:
    train, held_out, asked = features(150, 0), features(80, 1), np.concatenate([features(40, 2), features(40, 3, 0.2)])
    pca = PCA(64, svd_solver="full").fit(normalize(train.astype(np.float64)))
    nearest = NearestNeighbors(n_neighbors=1).fit(pca.transform(normalize(train.astype(np.float64))))

    def distance(values: np.ndarray) -> np.ndarray:
        return nearest.kneighbors(pca.transform(normalize(values.astype(np.float64))))[0][:, 0]

    expected = (1 + (distance(held_out) >= distance(asked)[:, None]).sum(axis=1)) / 81
    reference = build_reference(train, held_out)
    np.testing.assert_allclose(reference.familiarity(asked), expected, atol=1e-6)
    assert len(set(expected.tolist())) > 20  # else the line above would show little
    assert (reference.info.num_reference, reference.info.rank, reference.info.num_held_out) == (150, 64, 80)


def test_level_is_the_share_of_own_images_that_are_flagged() -> None:
    """Over many held-out sets: at most the level, and not far below where it can be reached."""
    train = features(200, 0)
    rates = [build_reference(train, features(199, 10 + seed), 0.05).flagged(features(500, 50 + seed)) for seed in range(6)]
    assert 0.03 < np.mean(rates) < 0.065


def test_other_images_are_flagged_and_far_ones_all() -> None:
    reference = build_reference(features(200, 0), features(150, 1))
    assert reference.info.level == LEVEL == 0.02
    shares = [reference.flagged(features(300, 2, centre)) for centre in (0.0, 0.3, 1.0)]
    assert shares[0] < 0.06 < shares[1] < shares[2] == 1.0


def test_small_validation_split_can_flag_nothing() -> None:
    assert build_reference(features(100, 0), features(48, 1)).flagged(-features(50, 2)) == 0
    assert build_reference(features(100, 0), features(49, 1)).flagged(-features(50, 2)) == 1


@settings(max_examples=15)
@given(num_train=st.integers(1, 70), num_held_out=st.integers(1, 30), scale=st.floats(1e-3, 1e3))
def test_any_size_works_and_the_length_of_features_says_nothing(num_train: int, num_held_out: int, scale: float) -> None:
    reference, asked = build_reference(features(num_train, 0), features(num_held_out, 1)), features(9, 2)
    found = reference.familiarity(asked)
    assert ((found > 0) & (found <= 1)).all()
    assert np.abs(found - reference.familiarity((scale * asked).astype(np.float32))).max() <= 1.01 / (num_held_out + 1)
    singles = np.concatenate([reference.familiarity(row[None]) for row in asked])
    assert np.abs(found - singles).max() <= 1.01 / (num_held_out + 1)


def test_features_of_nothing_have_an_answer() -> None:
    reference = build_reference(features(50, 0), features(60, 1))
    odd = np.zeros((3, WIDTH), np.float32)
    odd[1], odd[2, 0] = np.nan, np.inf
    assert (reference.familiarity(odd) <= 0.02).all()
    assert reference.familiarity(odd[:0]).shape == (0,)


def test_many_images_are_thinned_and_the_bytes_repeat() -> None:
    train = np.random.default_rng(0).normal(size=(4200, 66)).astype(np.float32)
    first = build_reference(train, train[:4150])
    assert (first.info.num_reference, first.info.num_held_out) == (4096, 4096)
    assert build_reference(train, train[:4150]).model == first.model


@pytest.mark.parametrize("bad", [features(0, 0), np.full((3, WIDTH), np.nan, np.float32)])
def test_features_that_cannot_be_used(bad: np.ndarray) -> None:
    for train, held_out in ((bad, features(5, 0)), (features(5, 0), bad)):
        with pytest.raises(InputError, match="needs finite features"):
            build_reference(train, held_out)
