"""Features: computed once, independent of their neighbours, and never wrong because a cache is damaged."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hqtl_common import PreprocessSpec
from hqtl_common.errors import ConfigError
from hqtl_common.preprocess import preprocess
from training.backbones import Backbone, load_backbone
from training.data import Sample, content_hashes
from training.decode import decode_batches
from training.features import BATCH_SIZE, FeatureCache, FeatureTable, default_cache_folder, extract_features

SPEC = PreprocessSpec(size=32)
WIDTH = 6


class Pool(nn.Module):
    """Pixels → mean and maximum per channel; counts the images it really sees."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.batches: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        self.images += int((pixels.flatten(1).abs().sum(1) > 0).sum())
        return torch.cat([pixels.mean((2, 3)), pixels.amax((2, 3))], dim=1)


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def backbone(pool: Pool) -> Backbone:
    return Backbone("pool", "none", "0" * 64, WIDTH, pool)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """70 different images: three batches, the last one short."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(70):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return sorted(folder.iterdir())


def samples_of(paths: list[Path]) -> tuple[list[Sample], list[str]]:
    samples = [Sample(path, path.name, 0) for path in paths]
    return samples, content_hashes(samples)


def extract(paths: list[Path], backbone: Backbone, folder: Path | None = None, **options: Any) -> FeatureTable:
    cache = None if folder is None else FeatureCache(folder, backbone, SPEC)
    return extract_features(*samples_of(paths), backbone, SPEC, cache=cache, **options)


def expected(paths: list[Path]) -> np.ndarray:
    pixels = np.stack([preprocess(path, SPEC) for path in paths])
    return np.concatenate([pixels.mean((2, 3)), pixels.max((2, 3))], axis=1)


def test_features_are_those_of_the_network_in_order(photos: list[Path], backbone: Backbone, pool: Pool) -> None:
    table = extract(photos[::-1], backbone)
    np.testing.assert_allclose(table.features, expected(photos[::-1]), atol=1e-5)
    assert (table.features.dtype, table.errors, table.num_cached) == (np.float32, {}, 0)
    assert pool.images == 70
    assert set(pool.batches) == {BATCH_SIZE}, "a short batch must be padded"


def test_second_call_computes_nothing(photos: list[Path], backbone: Backbone, pool: Pool, tmp_path: Path) -> None:
    first = extract(photos[:40], backbone, tmp_path)
    second = extract(photos[:40], backbone, tmp_path)
    assert pool.images == 40
    assert second.num_cached == 40
    assert second.features.tobytes() == first.features.tobytes()
    third = extract(photos, backbone, tmp_path)
    assert (pool.images, third.num_cached) == (70, 40)


def test_same_bytes_under_another_name_are_known(photos: list[Path], backbone: Backbone, pool: Pool, tmp_path: Path) -> None:
    extract(photos[:1], backbone, tmp_path / "cache")
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(photos[0].read_bytes())
    assert extract([copy], backbone, tmp_path / "cache").num_cached == 1


def test_duplicates_are_computed_once_and_counted_as_progress(photos: list[Path], backbone: Backbone, pool: Pool, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [photos[0], photos[1], photos[0], photos[0], broken, broken]
    steps: list[int] = []
    table = extract(paths, backbone, progress=steps.append)
    assert pool.images == 2
    assert len({table.features[i].tobytes() for i in (0, 2, 3)}) == 1
    assert sorted(table.errors) == [4, 5]
    assert sum(steps) == 6


def test_progress_counts_every_image_once(photos: list[Path], backbone: Backbone, tmp_path: Path) -> None:
    extract(photos[:10], backbone, tmp_path)
    steps: list[int] = []
    extract(photos, backbone, tmp_path, progress=steps.append)
    assert steps == [10, 32, 28]


def test_unreadable_images_are_reported_and_the_rest_is_done(photos: list[Path], backbone: Backbone, tmp_path: Path) -> None:
    cut, gone = tmp_path / "cut.png", tmp_path / "gone.png"
    cut.write_bytes(photos[0].read_bytes()[:200])
    gone.write_bytes(b"soon gone")
    samples, hashes = samples_of([cut, photos[1], gone, photos[2]])
    gone.unlink()
    cache = FeatureCache(tmp_path / "cache", backbone, SPEC)
    table = extract_features(samples, hashes, backbone, SPEC, cache=cache)
    assert sorted(table.errors) == [0, 2]
    assert "damaged or cut off" in table.errors[0]
    assert "gone.png" in table.errors[2]
    assert not table.features[[0, 2]].any()
    np.testing.assert_allclose(table.features[[1, 3]], expected(photos[1:3]), atol=1e-5)
    assert len(cache.get(hashes)) == 2, "a failure must not be cached"


def test_no_image_at_all(backbone: Backbone) -> None:
    table = extract([], backbone)
    assert table.features.shape == (0, WIDTH)


@pytest.fixture(scope="module")
def real_backbone() -> Backbone:
    return load_backbone("resnet18", "none")


def test_feature_does_not_depend_on_its_neighbours(photos: list[Path], real_backbone: Backbone) -> None:
    """Bit for bit: alone, in a full batch and at another place of the batch."""
    spec = PreprocessSpec(size=64)

    def features(paths: list[Path]) -> np.ndarray:
        return extract_features(*samples_of(paths), real_backbone, spec).features

    together = features(photos[:BATCH_SIZE])
    for index in (0, 1, 13, 31):
        assert features([photos[index]]).tobytes() == together[index].tobytes()
    assert features(photos[:BATCH_SIZE][::-1])[::-1].tobytes() == together.tobytes()


def test_nothing_in_the_backbone_changes(photos: list[Path], real_backbone: Backbone) -> None:
    before = {key: value.clone() for key, value in real_backbone.network.state_dict().items()}
    extract_features(*samples_of(photos[:3]), real_backbone, SPEC)
    after = real_backbone.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_key_changes_with_weights_and_preprocessing(backbone: Backbone, tmp_path: Path) -> None:
    variants = [
        (backbone, SPEC),
        (dataclasses.replace(backbone, digest="1" * 64), SPEC),
        (dataclasses.replace(backbone, name="other"), SPEC),
        (backbone, PreprocessSpec(size=33)),
        (backbone, PreprocessSpec(size=32, mean=(0.0, 0.0, 0.0))),
    ]
    assert len({FeatureCache(tmp_path, *variant).path for variant in variants}) == len(variants)
    assert FeatureCache(tmp_path, backbone, SPEC).path == FeatureCache(tmp_path, backbone, PreprocessSpec(size=32)).path


ROWS = [(f"{index:064d}", np.full(WIDTH, index, dtype=np.float32)) for index in range(1200)]


@pytest.fixture
def cache(backbone: Backbone, tmp_path: Path) -> FeatureCache:
    cache = FeatureCache(tmp_path / "deep" / "folder", backbone, SPEC)
    cache.put(ROWS)
    return cache


def execute(cache: FeatureCache, *statement: Any) -> None:
    with sqlite3.connect(cache.path) as connection:
        connection.execute(*statement)
    connection.close()


def test_what_is_put_is_got(cache: FeatureCache) -> None:
    found = cache.get([key for key, _ in ROWS] + ["unknown"])
    assert sorted(found) == [key for key, _ in ROWS]
    assert all(np.array_equal(found[key], value) for key, value in ROWS)
    assert cache.size_bytes > 4 * WIDTH * len(ROWS)


@pytest.mark.parametrize(
    "statement",
    [
        ("UPDATE features SET value = ? WHERE key = ?", np.zeros(WIDTH, "<f4").tobytes(), ROWS[3][0]),
        ("UPDATE features SET value = ? WHERE key = ?", np.zeros(WIDTH - 1, "<f4").tobytes(), ROWS[3][0]),
        ("UPDATE features SET value = ? WHERE key = ?", 5, ROWS[3][0]),
        ("UPDATE features SET digest = ? WHERE key = ?", b"x" * 16, ROWS[3][0]),
        ("DELETE FROM features WHERE key IN (?, ?)", "", ROWS[3][0]),
        ("UPDATE features SET value = (SELECT value FROM features WHERE key = ?) WHERE key = ?", ROWS[4][0], ROWS[3][0]),
    ],
)
def test_corrupt_row_counts_as_absent(cache: FeatureCache, statement: tuple[Any, ...]) -> None:
    execute(cache, statement[0], statement[1:])
    assert sorted(cache.get([key for key, _ in ROWS[:6]])) == [ROWS[i][0] for i in (0, 1, 2, 4, 5)]
    cache.put(ROWS[3:4])
    assert len(cache.get([key for key, _ in ROWS[:6]])) == 6


def test_corrupt_row_is_computed_again(photos: list[Path], backbone: Backbone, pool: Pool, tmp_path: Path) -> None:
    good = extract(photos[:5], backbone, tmp_path).features
    key = samples_of(photos[2:3])[1][0]
    execute(FeatureCache(tmp_path, backbone, SPEC), "UPDATE features SET value = zeroblob(24) WHERE key = ?", (key,))
    again = extract(photos[:5], backbone, tmp_path)
    assert (again.num_cached, pool.images) == (4, 6)
    assert again.features.tobytes() == good.tobytes()


def scramble(path: Path) -> None:
    """Damage every page but the first, so that the file still opens."""
    data = bytearray(path.read_bytes())
    for offset in range(4096, len(data), 1000):
        data[offset : offset + 400] = os.urandom(400)
    path.write_bytes(bytes(data))


DAMAGES = {
    "no database": lambda path: path.write_bytes(b"garbage" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "scrambled": scramble,
    "other table": lambda path: _replace_table(path),
}


def _replace_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE features; CREATE TABLE features (other TEXT);")
    connection.close()


@pytest.mark.parametrize("first", ["open", "get", "put"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupt_file_is_set_aside(cache: FeatureCache, backbone: Backbone, damage: str, first: str) -> None:
    """Whatever is done first with the damaged file, nothing wrong is read and everything works afterwards."""
    DAMAGES[damage](cache.path)
    if first == "open":
        cache = FeatureCache(cache.path.parent, backbone, SPEC)
    if first == "put":
        cache.put(ROWS[:5])
    found = cache.get([key for key, _ in ROWS])
    assert all(np.array_equal(value, ROWS[int(key)][1]) for key, value in found.items())
    cache.put(ROWS)
    assert len(FeatureCache(cache.path.parent, backbone, SPEC).get([key for key, _ in ROWS])) == len(ROWS)


def test_file_that_is_set_aside_is_kept(cache: FeatureCache) -> None:
    cache.path.write_bytes(b"garbage" * 1000)
    assert cache.get([ROWS[0][0]]) == {}
    assert cache.path.with_suffix(".corrupt").read_bytes() == b"garbage" * 1000


KILLED_WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA cache_size=1")  # so that pages reach the file before the end of the transaction
rows = [(str(index), bytes(24), bytes(16)) for index in range(5000)]
connection.executemany("INSERT INTO features VALUES (?, ?, ?)", rows)
connection.execute("UPDATE features SET value = zeroblob(24)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_remains_of_a_killed_writer_do_no_harm(cache: FeatureCache) -> None:
    """What it had not committed is rolled back; beside a damaged file its journal must not be played back either."""
    journal = cache.path.with_name(cache.path.name + "-journal")
    for damaged in (False, True):
        killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(cache.path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert journal.stat().st_size > 0
        if damaged:
            cache.path.write_bytes(b"garbage" * 1000)
            cache.put(ROWS)
        found = cache.get([key for key, _ in ROWS] + ["0", "4999"])
        assert sorted(found) == [key for key, _ in ROWS]
        assert all(np.array_equal(found[key], value) for key, value in ROWS)
        assert not journal.exists()


def test_busy_or_full_cache_is_a_clear_error_and_stays(cache: FeatureCache, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.features._TIMEOUT_S", 0.1)
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("DELETE FROM features WHERE key = 'nothing'")
    for action in (lambda: cache.put(ROWS[:1]), lambda: FeatureCache(cache.path.parent, backbone, SPEC).put(ROWS[:1])):
        with pytest.raises(ConfigError, match=r"feature cache .*locked.*--cache-dir"):
            action()
    holder.execute("ROLLBACK")
    holder.close()
    assert len(cache.get([key for key, _ in ROWS])) == len(ROWS)
    assert not list(cache.path.parent.glob("*.corrupt"))


def test_folder_that_cannot_be_made_is_a_clear_error(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"feature cache .*--cache-dir"):
        FeatureCache(tmp_path / "file" / "cache", backbone, SPEC)


def test_several_writers_share_one_cache(backbone: Backbone, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            own = FeatureCache(tmp_path, backbone, SPEC)
            for start in range(part * 300, part * 300 + 300, 30):
                own.put(ROWS[start : start + 30])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(FeatureCache(tmp_path, backbone, SPEC).get([key for key, _ in ROWS])) == len(ROWS)


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HQTL_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache_folder() == Path("/a")
    monkeypatch.delenv("HQTL_CACHE")
    assert default_cache_folder() == Path("/b/hqtl")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_folder() == Path("/home/me/.cache/hqtl")


@pytest.mark.parametrize("batch_size", [1, 7, 70, 100])
def test_batches_come_in_order_and_whole(photos: list[Path], tmp_path: Path, batch_size: int) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [*photos[:5], broken, *photos[5:], tmp_path / "missing.png"]
    batches = list(decode_batches(paths, SPEC, batch_size))
    assert [len(batch.positions) + len(batch.errors) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [position for batch in batches for position in batch.positions] == [i for i in range(72) if i not in (5, 71)]
    assert sorted(Counter(position for batch in batches for position in batch.errors)) == [5, 71]
    for batch in batches:
        assert batch.pixels.shape == (len(batch.positions), 3, 32, 32)
        for position, pixels in zip(batch.positions, batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels, preprocess(paths[position], SPEC))


def test_decoding_stays_a_few_batches_ahead(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def spy(path: Path, spec: PreprocessSpec) -> np.ndarray:
        started.append(path)
        return preprocess(path, spec)

    monkeypatch.setattr("training.decode.preprocess", spy)
    batches = decode_batches(photos, SPEC, 5)
    next(batches)
    assert len(started) <= 15, "memory must not grow with the folder"
    batches.close()


def test_other_errors_than_bad_images_are_not_swallowed(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, spec: PreprocessSpec) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr("training.decode.preprocess", fail)
    with pytest.raises(ZeroDivisionError):
        list(decode_batches(photos[:2], SPEC, 2))
