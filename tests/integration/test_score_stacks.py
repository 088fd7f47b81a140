"""Videos, TIFF files of several pages and volumes: one row per picture, the same as if each were a file, wherever a run is stopped."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from click.testing import CliRunner
from PIL import ExifTags, Image, TiffImagePlugin

from hqtl_common import ModelBundle, PreprocessSpec
from hqtl_common.errors import ConfigError
from hqtl_common.preprocess import suffixes_of
from serving.cli import main
from serving.report import Outputs, publish
from serving.scoring import Outcome, Request, score_folder
from serving.scoring.options import resolve
from serving.scoring.progress import Silent
from serving.scoring.stacks import suffixes_scored
from tests.films import decoded, pictures, write_film
from tests.integration.test_score_tiles import tile_processes

FILES = ("scores.jsonl", "scores.csv", "summary.json", "state.json")
ANSWER = ("label", "probability", "probabilities", "angles", "expvals", "logits", "review", "width", "height")
TILES = Request(tiles=32, overlap=8)


def rows_of(out: Path, name: str = "scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("ascii").splitlines()]


def contents(out: Path, request: Request) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (*FILES, *(("tiles.jsonl", "tiles.csv") if request.tiles else ()))}


def answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ANSWER} for row in rows]


def places(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["path"], row["part_kind"], row["part"], row["time_s"]) for row in rows]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files: three images, two videos, a copy and a cut-off one, pages of three kinds, two volumes, and a text that is no video."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, picture in zip(("a.png", "k.png", "z\udcff.png"), pictures(3, seed=9), strict=True):
        Image.fromarray(picture).save(folder / name)
    write_film(folder / "b.mkv", pictures(12))
    (folder / "c.mkv").write_bytes((folder / "b.mkv").read_bytes())
    long = write_film(folder / "d.mkv", pictures(25, seed=2)).read_bytes()
    (folder / "d.mkv").write_bytes(long[: len(long) * 2 // 3])
    pages = [Image.fromarray(pictures(1, size, seed)[0]) for seed, size in enumerate([(64, 48), (70, 90)], 20)]
    deep = Image.fromarray(pictures(1, seed=5)[0][:, :, 0].astype(np.uint16) * 257)
    pages[0].save(folder / "e.tif", save_all=True, append_images=[pages[1], deep, pages[0].convert("L")])
    cube = np.stack([picture[:, :, 0] for picture in pictures(5, seed=6)])
    np.save(folder / "f.npy", cube)
    (folder / "g.nii.gz").write_bytes(gzip.compress(nibabel.Nifti1Image((cube.astype(np.uint16) * 250).T, np.eye(4)).to_bytes()))
    (folder / "h.mp4").write_text("no video")
    return folder


EXPECTED = [
    ("a.png", None, None, None),
    *(("b.mkv", "frame", index, index / 5) for index in (0, 5, 10)),
    *(("c.mkv", "frame", index, index / 5) for index in (0, 5, 10)),
    *(("d.mkv", "frame", index, index / 5) for index in (0, 5, 10, 15)),
    ("d.mkv", "frame", 17, None),
    *(("e.tif", "page", index, None) for index in range(4)),
    *(("f.npy", "slice", index, None) for index in range(5)),
    *(("g.nii.gz", "slice", index, None) for index in range(5)),
    ("h.mp4", None, None, None),
    ("k.png", None, None, None),
    ("z\udcff.png", None, None, None),
]


def test_every_picture_has_its_row(mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    outcome = score_folder(mixed, bundle.path, tmp_path / "out", isolated=True)
    rows = rows_of(tmp_path / "out")
    assert places(rows) == EXPECTED
    assert {row["path"]: row["error"]["message"] for row in rows if row["error"]} == {
        "d.mkv": "the video ends after frame 16 at 3.200 s: the file is cut off: it was to last until 5.0 s and ends at 3.4 s",
        "h.mp4": "the video cannot be opened: Invalid data found when processing input",
    }
    assert [row["duplicate_of"] for row in rows if row["path"] == "c.mkv"] == ["b.mkv"] * 3
    summary = outcome.summary
    assert (summary["images"], summary["files"], summary["parts"]) == (29, 10, {"frame": 11, "page": 4, "slice": 10})
    assert (outcome.done, sum(summary["labels"].values()), summary["duplicates"], summary["errors"]) == (29, 27, 1, {"ImageDecodeError": 2})
    assert outcome.failed == ("d.mkv, frame 17", "h.mp4")
    table = (tmp_path / "out" / "scores.csv").read_text("utf-8", "surrogateescape").splitlines()
    record = next(record for record in csv.DictReader(table) if record["time_s"] == "2.0")
    assert (record["path"], record["part_kind"], record["part"]) == ("b.mkv", "frame", "10")
    assert all(len(row["sha256"]) == 64 for row in rows)


@pytest.mark.parametrize("request_", [Request(chunk_size=40), Request(tiles=32, overlap=8, chunk_size=40)], ids=["whole", "tiles"])
def test_pictures_are_scored_as_files_of_their_own(mixed: Path, bundle: ModelBundle, tmp_path: Path, request_: Request) -> None:
    """Each picture saved as a PNG, with the same decoder-independent bytes, has exactly the same answer."""
    (tmp_path / "single").mkdir()
    films = {name: decoded(mixed / name) for name in ("b.mkv", "d.mkv")}
    cubes = {"f.npy": np.load(mixed / "f.npy"), "g.nii.gz": np.load(mixed / "f.npy").astype(np.uint16) * 250}
    with tifffile.TiffFile(mixed / "e.tif") as tiff:
        pages = [page.asarray() for page in tiff.pages]
    kept = [place for place in EXPECTED if place[1] and place[0] != "c.mkv" and place != ("d.mkv", "frame", 17, None)]
    for number, (path, kind, index, _) in enumerate(kept):
        values = films[path][index] if kind == "frame" else pages[index] if kind == "page" else cubes[path][index]
        Image.fromarray(values).save(tmp_path / "single" / f"{number:02}.png")
    score_folder(mixed, bundle.path, tmp_path / "out", request_, isolated=True)
    score_folder(tmp_path / "single", bundle.path, tmp_path / "apart", request_)
    rows = [row for row in rows_of(tmp_path / "out") if row["part_kind"] and not row["duplicate_of"] and not row["error"]]
    assert [place[:2] for place in places(rows)] == [place[:2] for place in kept]
    apart = rows_of(tmp_path / "apart")
    for one, other in zip(answers(rows), answers(apart), strict=True):
        assert one == {**other, "angles": pytest.approx(other["angles"], abs=1e-6)} | {
            name: pytest.approx(other[name], abs=1e-6) for name in ("probability", "probabilities", "expvals", "logits")
        }
    if request_.tiles:
        of_parts = [tile for tile in rows_of(tmp_path / "out", "tiles.jsonl") if tile["part_kind"]]
        single = rows_of(tmp_path / "apart", "tiles.jsonl")
        keys = ("x", "y", "width", "height", "label")
        assert [[tile[key] for key in keys] for tile in of_parts] == [[tile[key] for key in keys] for tile in single]


def test_a_lossless_video_is_scored_exactly_like_its_frames(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    (tmp_path / "frames").mkdir()
    write_film(tmp_path / "film" / "a.mkv", pictures(9))
    for index, picture in enumerate(pictures(9)):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{index}.png")
    for request in (Request(every="1", batch_size=4), Request(every="0.2s", tiles=32, overlap=8)):
        out = tmp_path / f"out{request.tiles}"
        score_folder(tmp_path / "film", bundle.path, out / "film", request)
        score_folder(
            tmp_path / "frames",
            bundle.path,
            out / "frames",
            Request(tiles=request.tiles, overlap=request.overlap, batch_size=request.batch_size),
        )
        assert answers(rows_of(out / "film")) == answers(rows_of(out / "frames"))
        assert [place[1:] for place in places(rows_of(out / "film"))] == [("frame", index, index / 5) for index in range(9)]


class StoppedError(Exception):
    pass


class Steps(Silent):
    """Asks to stop after so many pieces."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, files: int) -> None:
        self.left -= 1

    def is_over(self) -> bool:
        return self.left <= 0


def run_in_steps(folder: Path, bundle: ModelBundle, out: Path, request: Request, count: int, **options: Any) -> list[int]:
    """A run that is stopped after so many pieces and goes on until it is done; how many rows each part of it found done."""
    found: list[int] = []
    while True:
        steps, first = Steps(count), not found
        hooks = {"reporter": steps, "should_stop": steps.is_over}
        outcome: Outcome = score_folder(folder, bundle.path, out, request if first else None, resume=not first, **hooks, **options)
        found.append(outcome.resumed_at)
        if outcome.complete:
            return found


@pytest.mark.parametrize(
    "request_",
    [Request(chunk_size=3, batch_size=2), Request(chunk_size=4, batch_size=3, shots=50), Request(tiles=32, overlap=8, chunk_size=4)],
    ids=["whole", "sampled", "tiles"],
)
def test_a_run_stopped_anywhere_ends_with_the_same_files(mixed: Path, bundle: ModelBundle, tmp_path: Path, request_: Request) -> None:
    score_folder(mixed, bundle.path, tmp_path / "whole", request_)
    whole = contents(tmp_path / "whole", request_)
    resumed = run_in_steps(mixed, bundle, tmp_path / "out", request_, 1)
    assert contents(tmp_path / "out", request_) == whole
    assert any(EXPECTED[done - 1][0] == EXPECTED[done][0] for done in resumed[1:])  # within a file
    if request_.shots is None:
        run_in_steps(mixed, bundle, tmp_path / "isolated", request_, 5, isolated=True)
        assert contents(tmp_path / "isolated", request_) == whole


def test_a_run_killed_while_it_writes_ends_with_the_same_files(
    mixed: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are there, the record is not: what was written is cut off and written again."""
    request = Request(chunk_size=2)
    score_folder(mixed, bundle.path, tmp_path / "whole", request)
    monkeypatch.setattr("serving.scoring.outputs._COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("serving.scoring.outputs._COMMIT_SHARE", 0)
    save = __import__("serving.scoring.outputs", fromlist=["save_state"]).save_state
    saved = 0

    def save_or_die(out: Path, state: Any) -> None:
        nonlocal saved
        saved += 1
        if saved % 2:
            raise StoppedError
        save(out, state)

    monkeypatch.setattr("serving.scoring.outputs.save_state", save_or_die)
    for attempt in range(60):
        try:
            outcome = score_folder(mixed, bundle.path, tmp_path / "out", None if attempt else request, resume=attempt > 0)
        except StoppedError:
            continue
        if outcome.complete:
            break
    assert saved > 10
    assert contents(tmp_path / "out", request) == contents(tmp_path / "whole", request)


def test_resuming_reads_no_frame_twice(bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film").mkdir()
    write_film(tmp_path / "film" / "a.mkv", pictures(30))
    read: list[int] = []
    reading = __import__("hqtl_common.videos", fromlist=["VideoFrames"]).VideoFrames.read
    monkeypatch.setattr("hqtl_common.videos.VideoFrames.read", lambda self, index: read.append(index) or reading(self, index))
    request = Request(every="3", chunk_size=2, batch_size=1)
    steps = Steps(3)
    first = score_folder(tmp_path / "film", bundle.path, tmp_path / "out", request, reporter=steps, should_stop=steps.is_over)
    assert (first.done, first.complete) == (6, False)
    read.clear()
    second = score_folder(tmp_path / "film", bundle.path, tmp_path / "out", resume=True)
    assert (second.resumed_at, second.done, read) == (6, 10, [18, 21, 24, 27])


def test_copies_of_long_files_are_found_in_later_runs_too(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_film(tmp_path / "films" / "a.mkv", pictures(10))
    request = Request(every="1", chunk_size=3)
    score_folder(tmp_path / "films", bundle.path, tmp_path / "out", request)
    (tmp_path / "films" / "b.mkv").write_bytes((tmp_path / "films" / "a.mkv").read_bytes())
    outcome = score_folder(tmp_path / "films", bundle.path, tmp_path / "out", resume=True)
    rows = rows_of(tmp_path / "out")
    first, second = rows[:10], rows[10:]
    assert second == [{**row, "path": "b.mkv", "duplicate_of": "a.mkv"} for row in first]
    assert (outcome.summary["duplicates"], outcome.summary["parts"]) == (1, {"frame": 20})
    assert sum(outcome.summary["labels"].values()) == 20


@pytest.mark.parametrize("tiles", [None, 32])
def test_a_video_that_ends_the_decoder_costs_its_own_rows(mixed: Path, bundle: ModelBundle, tmp_path: Path, tiles: int | None) -> None:
    class Crash(Silent):
        crashed = False

        def within(self, done: int, kind: str = "tile") -> None:
            if kind == "frame" and done == 2 and not self.crashed:
                self.crashed = True
                for child in tile_processes():
                    child.send_signal(signal.SIGSEGV)

    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "b.mkv", pictures(150, (48, 48)))
    for name in ("a.png", "e.tif"):
        (folder / name).write_bytes((mixed / name).read_bytes())
    request = Request(every="1", batch_size=1, tiles=tiles)
    outcome = score_folder(folder, bundle.path, tmp_path / "out", request, reporter=Crash(), isolated=True)
    rows = rows_of(tmp_path / "out")
    film = [row for row in rows if row["path"] == "b.mkv"]
    assert outcome.complete
    assert 2 <= len(film) < 150
    assert film[-1]["error"] == {"code": "ImageDecodeError", "message": "the image could not be decoded: the decoder died of it (SIGSEGV)"}
    assert [row["error"] for row in rows if row["path"] != "b.mkv"] == [None] * 5
    assert [row["part"] for row in film[:-1]] == list(range(len(film) - 1))
    assert not tile_processes()


def test_without_the_package_a_video_has_an_error_that_says_what_to_install(
    mixed: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    score_folder(mixed, bundle.path, tmp_path / "out")
    errors = [row["error"] for row in rows_of(tmp_path / "out") if row["path"].endswith((".mkv", ".mp4"))]
    assert errors == [{"code": "ConfigError", "message": "videos need the package av: pip install 'hqtl[video]'"}] * 4


def test_a_tiff_of_endless_pages_costs_one_row(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "bombs").mkdir()
    page = struct.pack("<H", 4) + b"".join(
        struct.pack("<HHII", *tag) for tag in [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (273, 4, 1, 8)]
    )
    (tmp_path / "bombs" / "circle.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", 8))
    score_folder(tmp_path / "bombs", bundle.path, tmp_path / "out", isolated=True)
    (row,) = rows_of(tmp_path / "out")
    assert row["error"]["message"] == "the TIFF file has more than 10,000 pages; split it into several"


def test_overviews_are_no_pages_and_a_damaged_page_costs_one_row(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = tmp_path / "tiffs"
    folder.mkdir()
    big, small = np.asarray(pictures(1, (320, 256))[0]), np.asarray(pictures(1, (160, 128))[0])
    with tifffile.TiffWriter(folder / "map.tif") as file:
        file.write(big, photometric="rgb", tile=(64, 64), compression="deflate", metadata=None, datetime="2026:05:01 10:20:30")
        file.write(small, photometric="rgb", subfiletype=1, metadata=None)
    with tifffile.TiffWriter(folder / "stack.tif") as file:
        for page in pictures(3):
            file.write(page, photometric="rgb", compression="deflate", metadata=None)
    with tifffile.TiffFile(folder / "stack.tif") as file:
        start, length = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    data = bytearray((folder / "stack.tif").read_bytes())
    data[start : start + length] = b"\xff" * length
    (folder / "stack.tif").write_bytes(data)
    (folder / "cut.tif").write_bytes(data[: len(data) * 5 // 6])
    for request in (Request(), TILES):
        out = tmp_path / f"out{request.tiles}"
        score_folder(folder, bundle.path, out, request, isolated=True)
        rows = rows_of(out)
        (whole,) = [row for row in rows if row["path"] == "map.tif"]
        assert (whole["part"], whole["width"], whole["height"], whole["taken"]) == (None, 320, 256, "2026-05-01T10:20:30")
        stack = [row for row in rows if row["path"] == "stack.tif"]
        assert [(row["part"], row["error"] is None) for row in stack] == [(0, True), (1, False), (2, True)]
        cut = [row for row in rows if row["path"] == "cut.tif"]
        assert cut[0]["error"] is None
        assert cut[-1]["error"] is not None
        assert answers([whole])[0]["label"] in ("crack", "no_crack")


def test_videos_are_left_out_and_shared_out_as_files(mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    parts = []
    for shard in ("1/2", "2/2"):
        out = tmp_path / shard[0]
        score_folder(mixed, bundle.path, out, Request(shard=shard, exclude=("*.tif", "h.*")))
        parts.append(places(rows_of(out)))
    assert sorted(map(str, parts[0] + parts[1])) == sorted(str(place) for place in EXPECTED if place[0] not in ("e.tif", "h.mp4"))
    assert not {place[0] for place in parts[0]} & {place[0] for place in parts[1]}


def test_what_chooses_frames_is_checked_and_kept(mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frames are chosen by number"):
        score_folder(mixed, bundle.path, tmp_path / "out", Request(every="often"))
    outcome = score_folder(mixed, bundle.path, tmp_path / "out", Request(every="6"))
    assert [row["part"] for row in rows_of(tmp_path / "out") if row["path"] == "b.mkv"] == [0, 6]
    assert outcome.summary["options"]["every"] == "6"
    with pytest.raises(ConfigError, match=r"every \(recorded: 6, now: 7\)"):
        score_folder(mixed, bundle.path, tmp_path / "out", Request(every="7"), resume=True)


def test_a_bundle_of_volumes_takes_nothing_to_pieces(bundle: ModelBundle) -> None:
    spec = PreprocessSpec(size=8, depth=4)
    volumes = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"preprocess": spec.to_dict()}))
    with pytest.raises(ConfigError, match="the bundle reads volumes: leave out --every"):
        resolve(Request(every="2"), volumes, None)
    assert suffixes_scored(spec) == suffixes_of(spec)
    assert {".mp4", ".npy", ".png"} < set(suffixes_scored(PreprocessSpec()))


def test_plain_folders_stay_as_they_are(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "photos" / "a.png")
    outcome = score_folder(tmp_path / "photos", bundle.path, tmp_path / "out", isolated=True)
    assert places(rows_of(tmp_path / "out")) == [("a.png", None, None, None)]
    assert not {"parts", "files"} & outcome.summary.keys()
    assert not tile_processes()  # none was needed


class TestReport:
    def test_shows_frames_with_their_time_and_pages_with_their_number(self, mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
        score_folder(mixed, bundle.path, tmp_path / "out", TILES, isolated=True)
        summary = publish(tmp_path / "out", bundle, Outputs(parquet=True))
        assert summary is not None
        page = (tmp_path / "out" / "report.html").read_text("utf-8")
        assert "b.mkv, frame 5 at 0:01.000" in page
        assert "e.tif, page 1" in page
        assert "29</b><span>images of 10 files" in page
        assert "11 frames, 4 pages, 10 slices of videos and stacks among them" in page
        assert "d.mkv, frame 17" in page
        assert "no picture" not in page
        maps = sorted(path.name for path in (tmp_path / "out" / "maps").iterdir())
        assert "000003-b-mkv-frame-5-at-0-01-000.png" in maps
        assert len(maps) == 29 - 3 - 2  # every picture but copies and those without an answer, each larger than a tile
        table = pyarrow.parquet.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        assert [(row["part_kind"], row["part"], row["time_s"]) for row in table] == [place[1:] for place in EXPECTED]
        boxes = json.loads((tmp_path / "out" / "coco.json").read_text())
        frame = next(image for image in boxes["images"] if image.get("part") == 10)
        assert (frame["file_name"], frame["part_kind"], frame["time_s"]) == ("b.mkv", "frame", 2.0)
        shapes = json.loads((tmp_path / "out" / "pixels.geojson").read_text())["features"]
        assert {(shape["properties"]["path"], shape["properties"].get("part")) for shape in shapes} >= {
            ("b.mkv", 5),
            ("e.tif", 1),
            ("a.png", None),
        }

    @pytest.mark.parametrize(("request_", "isolated"), [(Request(every="1"), False), (Request(every="1", tiles=32), True)])
    def test_says_when_and_where_a_video_was_taken(self, bundle: ModelBundle, tmp_path: Path, request_: Request, isolated: bool) -> None:
        (tmp_path / "films").mkdir()
        about = {"creation_time": "2025-03-04T05:06:07Z", "location": "-33.8568+151.2153/"}
        write_film(tmp_path / "films" / "a #1.mp4", pictures(2), "libx264", "yuv420p", rate=2, about=about)
        score_folder(tmp_path / "films", bundle.path, tmp_path / "out", request_, isolated=isolated)
        assert [(row["taken"], row["longitude"], row["latitude"], row["width"], row["time_s"]) for row in rows_of(tmp_path / "out")] == [
            ("2025-03-04T05:06:07+00:00", 151.2153, -33.8568, 64, 0.0),
            ("2025-03-04T05:06:07+00:00", 151.2153, -33.8568, 64, 0.5),
        ]
        publish(tmp_path / "out", bundle, Outputs(maps=False))
        points = json.loads((tmp_path / "out" / "results.geojson").read_text())["features"]
        assert [point["geometry"]["coordinates"] for point in points] == [[151.2153, -33.8568]] * 2
        page = (tmp_path / "out" / "report.html").read_text("utf-8")
        address = (tmp_path / "films" / "a #1.mp4").as_uri()
        assert f'<a href="{address}">a #1.mp4, frame 0' in page
        assert f'<a href="{address}#t=0.5">a #1.mp4, frame 1' in page

    def test_says_where_a_file_of_pages_was_taken(self, bundle: ModelBundle, tmp_path: Path) -> None:
        (tmp_path / "scans").mkdir()
        about = TiffImagePlugin.ImageFileDirectory_v2()
        about[ExifTags.IFD.GPSInfo] = {1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 15.0, 0.0)}
        first, *others = map(Image.fromarray, pictures(2))
        first.save(tmp_path / "scans" / "a.tif", save_all=True, append_images=others, tiffinfo=about)
        score_folder(tmp_path / "scans", bundle.path, tmp_path / "out")
        assert [(row["part"], row["longitude"], row["latitude"]) for row in rows_of(tmp_path / "out")] == [
            (0, -70.25, -33.5),
            (1, -70.25, -33.5),
        ]

    def test_one_video_does_not_fill_the_page(self, bundle: ModelBundle, tmp_path: Path) -> None:
        (tmp_path / "films").mkdir()
        write_film(tmp_path / "films" / "a.mkv", pictures(20))
        score_folder(tmp_path / "films", bundle.path, tmp_path / "out", Request(every="1"))
        publish(tmp_path / "out", bundle, Outputs())
        page = (tmp_path / "out" / "report.html").read_text("utf-8")
        assert "The 6 most suspicious of 20 images, at most 6 of one file;" in page

    def test_masks_of_several_pages_are_truth_for_pages_and_slices(self, mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
        masks = tmp_path / "masks"
        masks.mkdir()
        blank = [
            np.zeros((48, 64), np.uint8),
            np.full((90, 70), 255, np.uint8),
            np.zeros((48, 64), np.uint8),
            np.full((48, 64), 255, np.uint8),
        ]
        for name, pages in (("e.tif", blank), ("f_mask.tif", [blank[0]] * 4), ("a.tif", [blank[0]] * 2), ("b.png", [blank[0]])):
            images = [Image.fromarray(page) for page in pages]
            images[0].save(masks / name, **({"save_all": True, "append_images": images[1:]} if name.endswith("tif") else {}))
        score_folder(mixed, bundle.path, tmp_path / "out", TILES)
        summary = publish(tmp_path / "out", bundle, Outputs(report=False, maps=False, truth=masks))
        assert summary is not None
        truth = summary["truth"]
        figures = truth["images"]
        assert (figures["tp"] + figures["fn"], figures["fp"] + figures["tn"]) == (2, 6)
        assert any("'a.png' is one image, its mask 'a.tif' has 2 pages" in problem for problem in truth["problems"])
        assert any("'b.mkv': frames of a video cannot be compared with masks" in problem for problem in truth["problems"])


class TestCommand:
    def test_scores_a_folder_of_videos(self, mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
        arguments = [str(mixed), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--every", "0.4s", "--no-report"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 3
        assert "d.mkv, frame 17" in result.output
        assert [row["part"] for row in rows_of(tmp_path / "out") if row["path"] == "b.mkv"] == [0, 2, 4, 6, 8, 10]

    def test_refuses_nonsense(self, mixed: Path, bundle: ModelBundle, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, [str(mixed), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--every", "0"])
        assert result.exit_code == 1
        assert "frames are chosen by number, for example 10, or by seconds" in result.output
        assert not (tmp_path / "out").exists()
