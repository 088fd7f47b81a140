"""Who trains, who validates, who tests: stratified, seeded, and without one photograph on two sides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hqtl_common.errors import ConfigError, InputError
from training.data import SPLIT_NAMES, ImageDataset, lines_digest

__all__ = ["Ratio", "Split", "make_folds", "make_split", "parse_ratio"]

Ratio = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Split:
    """Sample indices of each part, ascending and disjoint.

    Args:
        train: Indices the weights are fitted on.
        val: Indices the best epoch, the threshold and the calibration are chosen on.
        test: Indices the reported figures come from.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def indices(self, name: str) -> tuple[int, ...]:
        """Indices of the part ``train``, ``val`` or ``test``.

        Raises:
            ConfigError: Another name.
        """
        if name not in SPLIT_NAMES:
            raise ConfigError(f"a split is one of {', '.join(SPLIT_NAMES)}; got {name!r}")
        part: tuple[int, ...] = getattr(self, name)
        return part

    def counts(self, dataset: ImageDataset) -> dict[str, dict[str, int]]:
        """Number of images by part and class name, zeros included."""
        found = {name: Counter(dataset.samples[i].label for i in self.indices(name)) for name in SPLIT_NAMES}
        return {name: {label: n[i] for i, label in enumerate(dataset.labels)} for name, n in found.items()}

    def digest(self, dataset: ImageDataset) -> str:
        """The split hash: SHA-256 (hex) over (relative path, part), the same wherever the folder lies."""
        return lines_digest((dataset.samples[i].relative, name) for name in SPLIT_NAMES for i in self.indices(name))


def parse_ratio(text: str) -> Ratio:
    """Shares (train, val, test) in (0, 1), with the sum 1, from text like ``"70/15/15"`` or ``"0.7/0.15/0.15"``.

    Raises:
        ConfigError: Not three positive numbers whose sum is 100 (or 1).
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = math.nan
    total = train + val + test
    if not (min(train, val, test) > 0 and (math.isclose(total, 100) or math.isclose(total, 1))):
        raise ConfigError(f"a split ratio is three positive numbers that sum to 100, like 70/15/15; got {text!r}")
    return (train / total, val / total, test / total)


def make_split(dataset: ImageDataset, ratio: Ratio, seed: int, groups: Sequence[str] | None = None) -> Split:
    """Divides N samples into train, val and test; the same arguments give the same split on every machine.

    Without groups every class is divided by itself, rounded by largest remainder (ties to the earlier part), so
    each count is within 1 of its target. With groups, whole groups go, largest first, to the part whose relative
    distance to its target per class shrinks most. A folder that is itself divided (``fixed_split``) stays so.

    Args:
        dataset: The samples.
        ratio: Shares of :func:`parse_ratio`; without effect where the folder is divided.
        seed: Seed of the shuffle, at least 0.
        groups: N keys of :func:`training.data.group_keys`; samples of one key stay together.

    Raises:
        ConfigError: The seed is negative.
        InputError: A part would have no image of some class, or the given folders tear a group apart.
    """
    _check_seed(seed)
    if dataset.fixed_split is not None:
        split = Split(**dataset.fixed_split)
        _check_groups_whole(split, groups)
        return split
    split = Split(*_divide(dataset, ratio, seed, groups))
    _check_complete(split, dataset, "/".join(f"{100 * share:g}" for share in ratio), groups)
    return split


def make_folds(dataset: ImageDataset, num_folds: int, seed: int, groups: Sequence[str] | None = None) -> list[Split]:
    """Divides N samples into k equal parts, stratified as in :func:`make_split`, for k trainings.

    Part i is the test part of fold i and the val part of the fold before it (of the last fold, for part 0); the other
    k − 2 parts train. So each image is tested on once, validated on once, and no choice of an epoch or a threshold has
    seen the test part of its fold. k = 5 gives 60/20/20 five times, k = 10 gives 80/10/10 ten times.

    Args:
        dataset: The samples; a folder that is itself divided has no folds.
        num_folds: Number of parts k, at least 3.
        seed: Seed of the shuffle, at least 0.
        groups: N keys of :func:`training.data.group_keys`; samples of one key stay in one part.

    Raises:
        ConfigError: k is below 3, the seed negative, or the folder is itself divided into train, val and test.
        InputError: A part would have no image of some class.
    """
    if num_folds < 3:
        raise ConfigError(f"folds must be at least 3 (one part tests, one validates, the rest train); got {num_folds}")
    _check_seed(seed)
    if dataset.fixed_split is not None:
        raise ConfigError(f"{dataset.root} is divided into train, val and test; folds need the class folders right under it")
    parts = _divide(dataset, [1 / num_folds] * num_folds, seed, groups)
    folds = [_fold(parts, test) for test in range(num_folds)]
    for fold in folds:
        _check_complete(fold, dataset, f"{num_folds} folds", groups)
    return folds


def _fold(parts: Sequence[tuple[int, ...]], test: int) -> Split:
    val = (test + 1) % len(parts)
    train = sorted(index for part, members in enumerate(parts) if part not in (test, val) for index in members)
    return Split(tuple(train), parts[val], parts[test])


def _divide(dataset: ImageDataset, shares: Sequence[float], seed: int, groups: Sequence[str] | None) -> list[tuple[int, ...]]:
    """Sample indices of each part, ascending; one part per share."""
    labels = np.array([sample.label for sample in dataset.samples])
    rng = np.random.default_rng(seed)
    part_of = _by_class(labels, shares, rng) if groups is None else _by_group(labels, groups, shares, rng)
    return [tuple(int(i) for i in np.flatnonzero(part_of == part)) for part in range(len(shares))]


def _by_class(labels: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    parts = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        parts[members] = np.repeat(np.arange(len(shares)), _largest_remainder(len(members), shares))
    return parts


def _largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    quotas = [round(total * share, 9) for share in shares]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda part: -round(quotas[part] - counts[part], 9))
    for part in by_remainder[: total - sum(counts)]:
        counts[part] += 1
    return counts


def _by_group(labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    keys, member_of = np.unique(np.array(groups), return_inverse=True)
    sizes = np.zeros((len(keys), labels.max() + 1))
    np.add.at(sizes, (member_of, labels), 1)
    shuffled = rng.permutation(len(keys))
    largest_first = shuffled[np.argsort(-sizes[shuffled].sum(axis=1), kind="stable")]
    target = np.outer(shares, sizes.sum(axis=0))
    deficit = target.copy()
    part_of = np.empty(len(keys), dtype=int)
    for group in largest_first:
        gain = ((deficit**2 - (deficit - sizes[group]) ** 2) / target).sum(axis=1)
        part_of[group] = np.argmax(gain.round(9))
        deficit[part_of[group]] -= sizes[group]
    return part_of[member_of]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be a whole number from 0; got {seed}")


def _check_groups_whole(split: Split, groups: Sequence[str] | None) -> None:
    seen: dict[str, str] = {}
    for name in SPLIT_NAMES:
        for key in (groups[i] for i in split.indices(name)) if groups else ():
            if seen.setdefault(key, name) != name:
                raise InputError(f"the group {key!r} lies in {seen[key]} and in {name}; move it into one, or do not group")


def _check_complete(split: Split, dataset: ImageDataset, recipe: str, groups: Sequence[str] | None) -> None:
    for name, by_label in split.counts(dataset).items():
        for label, count in by_label.items():
            if not count:
                grouped = f" in {len(set(groups))} groups, which cannot be divided" if groups is not None else ""
                raise InputError(
                    f"at {recipe} the {name} split would have no image of class {label!r}: there are "
                    f"{len(dataset.samples)} images{grouped}; add images, choose another division"
                    f"{' or do not group' if grouped else ''}"
                )
