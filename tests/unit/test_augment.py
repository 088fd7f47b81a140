"""Altered copies: deterministic, of the same kind as what they copy, each part doing what it says and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common import PreprocessSpec
from hqtl_common.errors import ConfigError
from training.augment import Augmentation, Variant

SPEC = PreprocessSpec(size=12)
PARTS = ("flips", "rotations", "tilt", "brightness", "contrast", "noise")


def normalised(unit: np.ndarray, spec: PreprocessSpec = SPEC) -> np.ndarray:
    shape = (3, *[1] * (unit.ndim - 1))
    return ((unit - np.reshape(spec.mean, shape)) / np.reshape(spec.std, shape)).astype(np.float32)


def unit_of(pixels: np.ndarray, spec: PreprocessSpec = SPEC) -> np.ndarray:
    shape = (3, *[1] * (pixels.ndim - 1))
    return pixels * np.reshape(spec.std, shape) + np.reshape(spec.mean, shape)


def grey(seed: int = 0, shape: tuple[int, ...] = (12, 12)) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).uniform(0.2, 0.8, shape)[None], 3, axis=0)


def altered(parts: str, unit: np.ndarray, seed: int, spec: PreprocessSpec = SPEC) -> np.ndarray:
    augmentation = Augmentation.parse(parts)
    assert augmentation is not None
    return unit_of(augmentation.apply(normalised(unit, spec), spec, np.random.default_rng(seed)), spec)


def test_words_are_parsed() -> None:
    assert Augmentation.parse("none") is None
    assert Augmentation.parse("all") == Augmentation(PARTS)
    assert Augmentation.parse("noise, flips") == Augmentation.parse("flips,noise") == Augmentation(("flips", "noise"))
    for bad in ("", "wiggle", "flips,,noise", "all,flips"):
        with pytest.raises(ConfigError, match="flips,rotations,tilt"):
            Augmentation.parse(bad)


@given(st.integers(0, 50))
def test_flips_and_right_angles_give_one_of_the_eight_symmetries(seed: int) -> None:
    image = grey()
    turned = [np.rot90(image, k, axes=(1, 2)) for k in range(4)]
    symmetries = [*turned, *(np.flip(each, 1) for each in turned)]
    copy = altered("flips,rotations", image, seed)
    assert min(np.abs(copy - each).max() for each in symmetries) < 1e-6


def test_all_eight_symmetries_occur() -> None:
    image = grey()
    assert len({altered("flips,rotations", image, seed).round(4).tobytes() for seed in range(100)}) == 8


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alters_and_keeps_grey_grey(part: str) -> None:
    image = grey()
    copies = [altered(part, image, seed) for seed in range(8)]
    assert any(np.abs(copy - image).max() > 0.01 for copy in copies)
    for copy in copies:
        assert copy.min() > -1e-5
        assert copy.max() < 1 + 1e-5
        np.testing.assert_allclose(copy, copy[:1].repeat(3, 0), atol=1e-5)


@given(st.integers(0, 1000))
def test_light_moves_and_stretches_about_middle_grey(seed: int) -> None:
    image = np.full((3, 12, 12), 0.5)
    assert abs(altered("brightness", image, seed).mean() - 0.5) <= 0.12 + 1e-6
    np.testing.assert_allclose(altered("contrast", image, seed), 0.5, atol=1e-6)
    assert altered("noise", image, seed).std() < 0.06


def test_a_volume_is_turned_in_its_plane_only() -> None:
    spec = PreprocessSpec(size=12, depth=5)
    stairs = np.repeat(np.linspace(0.2, 0.8, 5)[None, :, None, None], 3, axis=0) * np.ones((1, 1, 12, 12))
    for seed in range(10):
        np.testing.assert_allclose(altered("rotations,tilt", stairs, seed, spec), stairs, atol=1e-6)
    assert any(altered("flips", stairs, seed, spec)[0, 0, 0, 0] > 0.7 for seed in range(10))


def test_a_copy_depends_on_image_recipe_and_name_only() -> None:
    augmentation, other = Augmentation(("noise",)), Augmentation(("noise", "tilt"))
    pixels = normalised(grey())
    variant = Variant(augmentation, SPEC, "1")
    np.testing.assert_array_equal(variant.apply(pixels, "aa"), Variant(augmentation, SPEC, "1").apply(pixels, "aa"))
    keys = {v.key(c) for v in (variant, Variant(augmentation, SPEC, "2"), Variant(other, SPEC, "1")) for c in ("aa", "ab")}
    copies = {v.apply(pixels, c).tobytes() for v in (variant, Variant(augmentation, SPEC, "2")) for c in ("aa", "ab")}
    assert (len(keys), len(copies)) == (6, 4)
