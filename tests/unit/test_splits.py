"""Splits: exact counts, whole groups, the same answer every time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common.errors import ConfigError, InputError
from training.data import SPLIT_NAMES, ImageDataset, Sample, group_keys, load_dataset
from training.splits import Ratio, Split, make_folds, make_split, parse_ratio

PAPER = parse_ratio("70/15/15")
REAL_SET = Path(__file__).parents[2] / "../shared/data/dev/cfd_pavement"

ratios = (
    st.tuples(st.integers(1, 99), st.integers(1, 99))
    .filter(lambda r: sum(r) < 100)
    .map(lambda r: (r[0] / 100, r[1] / 100, (100 - sum(r)) / 100))
)
seeds = st.integers(0, 2**32)


def dataset_of(class_sizes: Sequence[int]) -> ImageDataset:
    labels = tuple(f"class{i}" for i in range(len(class_sizes)))
    names = [(f"{label}/{n:05d}.png", i) for i, label in enumerate(labels) for n in range(class_sizes[i])]
    return ImageDataset(Path(), labels, tuple(Sample(Path(name), name, label) for name, label in names))


def sizes(split: Split, dataset: ImageDataset) -> list[tuple[int, ...]]:
    counts = split.counts(dataset)
    return [tuple(counts[name][label] for name in SPLIT_NAMES) for label in dataset.labels]


def assert_partition(split: Split, dataset: ImageDataset) -> None:
    assert sorted(split.train + split.val + split.test) == list(range(len(dataset.samples)))
    assert all(list(split.indices(name)) == sorted(split.indices(name)) for name in SPLIT_NAMES)


def assert_groups_whole(split: Split, groups: Sequence[str]) -> None:
    homes = {(groups[i], name) for name in SPLIT_NAMES for i in split.indices(name)}
    assert len(homes) == len(set(groups))


class TestRatio:
    @pytest.mark.parametrize("text", ["70/15/15", "0.7/0.15/0.15", " 70 / 15/15.0"])
    def test_percent_and_shares_are_read(self, text: str) -> None:
        assert parse_ratio(text) == pytest.approx((0.70, 0.15, 0.15), abs=1e-15)

    @pytest.mark.parametrize("text", ["70/30", "70/15/10/5", "70/15/16", "100/0/0", "-10/55/55", "a/b/c", "", "nan/50/50", "inf/1/1"])
    def test_anything_else_is_a_wrong_option(self, text: str) -> None:
        with pytest.raises(ConfigError, match="three positive numbers that sum to 100"):
            parse_ratio(text)


class TestStratified:
    @pytest.mark.parametrize(
        ("ratio", "expected"),
        [("70/15/15", [(506, 109, 108), (350, 75, 75)]), ("4/4/92", [(29, 29, 665), (20, 20, 460)])],
    )
    def test_the_counts_of_the_papers_table_4(self, ratio: str, expected: list[tuple[int, ...]]) -> None:
        dataset = dataset_of([723, 500])
        split = make_split(dataset, parse_ratio(ratio), seed=0)
        assert sizes(split, dataset) == expected
        assert_partition(split, dataset)

    @settings(deadline=None)
    @given(st.lists(st.integers(100, 300), min_size=2, max_size=4), ratios, seeds)
    def test_every_class_is_within_one_image_of_its_target(self, class_sizes: list[int], ratio: Ratio, seed: int) -> None:
        dataset = dataset_of(class_sizes)
        split = make_split(dataset, ratio, seed)
        assert_partition(split, dataset)
        for total, parts in zip(class_sizes, sizes(split, dataset), strict=True):
            assert all(abs(part - total * share) < 1 for part, share in zip(parts, ratio, strict=True))
        assert make_split(dataset, ratio, seed) == split

    def test_another_seed_is_another_split_and_members_are_shuffled(self) -> None:
        dataset = dataset_of([100, 100])
        splits = [make_split(dataset, PAPER, seed) for seed in range(3)]
        assert len({split.digest(dataset) for split in splits}) == 3
        assert splits[0].train[:70] != tuple(range(70))

    def test_a_split_without_a_class_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"at 70/15/15 the test split would have no image of class 'class1'.*another division$"):
            make_split(dataset_of([100, 3]), PAPER, seed=0)

    def test_a_negative_seed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"seed .* got -1"):
            make_split(dataset_of([10, 10]), PAPER, seed=-1)


class TestGrouped:
    @settings(deadline=None)
    @given(st.integers(20, 60), st.integers(2, 3), seeds)
    def test_no_group_is_torn_apart(self, num_groups: int, num_classes: int, seed: int) -> None:
        dataset = dataset_of([8 * num_groups] * num_classes)
        groups = [f"photo{i}" for i in np.random.default_rng(seed).integers(num_groups, size=len(dataset.samples))]
        split = make_split(dataset, PAPER, seed, groups)
        assert_partition(split, dataset)
        assert_groups_whole(split, groups)
        assert make_split(dataset, PAPER, seed, groups) == split

    @pytest.mark.parametrize("seed", range(5))
    def test_uneven_groups_come_near_the_ratio_in_every_class(self, seed: int) -> None:
        dataset = dataset_of([400, 600])
        groups = [f"photo{int((i % 400) ** 0.62)}" for i in range(1000)]  # 41 photographs of 2 to 43 patches
        split = make_split(dataset, PAPER, seed, groups)
        for total, parts in zip((400, 600), sizes(split, dataset), strict=True):
            assert all(abs(part / total - share) < 0.04 for part, share in zip(parts, PAPER, strict=True))

    def test_groups_of_one_image_meet_the_ratio(self) -> None:
        dataset = dataset_of([200, 100])
        split = make_split(dataset, PAPER, 3, [sample.relative for sample in dataset.samples])
        assert sizes(split, dataset) == [(140, 30, 30), (70, 15, 15)]

    def test_large_groups_are_placed_before_small_ones(self) -> None:
        dataset = dataset_of([100, 100])
        groups = ["large" if i % 100 < 70 else "middle" if i % 100 < 85 else "small" for i in range(200)]
        assert sizes(make_split(dataset, PAPER, 0, groups), dataset) == [(70, 15, 15)] * 2

    def test_the_seed_decides_among_equal_groups(self) -> None:
        dataset = dataset_of([60, 60])
        groups = [str(i % 20) for i in range(120)]
        assert len({make_split(dataset, PAPER, seed, groups) for seed in range(4)}) == 4

    def test_four_equal_photographs_still_fill_three_parts(self) -> None:
        dataset = dataset_of([40, 40])
        assert sizes(make_split(dataset, PAPER, 0, [str(i % 4) for i in range(80)]), dataset) == [(20, 10, 10)] * 2

    def test_too_few_groups_are_refused_with_a_way_out(self) -> None:
        with pytest.raises(InputError, match=r"no image of class 'class0'.* in 2 groups.*do not group"):
            make_split(dataset_of([10, 10]), PAPER, 0, [str(i % 2) for i in range(20)])

    @pytest.mark.skipif(not REAL_SET.is_dir(), reason="the real photographs (../shared/data) are not here")
    def test_real_photographs_are_divided_near_the_ratio(self) -> None:
        dataset = load_dataset(REAL_SET)
        groups = group_keys(dataset, "source")
        assert groups is not None
        for seed in range(3):
            split = make_split(dataset, PAPER, seed, groups)
            assert_partition(split, dataset)
            assert_groups_whole(split, groups)
            assert all(abs(part / 300 - share) < 0.03 for parts in sizes(split, dataset) for part, share in zip(parts, PAPER, strict=True))


class TestFolds:
    @given(st.lists(st.integers(30, 90), min_size=2, max_size=3), st.integers(3, 10), seeds)
    def test_every_image_tests_once_and_validates_once_and_classes_stay_even(self, class_sizes: list[int], k: int, seed: int) -> None:
        dataset = dataset_of(class_sizes)
        folds = make_folds(dataset, k, seed)
        assert len(folds) == k
        for fold in folds:
            assert_partition(fold, dataset)
            for total, (_, val, test) in zip(class_sizes, sizes(fold, dataset), strict=True):
                assert abs(val - total / k) < 1
                assert abs(test - total / k) < 1
        for name in ("val", "test"):
            assert sorted(i for fold in folds for i in fold.indices(name)) == list(range(len(dataset.samples)))
        assert [fold.val for fold in folds] == [fold.test for fold in folds[1:] + folds[:1]]
        assert make_folds(dataset, k, seed) == folds

    @given(st.integers(30, 60), st.integers(3, 5), seeds)
    def test_no_group_is_on_two_sides_of_any_fold(self, num_groups: int, k: int, seed: int) -> None:
        dataset = dataset_of([6 * num_groups, 6 * num_groups])
        groups = [f"photo{i}" for i in np.random.default_rng(seed).integers(num_groups, size=len(dataset.samples))]
        for fold in make_folds(dataset, k, seed, groups):
            assert_partition(fold, dataset)
            assert_groups_whole(fold, groups)

    def test_grouped_folds_are_as_even_as_those_of_scikit_learn(self) -> None:
        from sklearn.model_selection import StratifiedGroupKFold

        dataset = dataset_of([400, 600])
        groups = [f"photo{int((i % 400) ** 0.62)}" for i in range(1000)]
        truth = np.array([sample.label for sample in dataset.samples])

        def worst(tests: Sequence[Sequence[int]]) -> float:
            return max(abs((truth[list(part)] == label).mean() - share) for part in tests for label, share in ((0, 0.4), (1, 0.6)))

        theirs = [part for _, part in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(truth, truth, groups)]
        ours = [fold.test for fold in make_folds(dataset, 5, 0, groups)]
        assert worst(ours) <= worst(theirs) + 0.01
        assert max(map(len, ours)) - min(map(len, ours)) <= max(map(len, theirs)) - min(map(len, theirs)) + 10

    def test_another_seed_is_another_division(self) -> None:
        dataset = dataset_of([30, 30])
        assert len({fold.digest(dataset) for seed in range(3) for fold in make_folds(dataset, 5, seed)}) == 15

    @pytest.mark.parametrize(("k", "seed", "message"), [(2, 0, "at least 3 .* got 2"), (5, -1, "seed .* got -1")])
    def test_numbers_that_make_no_folds_are_refused(self, k: int, seed: int, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make_folds(dataset_of([30, 30]), k, seed)

    def test_a_fold_without_a_class_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"at 5 folds the (val|test) split would have no image of class 'class1'"):
            make_folds(dataset_of([30, 4]), 5, 0)

    def test_a_divided_folder_has_no_folds(self) -> None:
        with pytest.raises(ConfigError, match="divided into train, val and test"):
            make_folds(TestFixed.DATASET, 3, 0)


class TestFixed:
    DATASET = ImageDataset(Path(), ("a", "b"), dataset_of([3, 3]).samples, {"train": (0, 3), "val": (1, 4), "test": (2, 5)})

    def test_a_divided_folder_stays_as_it_is(self) -> None:
        assert make_split(self.DATASET, PAPER, seed=7) == Split((0, 3), (1, 4), (2, 5))
        assert make_split(self.DATASET, PAPER, 7, ["x", "y", "z", "x", "y", "z"]) == Split((0, 3), (1, 4), (2, 5))

    def test_a_group_on_two_sides_of_a_divided_folder_is_refused(self) -> None:
        with pytest.raises(InputError, match="group 'x' lies in train and in test"):
            make_split(self.DATASET, PAPER, 7, ["x", "y", "x", "x", "y", "z"])


class TestSplit:
    def test_indices_by_name(self) -> None:
        split = Split((0,), (1, 2), (3,))
        assert [split.indices(name) for name in SPLIT_NAMES] == [(0,), (1, 2), (3,)]
        with pytest.raises(ConfigError, match="train, val, test; got 'digest'"):
            split.indices("digest")

    def test_counts_name_classes_and_show_zeros(self) -> None:
        assert Split((0, 1), (2,), ()).counts(dataset_of([2, 1])) == {
            "train": {"class0": 2, "class1": 0},
            "val": {"class0": 0, "class1": 1},
            "test": {"class0": 0, "class1": 0},
        }

    def test_the_digest_is_of_the_membership_alone(self) -> None:
        here = dataset_of([2, 2])
        moved = ImageDataset(
            Path("elsewhere"),
            here.labels,
            tuple(Sample("elsewhere" / s.path, s.relative, s.label) for s in here.samples),
        )
        split = Split((0, 2), (1,), (3,))
        assert split.digest(here) == split.digest(moved)
        assert split.digest(here) != Split((0, 2), (3,), (1,)).digest(here)
