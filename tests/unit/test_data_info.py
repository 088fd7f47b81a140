"""What a survey finds: counts, broken files, images that show the same, leakage between splits."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from hqtl_common.errors import InputError
from training.contact_sheet import draw_contact_sheet
from training.data_info import survey
from training.duplicates import Fingerprint, fingerprint, joined, near_pairs
from training.synth import SynthSpec, synth_patch


def patch(number: int, crack: bool = True) -> Image.Image:
    return Image.fromarray(synth_patch(SynthSpec(size=128), np.random.default_rng(number), crack)[0]).convert("RGB")


def again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as opened:
        return opened.convert("RGB")


def save(root: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


class TestNear:
    @pytest.mark.parametrize("number", range(4))
    @pytest.mark.parametrize(
        "change",
        [
            lambda image: again(image, 60),
            lambda image: image.resize((100, 100)),
            lambda image: image.resize((300, 300)),
            lambda image: ImageEnhance.Brightness(image).enhance(1.15),
            lambda image: ImageEnhance.Contrast(image).enhance(0.8),
            lambda image: image.convert("L").convert("RGB"),
        ],
    )
    def test_the_same_picture_is_known_again(self, number: int, change: object) -> None:
        image = patch(number)
        assert near_pairs([fingerprint(image), fingerprint(patch(99)), fingerprint(change(image))]) == [(0, 2)]  # type: ignore[operator]

    def test_different_patches_of_one_surface_are_not_taken_for_one(self) -> None:
        assert near_pairs([fingerprint(patch(number, crack=number % 2 == 0)) for number in range(60)]) == []

    def test_deep_images_are_compared_as_well(self) -> None:
        image = patch(1).convert("L")
        deep = Image.fromarray(np.asarray(image).astype(np.float32) / 255)
        assert near_pairs([fingerprint(deep), fingerprint(image.convert("RGB"))]) == [(0, 1)]

    def test_blank_images_show_nothing_to_compare(self) -> None:
        assert near_pairs([fingerprint(Image.new("RGB", (50, 50), level)) for level in ("black", "grey", "white")]) == []
        assert near_pairs([]) == []

    @given(st.integers(0, 10_000), st.integers(2, 25))
    def test_no_pair_is_missed(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        thumbnail = rng.integers(0, 256, 1024, dtype=np.uint8)
        bits = [rng.integers(0, 256, 32, dtype=np.uint8)]
        for _ in range(count - 1):
            flipped = np.unpackbits(bits[rng.integers(len(bits))])
            flipped[rng.choice(256, rng.integers(0, 30), replace=False)] ^= 1
            bits.append(np.packbits(flipped))
        expected = [(i, j) for i, j in combinations(range(count), 2) if np.unpackbits(bits[i] ^ bits[j]).sum() <= 15]
        assert near_pairs([Fingerprint(item, thumbnail) for item in bits]) == expected

    def test_pictures_that_differ_in_brightness_only_by_hash_are_told_apart_by_correlation(self) -> None:
        bits = np.zeros(32, np.uint8)
        ramp = np.arange(1024) // 4
        same, other = ramp.astype(np.uint8), (ramp[::-1]).astype(np.uint8)
        assert near_pairs([Fingerprint(bits, same), Fingerprint(bits, other)]) == []

    def test_sets_are_joined_through_common_members(self) -> None:
        assert joined(7, [(5, 1), (3, 5), (2, 6), (4, 4)]) == [[1, 3, 5], [2, 6]]


class TestSurvey:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        images = {f"{label}/{number:02d}.png": patch(number + 50 * (label == "b")) for label in "ab" for number in range(10)}
        images["a/same.png"] = images["a/00.png"]
        images["b/again.jpg"] = again(images["a/01.png"], 70)
        images["b/deep.tif"] = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 30), dtype=np.uint16))
        save(tmp_path, images)
        (tmp_path / "a/broken.png").write_bytes((tmp_path / "a/05.png").read_bytes()[:-300])
        return tmp_path

    def test_everything_is_counted(self, root: Path) -> None:
        steps: list[int] = []
        found = survey(root, progress=steps.append)
        assert sum(steps) == 24
        assert found.counts == {"all": {"a": 12, "b": 12}}
        assert found.sizes == {"128×128": 22, "30×40": 1}
        assert found.kinds == {"PNG RGB, 8 bits": 21, "JPEG RGB, 8 bits": 1, "TIFF I;16, 16 bits or more": 1}
        assert list(found.broken) == ["a/broken.png"]
        assert "damaged or cut off" in found.broken["a/broken.png"]
        assert found.num_sources is None
        assert found.leaks == []

    def test_equal_and_similar_files_are_named_with_their_classes(self, root: Path) -> None:
        found = survey(root)
        assert [(item.kind, item.files) for item in found.duplicates] == [
            ("identical", ("a/00.png", "a/same.png")),
            ("near", ("a/01.png", "b/again.jpg")),
        ]
        assert [item.classes for item in found.conflicts] == [("a", "b")]
        answer = found.to_dict()
        assert (answer["images"], answer["label_conflicts"], answer["across_sources"]) == (24, 1, 0)

    def test_equal_files_in_a_set_that_only_looks_the_same_stay_equal(self, root: Path) -> None:
        save(root, {"b/alike.jpg": again(patch(0), 70)})
        (found, _) = survey(root).duplicates
        assert (found.kind, found.files, found.repeated) == ("near", ("a/00.png", "a/same.png", "b/alike.jpg"), 1)
        torn = [leak for seed in range(9) for leak in survey(root, "50/25/25", seed=seed).leaks]
        assert ("identical", "a/00.png", "a/same.png") in torn
        assert ("near", "a/same.png", "b/alike.jpg") in torn
        assert ("identical", "a/same.png", "b/alike.jpg") not in torn

    def test_leakage_is_looked_for_across_the_split_that_training_makes(self, root: Path) -> None:
        torn = {seed: survey(root, "50/25/25", seed=seed).leaks for seed in range(6)}
        assert ("near", "a/01.png", "b/again.jpg") in [leak for leaks in torn.values() for leak in leaks]
        assert any(not leaks for leaks in torn.values())
        grouped = survey(root, "50/25/25", r"(\d\d|same|again|deep|broken)", seed=1)
        assert sum(sum(counts.values()) for counts in grouped.counts.values()) == 24
        assert not [leak for leak in grouped.leaks if leak[0] == "identical"]  # a group with equal content is one group

    def test_sets_across_sources_are_found(self, root: Path) -> None:
        rows = [f"{path.relative_to(root).as_posix()},{path.stem}" for path in root.rglob("*.*")]
        (root / "patches.csv").write_text("file,source\n" + "\n".join(rows))
        found = survey(root, group_by="source")
        assert found.num_sources == len({row.split(",")[1] for row in rows})
        assert {item.sources for item in found.across_sources} == {("00", "same"), ("01", "again")}

    def test_a_divided_folder_is_looked_at_as_it_is(self, tmp_path: Path) -> None:
        images = {
            f"{part}/{label}/0.png": patch(10 * n + m) for n, part in enumerate(("train", "val", "test")) for m, label in enumerate("ab")
        }
        images["test/a/1.png"] = images["train/a/0.png"]
        found = survey(save(tmp_path, images))
        assert found.counts == {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}, "test": {"a": 2, "b": 1}}
        assert found.leaks == [("identical", "test/a/1.png", "train/a/0.png")]

    def test_a_split_that_cannot_be_made_is_refused(self, root: Path) -> None:
        with pytest.raises(InputError, match="no image of class"):
            survey(root, "98/1/1")

    def test_the_duplicates_of_the_real_sets(self, shared_data: Path) -> None:
        found = survey(shared_data / "dev/irit_pavement", "70/15/15", "source")
        identical = [item for item in found.duplicates if item.kind == "identical"]
        assert len(identical) == 25
        assert all(len(set(item.sources)) == 2 for item in identical)
        assert not [leak for leak in found.leaks if leak[0] == "identical"]


class TestSheet:
    def test_it_shows_each_class_and_skips_what_is_broken(self, tmp_path: Path) -> None:
        images = {
            f"{label}/{number}.png": Image.new("RGB", (20, 20), colour)
            for label, colour in zip("ab", ("red", "blue"), strict=True)
            for number in range(9)
        }
        images["a/deep.tif"] = Image.fromarray(np.full((20, 20), 30_000, np.uint16))
        root = save(tmp_path / "set", images)
        (root / "b/broken.png").write_bytes(b"no image")
        found = survey(root)
        for name in ("1.png", "2.png"):
            draw_contact_sheet(found.dataset, tmp_path / name, found.broken, per_class=10)
        assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
        with Image.open(tmp_path / "1.png") as opened:
            pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
        areas = [int((pixels == colour).all(axis=1).sum()) / 180**2 for colour in ((255, 0, 0), (0, 0, 255), (116, 116, 116))]
        assert areas == pytest.approx([9, 9, 1], rel=1e-3)  # the deep image is shown grey, not black
