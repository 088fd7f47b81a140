"""The paper's experiments without training any: formulas, intervals, sizes, pictures and the page."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sympy.parsing.sympy_parser import implicit_multiplication, parse_expr, split_symbols, standard_transformations

from hqtl_common import HeadSpec
from hqtl_common.errors import ConfigError, InputError
from training.head import ShiftHead, make_head
from training.paper import figure6, figure9, table3, table6, twin
from training.paper.images import find_data_sets, paper_subset
from training.paper.intervals import paired_difference, slope_interval
from training.paper.known import LIMA, PAPER_SPLITS, TABLE5_SECONDS, TABLE6_SECONDS
from training.paper.outcomes import summary
from training.paper.page import write_page
from training.paper.protocol import DEVICES, Protocol
from training.paper.sections import points, twin_finding, with_interval
from training.paper.style import accuracy_limits, format_seconds
from training.paper.table3 import METHODS, paper_calls

PROTOCOL = {"data": "photos", "data_name": "photos", "twin_data": (), "weights": {"resnet18": "imagenet", "vgg16": "none"}}


# ---------------------------------------------------------------- table 3


@given(
    key=st.sampled_from(sorted(METHODS)), layers=st.integers(1, 6), images=st.integers(1, 9), batch=st.integers(1, 5), val=st.integers(1, 4)
)
def test_formulas_are_what_a_training_executes(key: str, layers: int, images: int, batch: int, val: int) -> None:
    method = METHODS[key]
    spec = HeadSpec(num_layers=min(layers, method.layers[-1]), ansatz=method.options.get("ansatz", "real_amplitudes"))
    head = make_head(spec, torch.zeros(spec.weights_shape, dtype=torch.float64), diff_method=method.options["diff_method"])
    angles = torch.zeros(images, spec.num_angles, dtype=torch.float64, requires_grad=True)
    for part in angles.split(batch):
        head(part).sum().backward()
    with torch.no_grad():
        head(torch.zeros(val, spec.num_angles, dtype=torch.float64))
    assert head.num_rows == method.per_image(spec.num_layers, spec.num_qubits) * images + val


@given(layers=st.integers(1, 6), images=st.integers(1, 9))
def test_the_papers_formulas_are_those_of_weights_alone(layers: int, images: int) -> None:
    """The paper's loop, literally: the gradient of the trained rotations only, one image at a time."""
    for key, factor in (("backprop", 0), ("finite-diff", 1), ("parameter-shift", 2)):
        assert METHODS[key].factor == factor
        calls = sum(1 + factor * len(range(layers * 4)) for _ in range(images))
        assert paper_calls(factor, layers, 4, images, 0) == calls
    # ours with the angles taken away again
    assert METHODS["parameter-shift"].per_image(layers, 4) - 2 * 4 == paper_calls(2, layers, 4, 1, 0)
    assert METHODS["finite-diff"].per_image(layers, 4) - 4 == paper_calls(1, layers, 4, 1, 0)


def test_equation_9_at_the_papers_split() -> None:
    train, val = (sum(PAPER_SPLITS["70/15/15"][part]) for part in (0, 1))
    assert (train, val) == (856, 184)
    assert [paper_calls(factor, 1, 4, train, val) for factor in (0, 1, 2)] == [1040, 4464, 7888]
    # one call of the paper's lima then takes a plausible time, and 4 h are the 4 % of the whole that its text implies
    assert 1 < LIMA["execution_seconds"] / 7888 < 3
    assert 0.035 < LIMA["execution_seconds"] / LIMA["total_seconds"] < 0.045


def test_the_formulas_as_text_are_those_that_count() -> None:
    """The page shows them as text, the counts come from functions: both must be one formula."""
    transformations = (*standard_transformations, split_symbols, implicit_multiplication)
    for method in METHODS.values():
        formula = parse_expr(method.ours.replace("⌊n/2⌋", "floor(n/2)"), transformations=transformations)
        for layers, qubits in itertools.product((1, 2, 5), (2, 4, 7)):
            assert formula.subs({"L": layers, "n": qubits}) == method.per_image(layers, qubits), method.name


# ---------------------------------------------------------------- what the paper gives


def test_the_papers_figures_agree_with_each_other() -> None:
    for ratio, parts in PAPER_SPLITS.items():
        assert tuple(map(sum, zip(*parts, strict=True))) == (723, 500), ratio
    assert all(list(times) == sorted(times) and len(times) == 6 for times in TABLE6_SECONDS.values())
    assert [format_seconds(seconds) for seconds in TABLE5_SECONDS.values()] == [
        "2 min 26 s",
        "12 min 05 s",
        "17 h 01 min 30 s",
        "16 h 45 min 28 s",
    ]
    assert format_seconds(TABLE6_SECONDS["resnet18"][0]) == "36 min 20 s"
    assert format_seconds(TABLE6_SECONDS["vgg16"][5]) == "1 h 30 min 22 s"
    assert set(TABLE5_SECONDS) <= set(DEVICES)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (8.26, "8.3 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min 00 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# ---------------------------------------------------------------- statistics


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=12))
def test_paired_difference_is_the_paired_t_interval(pairs: list[tuple[float, float]]) -> None:
    left, right = np.array(pairs).T
    found = paired_difference(left.tolist(), right.tolist())
    if np.ptp(left - right) < 1e-9:
        assert found["low"] == pytest.approx(found["high"], abs=1e-6)
        return
    expected = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_slope_has_the_interval_of_the_regression() -> None:
    x, y = [1, 2, 3, 4, 1, 2, 3, 4], [1.0, 2.1, 2.9, 4.2, 0.8, 2.0, 3.1, 3.9]
    found = slope_interval(x, y)
    slope, covariance = np.polyfit(x, y, 1, cov="unscaled")
    residual = np.sum((np.polyval(slope, x) - y) ** 2) / 6
    half = stats.t.ppf(0.975, 6) * np.sqrt(residual * covariance[0, 0])
    assert (found["slope"], found["low"], found["high"]) == pytest.approx((slope[0], slope[0] - half, slope[0] + half))
    assert slope_interval([1, 1], [2.0, 3.0])["slope"] == 0.0
    assert slope_interval([1, 2, 3], [5.0, 5.0, 5.0]) == {"slope": 0.0, "low": 0.0, "high": 0.0, "r2": None}
    assert slope_interval([1, 2], [5.0, 6.0]) == {"slope": pytest.approx(1.0), "low": None, "high": None, "r2": None}


@pytest.mark.parametrize(
    ("hybrid", "twins", "agrees", "words"),
    [
        ([0.9, 0.91, 0.92], [0.9, 0.9, 0.93], True, "reaches its classical twin within the interval"),
        ([0.80, 0.81, 0.80], [0.9, 0.9, 0.91], False, "does not reach its classical twin"),
        ([0.95, 0.96, 0.95], [0.9, 0.9, 0.91], True, "whole interval lies above zero"),
        ([0.95], [0.9], None, "nothing can be said"),
    ],
)
def test_the_verdict_on_the_twin_is_plain(hybrid: list[float], twins: list[float], agrees: bool | None, words: str) -> None:
    found = summary([row(k, hybrid[k], twins[k]) for k in range(len(hybrid))])
    finding = twin_finding(found, "here")
    assert finding.agrees is agrees
    assert words in finding.ours


@given(st.floats(0, 100), st.floats(0, 10))
def test_an_axis_of_accuracies_ends_near_100_and_shows_everything(low: float, span: float) -> None:
    high = min(100.0, low + span)
    bottom, top = accuracy_limits(low - 0.05 * span, high + 0.05 * span)
    assert 0 <= bottom <= low
    assert high <= top + 1e-9
    assert top <= 101
    assert top - bottom >= min(3.9, top)


def test_figures_as_text() -> None:
    assert points(-0.0123) == "−1.2"
    assert points(-0.0001) == "0.0"
    assert with_interval({"mean": 0.5, "low": None, "high": None}) == "50.0 %"
    assert with_interval({"mean": 0.5, "low": 0.25, "high": 0.75}, shares=False) == "0.500 (0.250 to 0.750)"


# ---------------------------------------------------------------- options and images


def test_parts_differ_in_their_seed_only() -> None:
    protocol = Protocol.parse({**PROTOCOL, "seeds": 4})
    part = protocol.main_part("vgg16", 3)
    assert [config.seed for config in part.configs] == [0, 1, 2, 3]
    assert len({config.model_copy(update={"seed": 0}).model_dump_json() for config in part.configs}) == 1
    assert (part.configs[0].weights, part.configs[0].split_seed, part.configs[0].epochs, part.configs[0].batch_size) == ("none", 0, 100, 4)
    assert figure9.parts(protocol)[0] == figure6.parts(protocol)[0], "trained once, shown twice"
    names = [part.name for item in (figure6, figure9, table3) for part in item.parts(protocol)]
    assert len(set(names)) == len(names) - 1


def test_an_option_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="seeds"):
        Protocol.parse({**PROTOCOL, "seeds": 0})


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets in one folder: ``small``, and ``large`` with just more images than the paper."""
    root = tmp_path_factory.mktemp("collection")
    pixel = root / "pixel.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(pixel)
    for name, cracks, none in (("small", 3, 3), ("large", 730, 510)):
        for label, count in (("crack", cracks), ("no_crack", none)):
            folder = root / "sets" / name / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:04d}.png").hardlink_to(pixel)
    return root / "sets"


def test_a_folder_of_data_sets_is_seen_as_such(collection: Path) -> None:
    assert [found.root.name for found in find_data_sets(collection)] == ["large", "small"]
    assert [found.root.name for found in find_data_sets(collection.parent)] == ["large", "small"]
    assert [found.root for found in find_data_sets(collection / "small")] == [collection / "small"]
    with pytest.raises(InputError, match="no folder"):
        find_data_sets(collection / "nowhere")


def test_classes_with_folders_in_them_stay_classes(tmp_path: Path) -> None:
    for name in ("crack/bridge", "crack/wall", "no_crack/bridge", "no_crack/wall"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "a.png")
    (found,) = find_data_sets(tmp_path)
    assert (found.root, found.labels) == (tmp_path, ("crack", "no_crack"))


def test_subset_has_the_papers_size_and_is_made_once(collection: Path, tmp_path: Path) -> None:
    large, small = find_data_sets(collection)
    made = paper_subset(large, tmp_path / "images")
    (found,) = find_data_sets(made)
    assert [sum(sample.label == label for sample in found.samples) for label in (0, 1)] == [723, 500]
    before = [sample.relative for sample in found.samples]
    assert paper_subset(large, tmp_path / "again").name == "again"
    assert [sample.relative for sample in find_data_sets(tmp_path / "again")[0].samples] == before, "seeded"
    assert paper_subset(small, tmp_path / "images") == made, "what is there is used"
    assert paper_subset(small, tmp_path / "none") == collection / "small", "too few images"


# ---------------------------------------------------------------- pictures and page


def row(seed: int, accuracy: float, twin_accuracy: float) -> dict[str, Any]:
    figures = {"bottleneck_accuracy": twin_accuracy, "linear_accuracy": twin_accuracy, "bottleneck_loss": 0.3, "linear_loss": 0.3}
    return {"seed": seed, "loss": 1 - accuracy, "accuracy": accuracy, "best_epoch": 1, **figures}


def values_of_figure9(random: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    keys = [(backbone, layers) for backbone in ("resnet18", "vgg16") for layers in (1, 2, 3)]
    tables = {key: [row(seed, *rng.uniform(0.8, 0.9, 2)) for seed in range(4)] for key in keys}
    return {
        "backbones": {"resnet18": False, "vgg16": random},
        "layers": [1, 2, 3],
        "epochs": 2,
        "batch_size": 4,
        "trainings": 4,
        "rows": [{"backbone": key[0], "num_layers": key[1], **found} for key, table in tables.items() for found in table],
        "summary": [{"backbone": key[0], "num_layers": key[1], **summary(table)} for key, table in tables.items()],
        "per_layer": {name: slope_interval([1, 2, 3], [0.8, 0.81, 0.8]) for name in ("resnet18", "vgg16")},
        "between_backbones": paired_difference([0.8, 0.9], [0.9, 0.8]),
    }  # fmt: skip


def values_of_table6(random: bool) -> dict[str, Any]:
    rows = [
        {"backbone": backbone, "num_layers": layers, "trainings": 4, "seconds_together": 8.0 * layers, "seconds_each": 2.0 * layers,
         "cpu_seconds_together": 8.0, "paper_seconds": table6.paper_seconds(backbone, layers)}
        for backbone in ("resnet18", "vgg16") for layers in (1, 2, 3)
    ]  # fmt: skip
    growth = {name: slope_interval([1, 2, 3], [2.0, 4.0, 6.0]) for name in ("resnet18", "vgg16")}
    return {"backbones": {"resnet18": False, "vgg16": random}, "layers": [1, 2, 3], "epochs": 2, "rows": rows, "growth": growth}


def text_of(figure: Path) -> str:
    """The words of an SVG whose letters are outlines: matplotlib names each text in a comment."""
    return " ".join(part.partition("-->")[0].strip() for part in figure.read_text().split("<!--")[1:])


@pytest.mark.parametrize("item", [figure9, table6], ids=["figure9", "table6"])
def test_random_weights_are_said_on_the_picture_itself(item: Any, tmp_path: Path) -> None:
    values = {"figure9": values_of_figure9, "table6": values_of_table6}[item.NAME]
    item.draw(values(True), tmp_path)
    assert "VGG16 (random weights)" in text_of(tmp_path / f"{item.NAME}.svg")
    assert "ResNet18 (random" not in text_of(tmp_path / f"{item.NAME}.svg")
    assert (tmp_path / f"{item.NAME}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / f"{item.NAME}.png") as image:
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert image.width in (round(3.5 * 300), round(7.2 * 300)), "one column or both"


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        table6.draw(values_of_table6(False), folder)
        assert "random" not in text_of(folder / "table6.svg")
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"table6.png", "table6.pdf", "table6.svg"}


def test_growth_that_is_not_straight_is_called_so() -> None:
    values = values_of_table6(False)
    assert table6.describe(values).findings[1].agrees is True
    bent = copy.deepcopy(values)
    bent["growth"]["vgg16"] = slope_interval([1, 2, 3], [2.0, 6.0, 2.1])
    assert table6.describe(bent).findings[1].agrees is False


def test_page_is_one_file_that_escapes_names(tmp_path: Path) -> None:
    protocol = Protocol.parse({**PROTOCOL, "data_name": "<b>photos & more</b>"})
    values = values_of_figure9(True)
    (tmp_path / "figure9.svg").write_text("<svg/>")
    session = {"date": "2026-01-01", "hqtl": "0", "python": "3", "packages": {"torch": "2"}, "platform": "p", "processor": "c", "cores": 2,
               "workers": 2, "seconds": 60.0, "cpu_seconds": 90.0}  # fmt: skip
    splits = {"70/15/15": {"counts": {name: {"crack": 1, "no_crack": 2} for name in ("train", "val", "test")}, "leaked": 4}}
    write_page(tmp_path, protocol, [figure9.describe(json.loads(json.dumps(values)))], [session], splits)
    page = (tmp_path / "index.html").read_text()
    assert "<b>photos" not in page
    assert "&lt;b&gt;photos &amp; more" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "<script" not in page
    assert [part for part in page.split('src="')[1:] if not part.startswith("data:")] == []
    for device in DEVICES.values():
        assert device.name in page
    assert "nothing on this page ran on quantum hardware" in page
    assert "ImageNet weights could not be had for vgg16" in page
    assert "506 / 350" in page, "the paper's table 4"
    assert "At 70/15/15, 4 images of the validation and test split are byte for byte equal" in page


def test_an_ungrouped_set_is_named() -> None:
    rows = [{**row(k, 0.9, 0.9), "data": "loose", "test_images": 9, "mcnemar_p_bottleneck": 1.0, "mcnemar_p_linear": 1.0} for k in (0, 1)]
    sets = [{"name": "loose", "grouped": False, "rows": rows, "summary": summary(rows)}]
    options = {"epochs": 1, "batch_size": 4, "group_by": "source", "backbone": "resnet18", "random_weights": False, "trainings": 2}
    values = {"sets": sets, "rows": rows, **options}
    assert "Of loose the photographs are not known" in twin.describe(values).setting
    sets[0]["grouped"] = True
    assert "not known" not in twin.describe(values).setting


def test_shift_heads_are_what_is_counted() -> None:
    """Guards the first test of this file: with backprop alone nothing would be shifted."""
    spec = HeadSpec()
    assert isinstance(make_head(spec, torch.zeros(spec.weights_shape), diff_method="lean-shift"), ShiftHead)
