"""Large images into labelled patches: pairing, labels, what is written, what goes wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import open_image
from training.cutting import CutReport, CutSpec, cut
from training.data import group_keys, load_dataset
from training.labelling import LabelRule, as_mask
from training.scans import Scan, find_scans

RNG = np.random.default_rng(0)
SMALL = LabelRule(crack_pixels=10)


def plant(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def photograph(folder: Path, name: str, *cracks: tuple[int, int], size: tuple[int, int] = (64, 96), kind: type = np.uint8) -> Scan:
    """An image of noise and its mask with squares of 5 × 5 crack pixels at (x, y)."""
    folder.mkdir(exist_ok=True)
    high = np.iinfo(kind).max
    tifffile.imwrite(folder / f"{name}.tif", RNG.integers(0, high + 1, size, dtype=kind), metadata=None)
    mask = np.zeros(size, np.uint8)
    for x, y in cracks:
        mask[y : y + 5, x : x + 5] = 255
    Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return Scan(folder / f"{name}.tif", name, folder / f"{name}_mask.png")


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "patches.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class TestScans:
    @pytest.mark.parametrize("mask", ["m/a.png", "m/a_mask.png", "m/a-mask.tif", "m/a_label.bmp", "m/a_gt.PNG"])
    def test_a_mask_is_found_by_its_name(self, tmp_path: Path, mask: str) -> None:
        plant(tmp_path, "i/a.jpg", "i/deep/b.jpg", "m/deep/b.png", mask)
        scans, aside = find_scans([tmp_path / "i"], tmp_path / "m")
        assert [(s.source, s.mask) for s in scans] == [("a", tmp_path / mask), ("deep-b", tmp_path / "m/deep/b.png")]
        assert aside == []

    def test_masks_beside_their_images_are_not_images(self, tmp_path: Path) -> None:
        plant(tmp_path, "a.jpg", "a_mask.png", "b.jpg")
        for masks in (tmp_path, None):
            scans, aside = find_scans([tmp_path], masks)
            assert [s.source for s in scans] == ["a", "b"]
            assert [s.mask for s in scans] == [tmp_path / "a_mask.png" if masks else None, None]
            assert aside == [tmp_path / "a_mask.png"]

    def test_a_name_that_only_sounds_like_a_mask_is_an_image(self, tmp_path: Path) -> None:
        plant(tmp_path, "i/face_mask.jpg", "m/face_mask.png")
        ((scan,), _) = find_scans([tmp_path / "i"], tmp_path / "m")
        assert (scan.source, scan.mask) == ("face_mask", tmp_path / "m/face_mask.png")

    def test_single_files(self, tmp_path: Path) -> None:
        plant(tmp_path, "a.jpg", "b.png", "x.png")
        assert find_scans([tmp_path / "a.jpg"], tmp_path / "x.png")[0] == [Scan(tmp_path / "a.jpg", "a", tmp_path / "x.png")]
        with pytest.raises(InputError, match="one mask, but there are 2 images"):
            find_scans([tmp_path / "a.jpg", tmp_path / "b.png"], tmp_path / "x.png")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ((), "no image in"),
            (("i/a.jpg", "i/a.png"), "both be the source 'a'"),
            (("i/a/b.jpg", "i/a-b.jpg"), "both be the source 'a-b'"),
            (("i/a.jpg", "m/a_mask.png", "m/a_gt.png"), "has 2 masks"),
        ],
    )
    def test_what_is_unclear_is_refused(self, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
        for folder in ("i", "m"):
            (tmp_path / folder).mkdir()
        plant(tmp_path, *names)
        with pytest.raises(InputError, match=message):
            find_scans([tmp_path / "i"], tmp_path / "m")

    def test_missing_folders_are_named(self, tmp_path: Path) -> None:
        plant(tmp_path, "a.jpg")
        with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
            find_scans([tmp_path / "nowhere"])
        with pytest.raises(InputError, match=r"no file or folder .*nowhere; expected masks"):
            find_scans([tmp_path], tmp_path / "nowhere")


class TestRule:
    @given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50), st.integers(0, 49))
    def test_a_patch_is_cracked_clear_or_neither(self, crack: int, ignored: int, least: int, most: int) -> None:
        if most >= least:
            with pytest.raises(ConfigError, match="clear pixels < crack pixels"):
                LabelRule(least, most)
            return
        cracked = LabelRule(least, most).cracked(crack, ignored)
        assert cracked is (True if crack >= least else False if crack + ignored <= most else None)

    def test_thresholds_and_values_to_ignore_are_counted(self) -> None:
        mask = np.array([[0, 100, 127], [128, 200, 255]], np.uint8)
        assert LabelRule().count(mask) == (3, 0)
        assert LabelRule(ignore_value=100).count(mask) == (3, 1)
        assert LabelRule(ignore_value=255).count(mask) == (2, 1)
        assert LabelRule(threshold=1, ignore_value=0).count(mask) == (5, 1)

    @pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 256}, {"ignore_value": 256}, {"clear_pixels": -1}])
    def test_impossible_values_are_refused(self, options: dict[str, int]) -> None:
        with pytest.raises(ConfigError):
            LabelRule(**options)

    def test_masks_of_any_kind_become_grey_levels(self) -> None:
        grey = np.array([[0, 100, 255]], np.uint8)
        assert np.array_equal(as_mask(grey), grey)
        assert np.array_equal(as_mask(np.repeat(grey[:, :, None], 3, 2)), grey)
        assert np.array_equal(as_mask(grey.astype(np.float32) / 255), grey)


class TestCut:
    SPEC = CutSpec(size=32, rule=SMALL)

    def test_patches_lie_in_their_class_with_a_table_of_their_origin(self, tmp_path: Path) -> None:
        scans = [photograph(tmp_path / "in", "a", (2, 2), (62, 40)), photograph(tmp_path / "in", "b", (40, 40))]
        report = cut(scans, tmp_path / "out", self.SPEC)
        # (62, 40) lies on the border of two patches: 10 of its pixels left, 15 right, both enough.
        assert report.patches == {"crack": 4, "no_crack": 8}
        assert (report.images, report.ambiguous, report.surplus, report.failed) == (2, 0, 0, {})
        rows = rows_of(tmp_path / "out")
        assert list(rows[0]) == ["file", "source", "x", "y", "crack_pixels", "class", "page"]
        cracked = {row["file"]: int(row["crack_pixels"]) for row in rows if row["class"] == "crack"}
        assert cracked == {
            "crack/a_0000_0000.png": 25,
            "crack/a_0032_0032.png": 10,
            "crack/a_0064_0032.png": 15,
            "crack/b_0032_0032.png": 25,
        }
        dataset = load_dataset(tmp_path / "out")
        assert {sample.relative for sample in dataset.samples} == {row["file"] for row in rows}
        sources = dict(zip((s.relative for s in dataset.samples), group_keys(dataset, "source") or (), strict=True))
        assert sources == {row["file"]: row["source"] for row in rows}
        (tmp_path / "out/patches.csv").unlink()
        assert group_keys(dataset, "source") == list(sources.values())
        assert json.loads((tmp_path / "out/cut.json").read_text())["options"]["size"] == 32

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_pixels_and_depth_are_kept(self, tmp_path: Path, kind: type) -> None:
        scan = photograph(tmp_path / "in", "a", (2, 2), kind=kind)
        cut([scan], tmp_path / "out", CutSpec(size=32, stride=16, rule=SMALL))
        image = tifffile.imread(scan.path)
        rows = rows_of(tmp_path / "out")
        assert len(rows) == 15
        for row in rows:
            x, y = int(row["x"]), int(row["y"])
            with Image.open(tmp_path / "out" / row["file"]) as patch:
                assert np.array_equal(np.asarray(patch), image[y : y + 32, x : x + 32])

    def test_twelve_bits_and_floats_keep_their_declared_range(self, tmp_path: Path) -> None:
        values = RNG.integers(0, 4096, (32, 32), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(281, "H", 1, 4095, True)], metadata=None)
        ranges = [(340, "f", 1, 0.0, True), (341, "f", 1, 4095.0, True)]
        tifffile.imwrite(tmp_path / "b.tif", values.astype(np.float32), extratags=ranges, metadata=None)
        cut(find_scans([tmp_path])[0], tmp_path / "out", self.SPEC, labelled=False)
        for name in ("a", "b"):
            patch = np.asarray(open_image((tmp_path / f"out/unsorted/{name}_0000_0000.png").read_bytes()))
            assert patch == pytest.approx(values / 4095, abs=1e-5)

    @pytest.mark.parametrize(("scale", "positions"), [(2.0, 24), (0.5, 2), (1.0, 6)])
    def test_the_scale_changes_the_window_and_counts_pixels_of_the_patch(self, tmp_path: Path, scale: float, positions: int) -> None:
        scan = photograph(tmp_path / "in", "a", (2, 2))
        cut([scan], tmp_path / "out", CutSpec(size=32, scale=scale, rule=LabelRule(crack_pixels=5)))
        rows = rows_of(tmp_path / "out")
        assert len(rows) == positions
        assert max(int(row["crack_pixels"]) for row in rows) == round(25 * scale**2)
        with Image.open(tmp_path / "out" / rows[0]["file"]) as patch:
            assert patch.size == (32, 32)

    def test_what_is_neither_is_dropped_and_counted(self, tmp_path: Path) -> None:
        scan = photograph(tmp_path / "in", "a", (2, 2), (62, 40))
        report = cut([scan], tmp_path / "out", CutSpec(size=32, rule=LabelRule(crack_pixels=15, clear_pixels=3)))
        assert (report.patches, report.ambiguous) == ({"crack": 2, "no_crack": 3}, 1)

    def test_ignored_pixels_make_a_patch_ambiguous_but_not_cracked(self, tmp_path: Path) -> None:
        scan = photograph(tmp_path / "in", "a", (2, 2))
        assert scan.mask is not None
        mask = np.asarray(Image.open(scan.mask)).copy()
        mask[40, 40] = 100
        Image.fromarray(mask).save(scan.mask)
        ignoring = CutSpec(size=32, rule=LabelRule(10, ignore_value=100))
        assert cut([scan], tmp_path / "kept", self.SPEC).ambiguous == 0
        assert cut([scan], tmp_path / "out", ignoring).ambiguous == 1

    def test_sound_patches_are_thinned_by_a_seeded_draw(self, tmp_path: Path) -> None:
        scans = [photograph(tmp_path / "in", name, (2, 2), size=(128, 128)) for name in "ab"]

        def sound(out: str, seed: int, ratio: float = 3.0) -> set[str]:
            report = cut(scans, tmp_path / out, CutSpec(size=32, rule=SMALL, max_ratio=ratio, seed=seed))
            assert report.patches == {"crack": 2, "no_crack": 2 * ratio}
            assert report.surplus == 30 - 2 * ratio
            return {row["file"] for row in rows_of(tmp_path / out) if row["class"] == "no_crack"}

        first = sound("1", 0)
        assert {name[9] for name in first} == {"a", "b"}
        assert sound("2", 0) == first
        assert sound("3", 1) != first

    def test_pages_of_a_stack_are_cut_one_by_one(self, tmp_path: Path) -> None:
        stack = RNG.integers(0, 256, (3, 32, 64), dtype=np.uint8)
        tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
        report = cut([Scan(tmp_path / "stack.tif", "stack")], tmp_path / "out", self.SPEC, labelled=False)
        assert report.patches == {"unsorted": 6}
        assert {(row["source"], row["page"]) for row in rows_of(tmp_path / "out")} == {("stack", str(page)) for page in range(3)}
        with Image.open(tmp_path / "out/unsorted/stack-p002_0032_0000.png") as patch:
            assert np.array_equal(np.asarray(patch), stack[2, :, 32:])

    def test_patches_sorted_by_hand_are_still_found_in_the_table(self, tmp_path: Path) -> None:
        scan = photograph(tmp_path / "in", "a", (2, 2))
        cut([scan], tmp_path / "out", self.SPEC, labelled=False)
        for number, path in enumerate(sorted((tmp_path / "out/unsorted").iterdir())):
            target = tmp_path / "out" / ("crack" if number == 0 else "no_crack") / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        (tmp_path / "out/unsorted").rmdir()
        assert group_keys(load_dataset(tmp_path / "out"), "source") == ["a"] * 6

    def test_positions_beyond_9999_are_grouped_by_name(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "long.tif", np.zeros((32, 10_100), np.uint8), metadata=None)
        cut([Scan(tmp_path / "long.tif", "long")], tmp_path / "out", CutSpec(size=32), labelled=False)
        assert (tmp_path / "out/unsorted/long_10068_0000.png").is_file()

    def test_progress_counts_images(self, tmp_path: Path) -> None:
        scans = [photograph(tmp_path / "in", name, (2, 2)) for name in "ab"]
        told: list[tuple[int, str]] = []
        cut(scans, tmp_path / "out", self.SPEC, progress=lambda steps, status: told.append((steps, status)))
        assert sum(steps for steps, _ in told) == 2
        assert (0, "b: 6 of 6 patches") in told


class TestTrouble:
    SPEC = TestCut.SPEC

    def scans(self, folder: Path) -> list[Scan]:
        return [photograph(folder, name, (2, 2)) for name in "abc"]

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda scan: scan.path.write_bytes(scan.path.read_bytes()[:-2000]), "file ends within row"),
            (lambda scan: scan.path.write_bytes(b"text"), "not a PNG"),
            (lambda scan: scan.mask.write_bytes(scan.mask.read_bytes()[:-30]), "damaged or cut off"),
            (lambda scan: Image.new("L", (96, 65)).save(scan.mask), "96 × 64 pixels on 1 page.*, its mask 96 × 65"),
            (lambda scan: tifffile.imwrite(scan.path, np.zeros((64, 96), np.float32), metadata=None), "value range of a float image"),
            (lambda scan: tifffile.imwrite(scan.path, np.zeros((20, 20), np.uint8), metadata=None), "20 × 20 pixels"),
        ],
    )
    def test_one_broken_image_is_named_and_the_others_are_cut(self, tmp_path: Path, harm: Any, message: str) -> None:
        scans = self.scans(tmp_path / "in")
        harm(scans[1])
        report = cut(scans, tmp_path / "out", self.SPEC)
        assert list(report.failed) == [str(scans[1].path)]
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(report.failed[str(scans[1].path)])
        assert report.patches == {"crack": 2, "no_crack": 10}
        assert {row["source"] for row in rows_of(tmp_path / "out")} == {"a", "c"}
        assert len(list((tmp_path / "out").rglob("*.png"))) == 12

    def test_an_image_without_a_mask_fails_by_name(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path / "in")
        report = cut([*scans[:2], Scan(scans[2].path, "c")], tmp_path / "out", self.SPEC)
        assert report.failed == {str(scans[2].path): "no mask with its name was found"}

    def test_a_mask_of_ones_is_pointed_out(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path / "in")
        mask = np.asarray(Image.open(str(scans[0].mask)))
        Image.fromarray(mask // 255).save(str(scans[0].mask))
        assert "no value reaches 128, the highest is 1" in "".join(cut(scans, tmp_path / "out", self.SPEC).warnings)
        right = CutSpec(size=32, rule=LabelRule(10, threshold=1))
        assert cut(scans, tmp_path / "right", right).patches["crack"] == 3

    def test_nothing_left_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path / "in")
        for scan in scans:
            scan.path.write_bytes(b"text")
        with pytest.raises(InputError, match=r"no patch is left: .*a\.tif"):
            cut(scans, tmp_path / "out", self.SPEC)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_no_crack_at_all_leaves_nothing_to_balance_against(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="0 are ambiguous, 6 were dropped as too many"):
            cut([photograph(tmp_path / "in", "a")], tmp_path / "out", CutSpec(size=32, rule=SMALL, max_ratio=2.0))

    def test_an_interruption_leaves_nothing(self, tmp_path: Path) -> None:
        def stop(steps: int, status: str) -> None:
            if status.startswith("b:"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cut(self.scans(tmp_path / "in"), tmp_path / "out", self.SPEC, progress=stop)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_a_folder_that_holds_something_is_refused_and_an_empty_one_filled(self, tmp_path: Path) -> None:
        scans = self.scans(tmp_path / "in")
        plant(tmp_path, "full/x.txt")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match="exists already"):
            cut(scans, tmp_path / "full", self.SPEC)
        assert isinstance(cut(scans, tmp_path / "empty", self.SPEC), CutReport)

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 4},
            {"stride": 0},
            {"stride": 300},
            {"scale": 0.0},
            {"class_names": ("a", "a")},
            {"class_names": ("a", "../b")},
            {"class_names": ("", "b")},
            {"max_ratio": 0.0},
            {"seed": -1},
        ],
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            CutSpec(**options)
