"""Parts of what people open: outlines of regions, figures with intervals, maps, small pictures, positions without a system, truth."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hqtl_common.tiles import tile_grid
from serving.report.figures import Counts, wilson
from serving.report.geojson import FeatureWriter, GeoWriter
from serving.report.heatmaps import draw_map, map_name
from serving.report.originals import Originals
from serving.report.overview import overview
from serving.report.page import _number, _percent
from serving.report.regions import cell_edges, find_regions
from serving.report.results import ImageResult
from serving.report.selection import REVIEW, WORST, Selected


@given(marked=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)), overlap=st.integers(0, 9))
def test_regions_cover_exactly_the_marked_cells(marked: np.ndarray, overlap: int) -> None:
    rows, columns = marked.shape
    stride = 10 - overlap
    grid = tile_grid((columns - 1) * stride + 10, (rows - 1) * stride + 10, 10, stride, edges="pad")
    assert grid.shape == marked.shape
    regions = find_regions(grid, marked.ravel())
    assert sorted(tile for region in regions for tile in region.tiles) == np.flatnonzero(marked).tolist()
    xs, ys = cell_edges(grid.xs, 10, grid.width), cell_edges(grid.ys, 10, grid.height)
    expected = np.repeat(np.repeat(marked, np.diff(ys), axis=0), np.diff(xs), axis=1)
    drawn = np.zeros_like(expected)
    for region in regions:
        assert region.area == sum(np.diff(xs)[tile % columns] * np.diff(ys)[tile // columns] for tile in region.tiles)
        inside = np.zeros_like(expected)
        for ring in (region.outer, *region.holes):
            inside ^= crossings(ring, grid.width, grid.height)
        assert not (drawn & inside).any()
        drawn |= inside
        x, y = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        assert region.box == (x[0], y[0], x[-1] + 1, y[-1] + 1)
    assert (drawn == expected).all()


def crossings(ring: tuple[tuple[int, int], ...], width: int, height: int) -> np.ndarray:
    """Pixels whose centre lies inside of a ring of upright and level edges, by counting the upright edges to the left."""
    inside = np.zeros((height, width), dtype=bool)
    for (x, y), (other_x, other_y) in zip(ring, (*ring[1:], ring[0]), strict=True):
        assert (x == other_x) != (y == other_y)
        if x == other_x:
            inside[min(y, other_y) : max(y, other_y), x:] ^= True
    return inside


@pytest.mark.parametrize(("length", "size", "stride"), [(1000, 224, 168), (225, 224, 168), (4032, 224, 200), (100, 224, 10)])
def test_every_tile_owns_some_of_the_image(length: int, size: int, stride: int) -> None:
    grid = tile_grid(length, length, size, stride, edges="pad")
    assert (np.diff(cell_edges(grid.xs, size, length)) > 0).all()


@settings(max_examples=40)
@given(tp=st.integers(0, 60), fp=st.integers(0, 60), fn=st.integers(0, 60), tn=st.integers(0, 60))
def test_figures_are_those_of_scikit_learn(tp: int, fp: int, fn: int, tn: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    counts = Counts()
    for truth, called, times in ((True, True, tp), (False, True, fp), (True, False, fn), (False, False, tn), (None, True, 3)):
        for _ in range(times):
            counts.add(truth, called)
    found = counts.to_dict()
    truth, called = [1] * tp + [0] * fp + [1] * fn + [0] * tn, [1] * (tp + fp) + [0] * (fn + tn)
    for name in ("precision", "recall", "f1"):
        value, interval = found[name]["value"], found[name]["interval"]
        if value is None:
            assert tp + {"precision": fp, "recall": fn, "f1": fp + fn}[name] == 0
            continue
        assert value == pytest.approx(getattr(metrics, f"{name}_score")(truth, called, zero_division=0))
        assert interval[0] - 1e-12 <= value <= interval[1] + 1e-12
    if tp + fn:
        expected = stats.binomtest(tp, tp + fn).proportion_ci(method="wilson")
        assert wilson(tp, tp + fn) == pytest.approx((expected.low, expected.high))
    assert (found["unclear"], wilson(0, 0)) == (3, None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("wall/größe 漢字 (1).TIF", "000007-groe-1-TIF.png"),
        ("漢字", "000007-image.png"),
        ("n\udcff\n../..", "000007-image.png"),
        ("a" * 200, f"000007-{'a' * 60}.png"),
    ],
)
def test_names_of_maps_are_plain(path: str, name: str) -> None:
    assert map_name(7, path) == name


@pytest.mark.parametrize(("width", "height"), [(1000, 700), (300, 3000), (100, 60)])
def test_map_is_the_picture_where_nothing_is_suspicious(width: int, height: int) -> None:
    grid = tile_grid(width, height, 224, 168, edges="pad")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8))
    clear = draw_map(picture, grid, np.full(len(grid), 0.05), [], "crack", 0.5)
    np.testing.assert_array_equal(np.asarray(clear)[: picture.height, : picture.width, 1], np.asarray(picture.convert("L")))
    full = draw_map(picture, grid, np.ones(len(grid)), find_regions(grid, np.ones(len(grid), dtype=bool)), "größe 漢", None)
    assert full.size[0] >= 420
    legend = np.asarray(full)[full.height - (30 if width < 900 else 45) :, 30:]
    assert (legend.max(axis=2) < 128).sum() > 100, "the words are large enough to be read, below the scale where it is narrow"
    inside = np.asarray(full, dtype=int)[5 : picture.height - 5, 5:40]
    assert (inside[..., 0] - inside[..., 1]).mean() > 20


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_overview_is_the_mean_of_the_pixels(tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (301, 500)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values * dtype(1 if dtype == np.uint8 else 4))
    whole = np.asarray(overview(tmp_path / "a.tif", 100))
    monkeypatch.setattr("serving.report.overview._STRIP_PIXELS", 5000)  # several strips
    strips = np.asarray(overview(tmp_path / "a.tif", 100))
    assert whole.shape == strips.shape == (60, 100, 3)
    assert np.abs(whole.astype(int) - strips).max() <= 1
    if dtype == np.uint8:
        expected = Image.fromarray(values).resize((100, 60), Image.Resampling.BOX)
        assert np.abs(np.asarray(expected).astype(int) - whole[..., 0]).max() <= 1
    else:
        assert whole.max() > 200  # only a hundredth of the range is used, and yet something is seen
    assert overview(tmp_path / "a.tif", 5000).size == (500, 301)


def test_image_with_map_coordinates_of_an_unknown_system(tmp_path: Path) -> None:
    tags = [(33550, "d", 3, (0.5, 0.5, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 10.0, 50.0, 0.0), True)]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((300, 400), np.uint8), extratags=[*tags, (34735, "H", 4, (1, 1, 0, 0), True)])
    tile = {"x": 0, "y": 0, "label": "crack", "probabilities": {"crack": 0.9}}
    row = {"path": "a.tif", "width": 400, "height": 300, "tiles": {"size": 400, "stride": 400, "count": 1}, "longitude": None}
    row |= dict.fromkeys(("label", "probability", "familiarity", "review", "taken", "duplicate_of", "error"))
    image = ImageResult(1, row, (tile,))
    files = io.StringIO(), io.StringIO()
    writers = [FeatureWriter(file, {}) for file in files]
    GeoWriter(Originals(tmp_path), writers[0], writers[1], "crack").add(image, find_regions(image.grid, image.marked("crack")), None)
    for writer in writers:
        writer.finish()
    world, pixels = (json.loads(file.getvalue())["features"] for file in files)
    assert pixels == []
    assert [feature["geometry"] for feature in world] == [None, None]
    for feature in world:
        own = feature["properties"]["map_coordinates"]
        assert own["crs"] is None
        assert "names no coordinate system" in own["reason"]
        assert sorted(map(tuple, own["polygon"][0][:4])) == [(10.0, -100.0), (10.0, 50.0), (210.0, -100.0), (210.0, 50.0)]


def test_page_shows_the_worst_of_any_number() -> None:
    selected = Selected("crack")
    scores = np.random.default_rng(0).permutation(1000) / 1000
    for number, score in enumerate(scores, 1):
        row = {"path": str(number), "label": "crack" if score >= 0.5 else "no_crack", "probabilities": {"crack": score}}
        row |= {"review": ["close"] if score < 0.3 else [], "tiles": None, "error": None, "duplicate_of": None}
        selected.add(ImageResult(number, row), None)
    worst = [choice.row["probabilities"]["crack"] for choice in selected.ordered(selected.worst)]
    assert worst == pytest.approx(np.arange(999, 999 - WORST, -1) / 1000)
    assert (selected.to_review, len(selected.review), sum(selected.histogram)) == (300, REVIEW, 1000)
    assert selected.ordered(selected.review)[0].row["probabilities"]["crack"] == 0.299


@pytest.mark.parametrize(
    ("share", "text"), [(None, "–"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.1234, "12.3 %")]
)
def test_per_cent_is_not_rounded_to_all_or_nothing(share: float | None, text: str) -> None:
    assert _percent(share).replace("\u00a0", " ") == text
    assert _number(None) == "–"
