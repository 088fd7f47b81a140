"""What people open of a run: the page, maps, coordinates, boxes, tables, the comparison with truth."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import ExifTags, Image

from hqtl_common import ModelBundle
from hqtl_common.errors import ConfigError
from serving.cli import main
from serving.report import Outputs, publish, publish_outcome, wanted_outputs
from serving.report.results import read_results
from serving.report.selection import worst_places
from serving.scoring import Request, score_folder
from tests.tiny import tiny_bundle

TILES = Request(tiles=0, overlap=24, batch_size=8)
NAMES = ["b&<i>.png", "geo.tif", "n\udcff\n.png", "photo.jpg", "z copy.png", "zz broken.png"]
MADE = ("report.html", "results.geojson", "pixels.geojson", "coco.json", "summary.json", "state.json")


def pattern(width: int, height: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 80 + 2, width // 80 + 2), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary image, one on the ground, one with a position, odd names, a copy and a broken file."""
    folder = tmp_path_factory.mktemp("report") / "scans"
    folder.mkdir()
    Image.fromarray(pattern(700, 500, 1)).save(folder / NAMES[0])
    geo = [(33550, "d", 3, (0.25, 0.25, 0.0)), (33922, "d", 6, (0.0, 0.0, 0.0, 10.0, 50.0, 0.0))]
    geo += [(34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326))]
    tifffile.imwrite(folder / NAMES[1], pattern(400, 300, 2), extratags=[(*tag, True) for tag in geo])
    Image.fromarray(pattern(500, 500, 3)).save(folder / NAMES[2])
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, 30.0, 0.0), 3: "E", 4: (11.0, 15.0, 0.0)})
    Image.fromarray(pattern(300, 200, 4)).save(folder / NAMES[3], exif=exif)
    (folder / NAMES[4]).write_bytes((folder / NAMES[0]).read_bytes())
    (folder / NAMES[5]).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def scored(scans: Path, bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything made of a run on ``scans``; read-only."""
    out = tmp_path_factory.mktemp("scored") / "out"
    score_folder(scans, bundle.path, out, TILES)
    assert publish(out, bundle, Outputs(parquet=True)) is not None
    return out


class Page(HTMLParser):
    """What a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: set[str] = set()
        self.pictures: dict[str, str] = {}
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "a":
            self.links.update(found)  # fetched where a person wants it
        else:
            self.fetched += found
        if tag == "img":
            self.pictures[dict(attrs)["alt"] or ""] = dict(attrs)["src"] or ""
        if tag not in ("meta", "img", "br", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in ("rect", "line") or self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "img", "br", "rect", "line"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_whole_and_fetches_nothing(scans: Path, scored: Path) -> None:
    text = (scored / "report.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert page.fetched
    assert all(address.startswith("data:image/") for address in page.fetched)
    assert page.links == {(scans / name).as_uri() for name in NAMES if "copy" not in name}
    assert "<script" not in text
    assert "<i>" not in text
    said = " ".join(" ".join(page.words).split())
    for name in ("b&<i>.png", "geo.tif", r"n\udcff\n.png", "photo.jpg", "zz broken.png"):
        assert name in said
    assert "copies of other files" in said
    assert "longitude 11.25, latitude 48.5" in said
    assert len(re.findall("signature", said)) == 2
    assert [alt for alt in page.pictures if re.fullmatch(r"Image \d+", alt)] == [
        f"Image {number}" for number in sorted_by_suspicion(scored)
    ]


def sorted_by_suspicion(out: Path) -> list[int]:
    answered = [image for image in read_results(out) if image.answered]
    ranks = {image.number: (image.row["label"] == "crack", image.score("crack")) for image in answered}
    return sorted(ranks, key=lambda number: ranks[number], reverse=True)


def test_page_shows_the_worst_places_as_they_are(scans: Path, scored: Path) -> None:
    page = Page((scored / "report.html").read_text("utf-8"))
    for image in read_results(scored):
        places = worst_places(image, "crack") if image.tiles else ()
        for place in places if len(image.tiles) > 1 else ():
            data = base64.b64decode(page.pictures[f"Image {image.number}: x {place.x}, y {place.y}"].partition(",")[2])
            with Image.open(io.BytesIO(data)) as found, Image.open(scans / image.path) as whole:
                box = (place.x, place.y, min(place.x + 224, whole.width), min(place.y + 224, whole.height))
                difference = np.asarray(found.convert("L"), dtype=float) - np.asarray(whole.crop(box).convert("L"), dtype=float)
                assert np.abs(difference).mean() < 3, "as good as JPEG is"


def test_worst_places_do_not_overlap_and_are_the_worst(scored: Path) -> None:
    for image in read_results(scored):
        places = worst_places(image, "crack") if image.tiles else ()
        assert len(places) == 0 or places[0].score == image.scores("crack").max()
        assert [place.score for place in places] == sorted((place.score for place in places), reverse=True)
        assert all(abs(one.x - two.x) >= 224 or abs(one.y - two.y) >= 224 for one, two in combinations(places, 2))
        marked = {(tile["x"], tile["y"]) for tile in image.tiles if tile["label"] == "crack"}
        assert {(place.x, place.y) for place in places} <= marked or len(places) == 1
        free = [(x, y) for x, y in marked if all(abs(x - place.x) >= 224 or abs(y - place.y) >= 224 for place in places)]
        assert len(places) == 4 or not free, "none is left out that would have room"


def test_maps_have_plain_names_and_show_where(scored: Path, bundle: ModelBundle) -> None:
    maps = sorted(path.name for path in (scored / "maps").iterdir())
    assert maps == ["000001-b-i-png.png", "000002-geo-tif.png", "000003-n-png.png", "000004-photo-jpg.png"]
    assert all(os.fsencode(name).isascii() for name in maps)
    (first, *_) = read_results(scored)
    with Image.open(scored / "maps" / maps[0]) as drawn:
        assert drawn.width == 700
        assert 500 < drawn.height < 640
        values = np.asarray(drawn.convert("RGB"), dtype=int)
    colourful = np.abs(values[:500, :, 0] - values[:500, :, 2])
    scores = first.scores("crack").reshape(first.grid.shape)
    centres = []
    for index in (scores.argmax(), scores.argmin()):
        y, x = (
            edges[place] + 40 for edges, place in zip((first.grid.ys, first.grid.xs), np.unravel_index(index, scores.shape), strict=True)
        )
        centres.append(colourful[y : y + 20, x : x + 20])
    assert np.median(centres[0]) > np.median(centres[1])


def features(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text("ascii"))
    assert document["type"] == "FeatureCollection"
    assert all(set(feature) == {"type", "geometry", "properties"} for feature in document["features"])
    return document["features"]


def signed_area(ring: list[list[float]]) -> float:
    assert ring[0] == ring[-1]
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2


def test_places_on_the_ground_and_in_pixels(scored: Path) -> None:
    world, pixels = features(scored / "results.geojson"), features(scored / "pixels.geojson")
    images = {feature["properties"]["path"]: feature for feature in world if feature["properties"]["kind"] == "image"}
    assert set(images) == {"geo.tif", "photo.jpg"}
    assert images["photo.jpg"]["geometry"] == {"type": "Point", "coordinates": [11.25, 48.5]}
    ((outline,), kind) = (images["geo.tif"]["geometry"][key] for key in ("coordinates", "type"))
    assert kind == "Polygon"
    assert sorted(map(tuple, outline[:4])) == [(10.0, -25.0), (10.0, 50.0), (110.0, -25.0), (110.0, 50.0)]
    assert signed_area(outline) == 100 * 75  # counter-clockwise
    results = {image.path: image for image in read_results(scored)}
    for path in (NAMES[0], NAMES[2], NAMES[3], NAMES[1]):
        found = [
            f for f in (world if path == "geo.tif" else pixels) if f["properties"]["path"] == path and f["properties"]["kind"] == "region"
        ]
        assert sum(feature["properties"]["tiles"] for feature in found) == results[path].row["tiles"]["positive"]
        for feature in found:
            outer, *holes = feature["geometry"]["coordinates"]
            area = abs(signed_area(outer)) - sum(abs(signed_area(hole)) for hole in holes)
            assert area == pytest.approx(feature["properties"]["pixels"] * (0.0625 if path == "geo.tif" else 1))


def test_boxes_for_annotation_tools(scored: Path) -> None:
    document = json.loads((scored / "coco.json").read_text("ascii"))
    assert [image["file_name"] for image in document["images"]] == NAMES[:5]
    assert [(image["width"], image["height"]) for image in document["images"]][:2] == [(700, 500), (400, 300)]
    assert document["categories"] == [{"id": 1, "name": "crack", "supercategory": ""}]
    assert [annotation["id"] for annotation in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    results = {image.number: image for image in read_results(scored)}
    assert document["annotations"]
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= sizes[annotation["image_id"]][0]
        assert 0 <= y < y + height <= sizes[annotation["image_id"]][1]
        assert annotation["score"] in results[annotation["image_id"]].scores("crack")
    assert sorted(path.name for path in scored.rglob("*.partial")) == []


def test_tables_hold_the_rows(scored: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(scored / "scores.parquet").to_pydict()
    assert [os.fsdecode(path) for path in table["path_bytes"]] == NAMES
    assert table["path"][2] == "n%FF\n.png"
    assert table["probability"] == [image.row["probability"] for image in read_results(scored)]
    tiles = parquet.read_table(scored / "tiles.parquet").to_pydict()
    rows = [tile for image in read_results(scored) for tile in image.tiles]
    assert tiles["probability_crack"] == [tile["probabilities"]["crack"] for tile in rows]


def write_masks(folder: Path, scored: Path, flip: tuple[str, int, int] | None = None) -> None:
    """Masks that say what the tiles of two images say, except for one tile."""
    folder.mkdir(exist_ok=True)
    for image in read_results(scored):
        if image.path in (NAMES[0], NAMES[2]):
            mask = np.zeros((image.row["height"], image.row["width"]), np.uint8)
            for tile in image.tiles:
                if (tile["label"] == "crack") != (flip == (image.path, tile["x"], tile["y"])):
                    x, y = tile["x"] + 60, tile["y"] + 60  # no other tile reaches there
                    mask[y : y + 12, x : x + 12] = 255
            Image.fromarray(mask).save(folder / (image.path.removesuffix(".png") + "_mask.png"))


def test_truth_of_masks(scans: Path, scored: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_folder(scans, bundle.path, out, TILES)
    write_masks(tmp_path / "masks", scored)
    summary = publish(out, bundle, Outputs(truth=tmp_path / "masks", report=False))
    assert summary is not None
    tiles = [tile["label"] == "crack" for image in read_results(scored) if image.path in (NAMES[0], NAMES[2]) for tile in image.tiles]
    found = summary["truth"]
    assert (found["kind"], found["without_truth"]) == ("masks", 2)
    assert [found["tiles"][key] for key in ("tp", "fp", "fn", "tn")] == [sum(tiles), 0, 0, len(tiles) - sum(tiles)]
    assert not (out / "misses.png").exists()
    wrong = next(image for image in read_results(scored) if image.path == NAMES[0])
    tile = next(tile for tile in wrong.tiles if tile["label"] == "no_crack")
    write_masks(tmp_path / "masks", scored, flip=(NAMES[0], tile["x"], tile["y"]))
    again = publish(out, bundle, Outputs(truth=tmp_path / "masks"))
    assert again is not None
    assert (again["truth"]["tiles"]["fn"], again["truth"]["tiles"]["fp"]) == (1, 0)
    assert json.loads((out / "summary.json").read_text()) == again
    with Image.open(out / "misses.png") as picture:
        assert picture.width > 600
    page = Page((out / "report.html").read_text("utf-8"))
    assert "Against what is known" in " ".join(page.words)
    assert "The worst misses and false alarms" in page.pictures
    write_masks(tmp_path / "masks", scored)
    assert publish(out, bundle, Outputs(truth=tmp_path / "masks")) is not None
    assert not (out / "misses.png").exists()


def test_truth_of_class_folders(bundle: ModelBundle, tmp_path: Path) -> None:
    for index in range(12):
        path = tmp_path / "data" / ("crack" if index % 2 else "no_crack") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pattern(100, 100, index)).save(path)
    outcome = score_folder(tmp_path / "data", bundle.path, tmp_path / "out")
    done = publish_outcome(outcome, bundle.path, Outputs(truth=tmp_path / "data"))
    rows = [image.row for image in read_results(tmp_path / "out")]
    hits = [row["label"] == "crack" for row in rows if row["path"].startswith("crack/")]
    found = done.summary["truth"]
    assert (found["kind"], found["tiles"]) == ("class folders", None)
    assert (found["images"]["tp"], found["images"]["fn"]) == (sum(hits), 6 - sum(hits))
    assert (tmp_path / "out" / "misses.png").exists()
    assert "misses.png" in done.to_dict()["files"]


def test_masks_that_say_nothing_are_problems_not_an_end(scans: Path, scored: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "geo.png")
    Image.new("L", (300, 200), 1).save(tmp_path / "masks" / "photo.png")
    outcome = score_folder(scans, bundle.path, tmp_path / "out", TILES)
    found = publish_outcome(outcome, bundle.path, Outputs(truth=tmp_path / "masks", report=False, maps=False)).summary["truth"]
    assert found["problems"] == [
        "'geo.tif' has 400 × 300 pixels, its mask 9 × 9",
        "'photo.jpg': its mask 'photo.png' is all but black (no value above 1 of 255); save masks with 0 and 255",
    ]
    assert found["without_truth"] == 4
    assert found["images"]["precision"] == {"value": None, "interval": None}


def test_stopped_anywhere_and_made_again_is_the_same(scans: Path, bundle: ModelBundle, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = score_folder(scans, bundle.path, out, TILES)
    for asked in (0, 2):
        calls: list[int] = []
        stopped = publish_outcome(outcome, bundle.path, Outputs(parquet=True), should_stop=lambda: calls.append(0) or len(calls) > asked)  # noqa: B023
        assert not stopped.complete
        assert not (out / "report.html").exists()
        assert not (out / "coco.json").exists()
        assert not list(out.rglob("*.partial"))
    assert publish(out, bundle, Outputs(parquet=True)) is not None
    assert {name: (out / name).read_bytes() for name in MADE} == {name: (scored / name).read_bytes() for name in MADE}
    assert {path.name: path.read_bytes() for path in (out / "maps").iterdir()} == {
        path.name: path.read_bytes() for path in (scored / "maps").iterdir()
    }


def test_nothing_is_made_twice_and_what_was_made_is_remembered(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = score_folder(scans, bundle.path, out)
    publish(out, bundle, Outputs(maps=False))
    before = (out / "report.html").stat().st_mtime_ns
    assert wanted_outputs(out, {"report": None, "maps": None, "parquet": None, "truth": None}) == Outputs(maps=False)
    assert publish_outcome(outcome, bundle.path, Outputs(maps=False)).made == (
        "report.html",
        "results.geojson",
        "pixels.geojson",
        "coco.json",
    )
    assert (out / "report.html").stat().st_mtime_ns == before
    for name in ("report.html", "coco.json"):
        (out / name).unlink()
        publish(out, bundle, Outputs(maps=False))
        assert (out / name).exists()


def test_an_output_folder_may_have_any_name_and_progress_is_told(
    scans: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(sys.modules["serving.report.publish"], "_TELL_SECONDS", 0.0)
    told: list[str] = []
    outcome = publish_outcome(
        score_folder(scans, bundle.path, tmp_path / "o\udcff"), bundle.path, Outputs(report=False, parquet=True), tell=told.append
    )
    assert "scores.parquet" in outcome.made
    with (outcome.out / "scores.parquet").open("rb") as file:
        assert parquet.read_table(file).num_rows == len(NAMES)
    assert told == [f"report and maps: {number} of 6 images" for number in range(1, 7)]


def test_what_cannot_be_made_is_refused_before_anything_is_scored(
    scans: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="expected a folder of masks"):
        wanted_outputs(tmp_path, {"truth": tmp_path / "missing"})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="needs the package pyarrow"):
        wanted_outputs(tmp_path, {"parquet": True})


def test_command(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    options = [str(scans), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--tiles", "224", "--overlap", "24"]
    answer = CliRunner().invoke(main, [*options, "--json", "--no-maps", "--exclude", "*broken*"])
    assert answer.exit_code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["tiles"]["crack"] + document["tiles"]["no_crack"] == 27
    assert set(document["files"]) == {"report.html", "results.geojson", "pixels.geojson", "coco.json", "scores.csv", "scores.jsonl"} | {
        *("tiles.csv", "tiles.jsonl", "summary.json")
    }
    assert not (tmp_path / "out" / "maps").exists()
    again = CliRunner().invoke(main, [*options[:5], "--resume", "--maps"])
    assert again.exit_code == 0, again.stderr
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 4


def test_screen_and_summary_tell_the_truth(scans: Path, scored: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", scored)
    options = [str(scans), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--tiles", "224", "--overlap", "24"]
    answer = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*options, "--no-report", "--truth", str(tmp_path / "masks")])
    assert answer.exit_code == 3, answer.stderr
    assert "truth of tiles" in answer.stdout
    assert "recall 1.000 (" in answer.stdout
    assert re.search(r"without truth +│ 2 answers have no counterpart there", answer.stdout)
    assert not (tmp_path / "out" / "report.html").exists()
    kept = CliRunner().invoke(main, [*options[:5], "--resume", "--report", "--json"])  # the truth is remembered
    assert json.loads(kept.stdout)["truth"]["tiles"]["recall"]["value"] == 1.0
    assert (tmp_path / "out" / "report.html").exists()
    wrong = CliRunner().invoke(main, [*options, "--resume", "--truth", str(scans / "photo.jpg")])
    assert wrong.exit_code == 2


def test_page_of_nothing_of_failures_and_of_three_labels(scans: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    three = tiny_bundle(tmp_path / "three", labels=("pore, <open>", "crack", "none"))
    for name, content in {"empty": [], "bad": ["zz broken.png"], "all": NAMES}.items():
        (tmp_path / name).mkdir()
        for file in content:
            (tmp_path / name / file).write_bytes((scans / file).read_bytes())
        for model, request in ((bundle, Request()), (three, Request(tiles=150, shots=20))):
            out = tmp_path / f"{name} {len(model.labels)}"
            outcome = score_folder(tmp_path / name, model.path, out, request)
            assert publish_outcome(outcome, model.path, Outputs(truth=tmp_path / name)).complete
            text = (out / "report.html").read_text("utf-8")
            assert not Page(text).open
            assert "<open>" not in text
            assert json.loads((out / "coco.json").read_text())["images"] == [] or name == "all"
            assert features(out / "results.geojson") == [] or name == "all"
