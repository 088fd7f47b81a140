"""Large images by tiles, duplicates, what photographs say about themselves, answers in doubt found again elsewhere, shards."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import image_to_pixels, open_image
from hqtl_common.records import InferenceBatch
from hqtl_common.tiles import tile_grid
from serving.errors import OutputError
from serving.photo_header import PhotoHeader
from serving.scoring import Outcome, Request, score_folder
from serving.scoring.facts import facts_of
from serving.scoring.half_done import HalfDone
from serving.scoring.heads import Part
from serving.scoring.listing import Batch
from serving.scoring.progress import Silent
from serving.scoring.seen import Seen
from serving.scoring.tile_pixels import Cut
from serving.scoring.tile_process import TileProcess
from serving.scoring.tiled import PictureReader, TileReader
from serving.scoring.unscored import deciding_tile
from tests.hostile import endless
from tests.tiny import tiny_bundle

FILES = ("scores.jsonl", "scores.csv", "tiles.jsonl", "tiles.csv", "summary.json", "state.json")
TILES = Request(tiles=0, overlap=24, batch_size=4)


def pattern(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Grey levels that differ from place to place."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 80 + 2, width // 80 + 2), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six files: deep, colour, small, odd, a copy and a broken one."""
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(pattern(500, 300).astype(np.uint16) * 257).save(folder / "deep" / "a16.tif")
    Image.fromarray(np.stack([pattern(650, 430, seed) for seed in (1, 2, 3)], axis=2)).save(folder / "b.png")
    Image.fromarray(pattern(100, 150, 4)).save(folder / "c.bmp")
    Image.fromarray(pattern(230, 224, 5)).save(folder / "d\udcff\n.jpg")
    (folder / "e-copy.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "f.png").write_bytes((folder / "b.png").read_bytes()[:3000])
    return folder


def rows_of(out: Path, name: str = "scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("ascii").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def score_images(count: int, *arguments: Any, **options: Any) -> Outcome:
    """A run that is asked to stop after so many chunks."""
    done: list[int] = []

    class Count(Silent):
        def advance(self, files: int) -> None:
            done.append(files)

    return score_folder(*arguments, reporter=Count(), should_stop=lambda: len(done) >= count, **options)


def test_tiles_are_those_of_the_grid_and_the_worst_decides(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    outcome = score_folder(scans, bundle.path, tmp_path / "out", TILES)
    rows, tiles = rows_of(tmp_path / "out"), rows_of(tmp_path / "out", "tiles.jsonl")
    assert [row["path"] for row in rows] == ["b.png", "c.bmp", "deep/a16.tif", "d\udcff\n.jpg", "e-copy.png", "f.png"]
    assert [(row["tiles"] or {}).get("count") for row in rows] == [12, 1, 6, 2, 12, None]
    with HybridClassifier(bundle) as classifier:
        for row in rows[:4]:
            own = [tile for tile in tiles if tile["path"] == row["path"]]
            image = open_image((scans / row["path"]).read_bytes())
            grid = tile_grid(*image.size, 224, 200, edges="pad")
            assert [(tile["x"], tile["y"]) for tile in own] == list(grid)
            if max(image.size) <= 224:
                pixels = [image_to_pixels(image, bundle.preprocess)]
            else:
                values = np.asarray(image)
                padded = np.pad(values, [(0, 224), (0, 224), (0, 0)][: values.ndim], mode="edge")
                cuts = [padded[y : y + 224, x : x + 224] for x, y in grid]
                pixels = [image_to_pixels(Image.fromarray(cut), bundle.preprocess) for cut in cuts]
            answer = classifier.run(InferenceBatch(pixels=np.stack(pixels)))
            assert answer.probabilities is not None
            np.testing.assert_allclose([tile["probabilities"]["crack"] for tile in own], answer.probabilities[:, 0], atol=1e-5)
            worst = max(own, key=lambda tile: tile["probabilities"]["crack"])
            assert all(row[key] == worst[key] for key in ("label", "probabilities", "expvals"))
            assert (row["tiles"]["x"], row["tiles"]["y"], row["width"], row["height"]) == (worst["x"], worst["y"], *image.size)
            assert row["tiles"]["positive"] == sum(tile["label"] == "crack" for tile in own)
            for tile in own:
                assert (tile["width"], tile["height"]) == (min(224, image.width - tile["x"]), min(224, image.height - tile["y"]))
    (execution,) = outcome.summary["executions"]
    assert (execution["num_rows"], execution["num_jobs"]) == (21, 4)  # one evaluation per image
    assert outcome.summary["tiles"] == {label: sum(tile["label"] == label for tile in tiles) for label in bundle.labels}
    assert (outcome.summary["duplicates"], outcome.failures) == (1, 1)
    with (tmp_path / "out" / "tiles.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        flat = list(csv.DictReader(file))
    assert [(cell["path"], int(cell["x"]), float(cell["probability"])) for cell in flat] == [
        (tile["path"], tile["x"], tile["probability"]) for tile in tiles
    ]


def test_duplicate_has_the_row_of_the_first(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    for name, request in {"tiles": TILES, "whole": Request(batch_size=2), "one": Request(batch_size=32, shots=50)}.items():
        score_folder(scans, bundle.path, tmp_path / name, request)
        rows = {row["path"]: row for row in rows_of(tmp_path / name)}
        assert rows["e-copy.png"] == {**rows["b.png"], "path": "e-copy.png", "duplicate_of": "b.png"}
        assert [row["duplicate_of"] for row in rows.values()].count(None) == 5
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert sum(whole["labels"].values()) == 5
    assert whole["executions"][0]["num_rows"] == 4


@pytest.mark.parametrize("request_", [TILES, Request(tiles=150, overlap=10, chunk_size=2, shots=20)])
def test_stopped_after_any_image_and_resumed_is_the_same(scans: Path, bundle: ModelBundle, tmp_path: Path, request_: Request) -> None:
    assert score_folder(scans, bundle.path, tmp_path / "whole", request_).complete
    for count in range(1, 6 // (request_.chunk_size or 1)):
        out = tmp_path / f"stopped{count}"
        stopped = score_images(count, scans, bundle.path, out, request_)
        assert stopped.done == min(6, count * (request_.chunk_size or 1))
        for name in ("tiles.jsonl", "tiles.csv"):  # what a kill would leave behind
            with (out / name).open("ab") as file:
                file.write(b"half a row")
        assert score_folder(scans, bundle.path, out, request_, resume=True).complete
        assert contents(out) == contents(tmp_path / "whole")


def test_doubtful_tiles_are_found_again_elsewhere(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    exact = score_folder(scans, bundle.path, tmp_path / "exact", TILES)
    request = Request(tiles=224, overlap=24, batch_size=4, refine_with="statevector", refine_shots=300, seed=3)
    outcome = score_folder(scans, bundle.path, tmp_path / "out", request)
    before, after = rows_of(tmp_path / "exact", "tiles.jsonl"), rows_of(tmp_path / "out", "tiles.jsonl")
    doubtful = [bool(tile["review"]) for tile in before]
    assert 0 < sum(doubtful) < len(before)
    for one, other, again in zip(before, after, doubtful, strict=True):
        assert (other["shots"], other["interval"] is not None) == ((300, True) if again else (None, False))
        assert again or one == other
    first, second = outcome.summary["executions"]
    assert (first["num_rows"], first["shots"]) == (exact.summary["executions"][0]["num_rows"], None)
    assert (second["num_rows"], second["shots"], second["seed"]) == (sum(doubtful), 300, 3)
    assert second["num_jobs"] <= 4


def test_shards_are_a_partition_and_patterns_leave_out(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    found = []
    for part in (1, 2, 3):
        outcome = score_folder(scans, bundle.path, tmp_path / str(part), Request(shard=f"{part}/3", exclude=("*.png",)))
        found += [row["path"] for row in rows_of(tmp_path / str(part))]
        assert outcome.summary["skipped"]["excluded"] == 3
        assert outcome.done + outcome.summary["skipped"].get("other_shards", 0) == 3
    assert sorted(found) == ["c.bmp", "deep/a16.tif", "d\udcff\n.jpg"]
    for shard in ("0/3", "4/3", "3", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="a shard is I/N"):
            score_folder(scans, bundle.path, tmp_path / "bad", Request(shard=shard))


def test_options_of_tiles_that_make_no_sense(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    for request, message in [
        (Request(overlap=3), "needs --tiles"),
        (Request(tiles=64, overlap=64), "less than the size of a tile, 64; got 64"),
        (Request(refine_shots=5), "need --refine-with"),
        (Request(backend="ibm:ibm_fez", refine_with="ibm:ibm_fez"), "comes after a free backend"),
    ]:
        with pytest.raises(ConfigError, match=message):
            score_folder(scans, bundle.path, tmp_path / "bad", request)
    assert not (tmp_path / "bad").exists()


def test_more_labels_than_two_have_tiles(scans: Path, tmp_path: Path) -> None:
    three = tiny_bundle(tmp_path / "bundle", labels=("crack", "pore", "none"))
    score_folder(scans, three.path, tmp_path / "out", Request(tiles=100, tile_quantile=0.5))
    for row in rows_of(tmp_path / "out")[:4]:
        own = sorted(tile["probabilities"]["crack"] for tile in rows_of(tmp_path / "out", "tiles.jsonl") if tile["path"] == row["path"])
        assert row["probabilities"]["crack"] == own[-(-len(own) // 2) - 1]


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=40), quantile=st.floats(0.01, 1))
def test_deciding_tile_is_an_order_statistic(scores: list[float], quantile: float) -> None:
    chosen = deciding_tile(scores, quantile)
    assert sum(score <= scores[chosen] for score in scores) >= quantile * len(scores) - 1e-9
    assert deciding_tile(scores, 1.0) == int(np.argmax(scores))


def photograph(orientation: int = 6, **gps: Any) -> bytes:
    import io

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:03:04 05:06:07"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.OffsetTimeOriginal] = "+02:00"
    inner = exif.get_ifd(ExifTags.IFD.GPSInfo)
    inner |= {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 15.0, 0.0)} | {int(key[1:]): value for key, value in gps.items()}
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_facts_of_a_photograph() -> None:
    facts = facts_of(photograph())
    assert (facts.width, facts.height, facts.taken) == (30, 40, "2026-03-04T05:06:07+02:00")
    assert (facts.longitude, facts.latitude) == (-70.25, -33.51)
    for broken in ({"_2": (1.0, 2.0)}, {"_1": "X"}, {"_4": (200.0, 0.0, 0.0)}):
        assert facts_of(photograph(1, **broken)).latitude is None
    assert facts_of(photograph(1, _1="X")).width == 40
    assert facts_of(b"no image").width is None
    assert facts_of(b"no image").sha256 is not None


@pytest.mark.parametrize("request_", [Request(batch_size=2), TILES], ids=["whole", "tiles"])
def test_no_header_is_read_in_the_run_itself(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: Request
) -> None:
    """The parsers of a hostile file may crash or hang where they cost one row only."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photograph())
    (tmp_path / "photos" / "cut.jpg").write_bytes(photograph(1)[:-8])
    (tmp_path / "photos" / "no.png").write_bytes(b"no image")
    score_folder(tmp_path / "photos", bundle.path, tmp_path / "here", request_)

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("opened in the run")

    monkeypatch.setattr(Image, "open", opened)
    score_folder(tmp_path / "photos", bundle.path, tmp_path / "apart", request_, isolated=True)
    rows = rows_of(tmp_path / "apart")
    assert rows == rows_of(tmp_path / "here")
    assert [(row["width"], row["taken"] and row["taken"][:10], row["latitude"]) for row in rows] == [
        (30, "2026-03-04", -33.51),
        (40, "2026-03-04", -33.51),
        (None, None, None),
    ]


def test_what_is_seen_beyond_the_record_is_forgotten(tmp_path: Path) -> None:
    tmp_path /= "50 %?#\udcff"
    tmp_path.mkdir()
    seen = Seen(tmp_path, 0)
    assert [seen.first(name, number) for number, name in enumerate("abac")] == [None, None, 0, None]
    seen.place(0, 0, 10)
    seen.commit()
    seen.close()
    again = Seen(tmp_path, 1)
    assert (again.where(0), again.first("b", 1), again.first("a", 2)) == ((0, 10), None, 0)
    with pytest.raises(InputError, match=r"seen\.sqlite' was changed"):
        again.where(7)
    again.close()
    (tmp_path / "seen.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(OutputError, match=r"cannot write .*seen\.sqlite"):
        Seen(tmp_path, 1)


def test_image_of_too_many_tiles_is_a_row_with_advice(bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans").mkdir()
    Image.new("L", (300, 300)).save(tmp_path / "scans" / "a.png")
    monkeypatch.setattr("serving.scoring.tile_pixels._MAX_TILES", 8)
    score_folder(tmp_path / "scans", bundle.path, tmp_path / "out", Request(tiles=100, overlap=0))
    (row,) = rows_of(tmp_path / "out")
    assert row["error"]["message"] == "the image makes 9 tiles, more than 8; give larger tiles or less overlap"
    assert (row["width"], row["tiles"]) == (300, None)


class Count(Silent):
    """How many tiles of an image are done, each time it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def within(self, done: int, kind: str | None = None) -> None:
        self.told.append(done)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("behind", [b"", b"half a write", bytes(4000)])
def test_stop_within_an_image_goes_on_there(scans: Path, bundle: ModelBundle, tmp_path: Path, behind: bytes, isolated: bool) -> None:
    first, second = Count(), Count()
    stopped = score_folder(scans, bundle.path, tmp_path / "out", TILES, reporter=first, should_stop=lambda: len(first.told) >= 2)
    assert (stopped.complete, stopped.done, first.told) == (False, 0, [4, 8])
    with (tmp_path / "out" / "half.bin").open("ab") as file:
        file.write(behind)  # what a kill or a crash of the machine may leave
    score_folder(scans, bundle.path, tmp_path / "out", resume=True, reporter=second, isolated=isolated)
    assert second.told[:2] == [12, 1]
    score_folder(scans, bundle.path, tmp_path / "whole", TILES)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


@given(
    batches=st.lists(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=5), min_size=1, max_size=6),
    known=st.booleans(),
    lost=st.integers(0, 200),
)
def test_what_is_kept_of_an_image_comes_back_in_whole_writes(batches: list[list[float]], known: bool, lost: int) -> None:
    parts = [[Part(np.full(3, value, np.float32), np.float32(value / 2) if known else None) for value in batch] for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        half = HalfDone(Path(folder))
        half.begin(half.find("ab" * 32))
        for batch in parts:
            half.add(batch)
            half.keep()
        path = Path(folder, "half.bin")
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - lost)])
        assert half.find("cd" * 32).parts == ()
        found = half.find("ab" * 32)
        counts = np.cumsum([0, *map(len, batches)])
        assert len(found.parts) in counts
        assert lost or len(found.parts) == counts[-1]
        for part, value in zip(found.parts, [value for batch in batches for value in batch], strict=False):
            np.testing.assert_array_equal(part.angles, np.full(3, value, np.float32))
            assert part.familiarity == (np.float32(value / 2) if known else None)
        half.begin(found)
        half.add(parts[0])
        half.keep()
        assert len(half.find("ab" * 32).parts) == len(found.parts) + len(batches[0]), "goes on behind the last whole write"
        half.begin(half.find("cd" * 32))
        half.add(parts[0])
        half.keep()
        assert half.find("ab" * 32).parts == ()
        half.remove()
        assert not path.exists()


def write_scan(path: Path, edge: int) -> None:
    rng = np.random.default_rng(0)
    strips = (rng.integers(80, 180, (50, edge), dtype=np.uint8) for _ in range(edge // 50))
    with tifffile.TiffWriter(path) as file:
        file.write(strips, shape=(edge, edge), dtype=np.uint8, rowsperstrip=50, photometric="minisblack")


def test_reading_takes_no_more_memory_for_a_larger_scan(bundle: ModelBundle, tmp_path: Path) -> None:
    peaks = []
    for edge in (1000, 2000):
        write_scan(tmp_path / "scan.tif", edge)
        seen = Seen(tmp_path, 0)
        reader = TileReader(PictureReader(tmp_path, Cut(bundle.preprocess, 224, 168, 4)), seen, 0, HalfDone(None))
        tracemalloc.start()
        count = sum(len(item) for item in reader.stream(iter([Batch(0, (b"scan.tif",), True, 9)])) if isinstance(item, np.ndarray))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        seen.close()
        (tmp_path / "seen.sqlite").unlink()
        assert count == (-(-(edge - 224) // 168) + 1) ** 2
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.slow
def test_a_scan_of_16000_pixels_takes_less_than_a_gigabyte(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "scan.tif", 16000)
    code = (
        "import pathlib, re, resource, sys; from serving.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally:\n"
        "    own = re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]\n"  # ru_maxrss counts its parent too
        "    print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    )
    options = [str(tmp_path / "scans"), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--tiles"]
    answer = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True, env=os.environ)
    assert sum(map(int, answer.stderr.split()[-2:])) < 1_000_000  # kilobytes of the run and the process that reads the scan
    assert rows_of(tmp_path / "out")[0]["tiles"]["count"] == 95**2


def test_backend_with_shots_gives_intervals_to_tiles(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_folder(scans, bundle.path, tmp_path / "out", Request(tiles=224, overlap=0, shots=100, seed=2))
    tiles = rows_of(tmp_path / "out", "tiles.jsonl")
    assert all(tile["interval"][0] < tile["probability"] < tile["interval"][1] and tile["shots"] == 100 for tile in tiles)
    assert get_backend("statevector", shots=100, seed=2).shots == 100


def test_image_that_crashes_the_decoder_costs_one_row(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a-long.jpg").write_bytes(endless())
    for index in range(6):
        Image.fromarray(pattern(60, 60, index)).save(tmp_path / "photos" / f"b{index}.png")
    hit = threading.Event()

    def crash() -> None:
        while not hit.is_set():
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if child.ppid() != os.getpid() and sum(child.cpu_times()[:2]) > 0.1:
                        child.send_signal(signal.SIGSEGV)
                        hit.set()
            time.sleep(0.005)

    thread = threading.Thread(target=crash)
    thread.start()
    try:
        outcome = score_folder(tmp_path / "photos", bundle.path, tmp_path / "out", Request(batch_size=1), workers=1, isolated=True)
    finally:
        hit.set()
        thread.join()
    assert outcome.done == 7
    first, *others = rows_of(tmp_path / "out")
    assert first["error"] == {"code": "ImageDecodeError", "message": "the image could not be decoded: the decoder died of it (SIGSEGV)"}
    assert [row["error"] for row in others] == [None] * 6
    score_folder(tmp_path / "photos", bundle.path, tmp_path / "threads", Request(batch_size=1, exclude=("a*",)))
    assert others == rows_of(tmp_path / "threads")


def test_scan_that_crashes_the_decoder_costs_one_row(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    class Crash(Silent):
        """Ends the process that cuts the first image while it is at work."""

        def __init__(self) -> None:
            self.asked = 0

        def within(self, tiles: int) -> None:
            self.asked += 1
            if self.asked == 1:
                for child in tile_processes():
                    child.send_signal(signal.SIGSEGV)

    request = Request(tiles=0, overlap=24, batch_size=1)
    outcome = score_folder(scans, bundle.path, tmp_path / "out", request, reporter=Crash(), isolated=True)
    first, *others = rows_of(tmp_path / "out")
    assert first["error"] == {"code": "ImageDecodeError", "message": "the image could not be decoded: the decoder died of it (SIGSEGV)"}
    assert (outcome.done, first["tiles"]) == (6, None)
    score_folder(scans, bundle.path, tmp_path / "whole", request)
    score_folder(scans, bundle.path, tmp_path / "apart", request, isolated=True)
    assert contents(tmp_path / "apart") == contents(tmp_path / "whole")
    assert [row for row in others if row["path"] != "e-copy.png"] == [
        row for row in rows_of(tmp_path / "whole")[1:] if row["path"] != "e-copy.png"
    ]
    assert not tile_processes()


def test_process_that_was_ended_between_two_images_is_started_again(scans: Path, bundle: ModelBundle) -> None:
    process = TileProcess(Cut(bundle.preprocess, 224, 200, 4))
    for _ in range(2):
        header, *pixels, end = process.pictures(str(scans / "b.png"), b"b.png")
        assert header == PhotoHeader(650, 430)
        assert sum(len(batch) for batch in pixels) == 12
        assert (end.part, end.found.shape) == (None, (3, 4))
        (child,) = tile_processes()
        child.kill()
        child.wait()
    process.close()


def tile_processes() -> list[psutil.Process]:
    """Children of this process that cut tiles; tests before may have left others."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            found += [child] if any("tile_process" in part for part in child.cmdline()) else []
    return found
