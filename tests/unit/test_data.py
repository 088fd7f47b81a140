"""Reading a folder of labelled images: order, refusals, content hashes and groups."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hqtl_common.errors import ConfigError, InputError
from training.data import ImageDataset, content_hashes, dataset_digest, group_keys, load_dataset


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def relatives(dataset: ImageDataset) -> list[str]:
    return [sample.relative for sample in dataset.samples]


def digest(root: Path) -> str:
    dataset = load_dataset(root)
    return dataset_digest(dataset, content_hashes(dataset.samples))


class TestLayout:
    def test_classes_and_samples_are_sorted_whatever_the_order_of_creation(self, tmp_path: Path) -> None:
        plant(tmp_path, "sound/b.png", "crack/z.jpg", "crack/deep/er/a.TIF", "sound/a.webp", "edge/q.bmp", "crack/c.jpeg")
        dataset = load_dataset(tmp_path)
        assert dataset.labels == ("crack", "edge", "sound")
        assert relatives(dataset) == sorted(relatives(dataset))
        assert [(s.relative, dataset.labels[s.label]) for s in dataset.samples[1:3]] == [
            ("crack/deep/er/a.TIF", "crack"),
            ("crack/z.jpg", "crack"),
        ]
        assert all(sample.path.is_file() for sample in dataset.samples)
        assert dataset.fixed_split is None

    def test_only_visible_regular_image_files_count(self, tmp_path: Path) -> None:
        plant(
            tmp_path,
            "a/1.png",
            "b/2.png",
            "a/.hidden.png",
            "a/.cache/3.png",
            ".git/4.png",
            "a/notes.txt",
            "a/png",
            "loose.png",
        )
        os.mkfifo(tmp_path / "a" / "pipe.png")
        (tmp_path / "a" / "dir.png").mkdir()
        assert relatives(load_dataset(tmp_path)) == ["a/1.png", "b/2.png"]

    def test_links_to_folders_are_not_followed_but_links_to_files_are(self, tmp_path: Path) -> None:
        plant(tmp_path, "set/a/1.png", "set/b/2.png", "elsewhere/3.png")
        (tmp_path / "set/a/loop").symlink_to(tmp_path / "set")
        (tmp_path / "set/linked_class").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set/b/linked.png").symlink_to(tmp_path / "elsewhere/3.png")
        assert relatives(load_dataset(str(tmp_path / "set"))) == ["a/1.png", "b/2.png", "b/linked.png"]

    def test_a_name_that_is_no_text_is_read_and_hashed(self, tmp_path: Path) -> None:
        plant(tmp_path, "a/1.png", "b/2.png")
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(b"x")
        assert len(load_dataset(tmp_path).samples) == 3
        assert len(digest(tmp_path)) == 64

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ((), r"0 class folder.*DATA/crack/a\.png"),
            (("1.png", "2.jpg"), "0 class folder.*2 image.*loose"),
            (("a/1.png",), "1 class folder"),
            (("a/1.png", "b/readme.txt", "c/.x.png"), "no image in b, c"),
        ],
    )
    def test_a_folder_without_two_full_classes_is_refused(self, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_dataset(plant(tmp_path, *names))

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no folder .*nowhere"):
            load_dataset(tmp_path / "nowhere")

    @pytest.mark.parametrize("locked", [".", "a/deep"])
    def test_an_unreadable_folder_is_an_error_not_a_gap(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str) -> None:
        plant(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png")

        def refusing(real: Callable[[str | Path], object]) -> Callable[[str | Path], object]:
            def call(path: str | Path) -> object:
                if Path(path) == tmp_path / locked:
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path)

            return call

        monkeypatch.setattr(os, "scandir", refusing(os.scandir))
        monkeypatch.setattr(os, "listdir", refusing(os.listdir))
        with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
            load_dataset(tmp_path)


class TestFixedSplit:
    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_train_val_test_folders_are_the_split(self, tmp_path: Path, val: str) -> None:
        plant(tmp_path, *(f"{part}/{label}/{i}.png" for part in ("train", val, "test") for label in "ab" for i in (1, 2)))
        dataset = load_dataset(tmp_path)
        assert dataset.labels == ("a", "b")
        assert dataset.fixed_split is not None
        assert list(dataset.fixed_split) == ["train", "val", "test"]
        assert {dataset.samples[i].relative for i in dataset.fixed_split["val"]} == {f"{val}/{x}/{i}.png" for x in "ab" for i in (1, 2)}
        assert sorted(i for part in dataset.fixed_split.values() for i in part) == list(range(12))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"), "but not val"),
            (("val/a/1.png", "other/1.png"), "has the folder val but not train, test"),
            (tuple(f"{p}/{c}/1.png" for p in ("train", "val", "test", "more") for c in "ab"), "beside: more"),
            (tuple(f"{p}/{c}/1.png" for p in ("train", "val", "valid", "test") for c in "ab"), "beside: val$"),
            (
                tuple(f"{p}/{c}/1.png" for p, cs in (("train", "abc"), ("val", "abc"), ("test", "ac")) for c in cs),
                "test lacks the class b",
            ),
        ],
    )
    def test_an_incomplete_division_is_refused(self, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_dataset(plant(tmp_path, *names))


class TestDigests:
    def test_content_hashes_are_sha256_in_sample_order(self, tmp_path: Path) -> None:
        names = [f"{label}/{i:02d}.png" for label in "ab" for i in range(20)]
        hashes = content_hashes(load_dataset(plant(tmp_path, *names)).samples)
        assert hashes == [hashlib.sha256(name.encode()).hexdigest() for name in names]

    def test_a_file_that_vanished_is_named(self, tmp_path: Path) -> None:
        dataset = load_dataset(plant(tmp_path, "a/1.png", "b/2.png"))
        (tmp_path / "b/2.png").unlink()
        with pytest.raises(InputError, match=r"cannot read .*2\.png"):
            content_hashes(dataset.samples)

    def test_the_digest_moves_with_the_folder_and_changes_with_anything_in_it(self, tmp_path: Path) -> None:
        original = plant(tmp_path / "here", "a/1.png", "b/2.png")
        before = digest(original)
        copy = Path(shutil.copytree(original, tmp_path / "there"))
        assert digest(copy) == before
        (copy / "a/1.png").rename(copy / "a/3.png")
        renamed = digest(copy)
        (copy / "a/3.png").write_bytes(b"other")
        assert len({before, renamed, digest(copy)}) == 3

    def test_the_digest_knows_the_label(self, tmp_path: Path) -> None:
        dataset = load_dataset(plant(tmp_path, "a/1.png", "b/2.png"))
        swapped = ImageDataset(dataset.root, ("b", "a"), dataset.samples)
        hashes = content_hashes(dataset.samples)
        assert dataset_digest(dataset, hashes) != dataset_digest(swapped, hashes)

    def test_the_digest_does_not_know_the_order(self, tmp_path: Path) -> None:
        dataset = load_dataset(plant(tmp_path, "a/1.png", "b/2.png"))
        turned = ImageDataset(dataset.root, dataset.labels, dataset.samples[::-1])
        assert dataset_digest(turned, content_hashes(turned.samples)) == digest(tmp_path)


class TestGroups:
    NAMES = ("crack/w1_0000_0104.png", "crack/w2_0000_0104.png", "sound/w1_0104_0000.png", "sound/w3.png")

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return plant(tmp_path, *self.NAMES)

    def test_none_is_no_grouping(self, root: Path) -> None:
        assert group_keys(load_dataset(root), "none") is None

    def test_source_is_the_name_before_the_position_across_classes(self, root: Path) -> None:
        plant(root, "sound/w4_000_0001.png", "sound/w5_0000_0001_x.png", "sound/_0000_0001.png")
        dataset = load_dataset(root)
        keys = dict(zip(relatives(dataset), group_keys(dataset, "source") or (), strict=True))
        assert [keys[name] for name in self.NAMES] == ["w1", "w2", "w1", "sound/w3.png"]
        assert all(keys[name] == name for name in keys if name not in self.NAMES)

    def test_source_prefers_patches_csv(self, root: Path) -> None:
        rows = "".join(f"{name},photo{i // 2},9\n" for i, name in enumerate(self.NAMES))
        (root / "patches.csv").write_text("\ufefffile,source,x\n" + rows, encoding="utf-8")
        assert group_keys(load_dataset(root), "source") == ["photo0", "photo0", "photo1", "photo1"]

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("file,source\ncrack/w1_0000_0104.png,p\n", "no source for crack/w2_0000_0104.png"),
            ("file,source\n" + "".join(f"{name},\n" for name in NAMES), "no source for crack/w1_0000_0104.png"),
            ("", "no source for crack/w1_0000_0104.png"),
            ("name,photo\na,b\n", "needs the columns file and source; got name, photo"),
            ('file,source\n"' + "x" * 200_000 + '",p\n', "cannot read .*patches.csv"),
        ],
    )
    def test_a_table_that_does_not_serve_is_refused(self, root: Path, table: str, message: str) -> None:
        (root / "patches.csv").write_text(table)
        with pytest.raises(InputError, match=message):
            group_keys(load_dataset(root), "source")

    @pytest.mark.parametrize(
        ("pattern", "keys"),
        [
            (r"w\d", ["w1", "w2", "w1", "w3"]),
            (r"/w(\d)", ["1", "2", "1", "3"]),
            (r"w(1)|w(\d)", ["1", "2", "1", "3"]),
        ],
    )
    def test_a_pattern_gives_its_group_or_its_match(self, root: Path, pattern: str, keys: list[str]) -> None:
        assert group_keys(load_dataset(root), pattern) == keys

    @pytest.mark.parametrize("pattern", [r"w\d_", r"(w\d_)?"])
    def test_a_pattern_must_find_something_in_every_image(self, root: Path, pattern: str) -> None:
        with pytest.raises(InputError, match=r"finds nothing in (sound/w3|crack/w1_0000_0104)\.png"):
            group_keys(load_dataset(root), pattern)

    def test_a_broken_pattern_is_a_wrong_option(self, root: Path) -> None:
        with pytest.raises(ConfigError, match="regular expression; got '\\('"):
            group_keys(load_dataset(root), "(")
