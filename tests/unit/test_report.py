"""A page: safe whatever names it shows, complete in itself, and true to the run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hqtl_common.circuit import operations
from hqtl_common.errors import BundleError, InputError
from hqtl_common.specs import HeadSpec
from training.cli import main
from training.config import FitConfig
from training.report.circuit import circuit_svg
from training.report.run_page import reproduce_command, write_report
from training.report.thumbnails import thumbnail
from training.report.words import headline, twin_verdict
from training.runs import RunFolder


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def assert_whole(self) -> None:
        """Nothing is left open, nothing runs, nothing is fetched."""
        assert self.open == []
        assert not {tag for tag, _ in self.tags} & {"script", "link", "iframe", "object", "a", "form"}
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") or name in ("href", "srcset") for name in attributes)
            if tag == "img":
                assert (attributes["src"] or "").startswith("data:image/")

    def pictures(self, kind: str) -> list[bytes]:
        prefix = f"data:image/{kind};base64,"
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source.removeprefix(prefix)) for source in sources if source.startswith(prefix)]


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(finished_run, tmp_path_factory.mktemp("page") / "report.html").read_text("utf-8"))


def test_page_is_complete_in_itself(page: Page) -> None:
    page.assert_whole()
    assert len(page.pictures("jpeg")) >= 12  # six of each class, and the misses
    charts = [ElementTree.fromstring(svg) for svg in page.pictures("svg+xml")]
    assert len(charts) == 6  # two curves, ROC, precision, reliability, circuit


def test_page_says_what_the_run_found(page: Page, finished_run: Path) -> None:
    result, data = RunFolder(finished_run).result(), RunFolder(finished_run).data()
    assert result is not None
    assert data is not None
    text = " ".join(page.text.split())
    figures = [result["test"][name] for name in ("accuracy", "balanced_accuracy", "recall", "precision")]
    figures += [*result["test"]["accuracy_interval"], result["twins"]["bottleneck"]["test"]["accuracy"]]
    for value in figures:
        assert f"{100 * value:.1f} %" in text
    assert twin_verdict("bottleneck", result) in text
    assert data["data_sha256"] in text
    assert data["split_sha256"] in text
    assert f"the values of epoch {result['best_epoch']} were taken" in text
    for counts in data["counts"].values():
        assert str(sum(counts.values())) in text
    assert "hqtl-train fit" in text
    assert "--num-layers 2" in text


def test_hostile_names_are_shown_and_not_run(finished_run: Path, tmp_path: Path) -> None:
    evil = "<script>alert('1')</script>\" onerror=\"x"
    run = tmp_path / "<b>run"
    shutil.copytree(finished_run, run)
    for name in ("data.json", "result.json", "predictions.json"):
        file = run / name
        values = json.loads(file.read_text().replace('"crack"', json.dumps(evil)))
        if name == "predictions.json":
            values["test"]["paths"] = [f"../../{evil}" for _ in values["test"]["paths"]]
            values["test"]["logits"]["hybrid"] = [[-value for value in row] for row in values["test"]["logits"]["hybrid"]]
        file.write_text(json.dumps(values))
    page = Page(write_report(run).read_text("utf-8"))
    page.assert_whole()
    assert evil in page.text
    assert "<b>run" in page.text


def test_thumbnails_stay_in_the_folder_and_show_every_depth(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    ramp = np.linspace(0, 65535, 300 * 300).reshape(300, 300).astype(np.uint16)
    Image.fromarray(ramp).save(root / "deep.png")
    Image.new("RGB", (400, 200), (250, 10, 10)).save(root / "red.png")
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    (root / "text.png").write_text("no image")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    for path in ("../outside.png", "link.png", "missing.png", "text.png", "."):
        assert thumbnail(root, path) is None
    deep, red = (np.asarray(_decoded(thumbnail(root, path)), dtype=int) for path in ("deep.png", "red.png"))
    assert deep.shape == (160, 160, 3)
    assert deep[0].mean() < 10
    assert deep[80].mean() == pytest.approx(128, abs=6)
    assert deep[-1].mean() > 245
    assert red.shape == (80, 160, 3)
    assert abs(red.mean(axis=(0, 1)) - (250, 10, 10)).max() < 12


def _decoded(source: str | None) -> Image.Image:
    import io

    assert source is not None
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


@pytest.mark.parametrize(
    "spec",
    [HeadSpec(), HeadSpec(num_qubits=3, num_layers=2, entangler="circular"), HeadSpec(embedding="amplitude"), HeadSpec(ansatz="commuting")],
    ids=lambda spec: f"{spec.embedding}-{spec.entangler}-{spec.ansatz}",
)
def test_circuit_is_drawn_gate_by_gate(spec: HeadSpec) -> None:
    drawing = ElementTree.fromstring((circuit_svg(spec) or b"").decode())
    tags = [element.tag.rpartition("}")[2] for element in drawing.iter()]
    gates = list(operations(spec))
    assert tags.count("path") == sum(gate.gate == "cx" for gate in gates)
    assert tags.count("rect") == sum(gate.gate != "cx" for gate in gates)
    words = [element.text for element in drawing.iter() if element.text]
    assert [f"w{index}" in words for index in range(spec.num_weights)] == [True] * spec.num_weights
    boxes = [(element.get("x"), element.get("y")) for element in drawing.iter() if element.tag.endswith("rect")]
    assert len(set(boxes)) == len(boxes)


def test_circuit_too_wide_is_text(train: Any, tmp_path: Path) -> None:
    assert circuit_svg(HeadSpec(num_layers=40)) is None
    train(tmp_path / "run", num_layers=40, epochs=1)
    page = Page(write_report(tmp_path / "run").read_text("utf-8"))
    assert "pre" in {tag for tag, attributes in page.tags if attributes.get("class") == "drawing"}


def result(only_model: int, only_twin: int, p_value: float, mine: float = 0.9, theirs: float = 0.8) -> dict[str, Any]:
    test = {"only_model": only_model, "only_twin": only_twin, "p_value": p_value}
    return {"mcnemar": {"linear": test}, "test": {"accuracy": mine}, "twins": {"linear": {"test": {"accuracy": theirs}}}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (result(0, 0, 1.0), "right about the same images: no difference can be seen"),
        (result(5, 3, 0.727), "cannot be told apart from the linear twin by these images: of 8 images"),
        (result(1, 0, 1.0), "of 1 image on which only one of them is right, the quantum head has 1 and the linear twin 0"),
        (result(20, 2, 0.0001), "is better than the linear twin, by more than chance explains"),
        (result(2, 20, 0.0001, 0.8, 0.9), "is worse than the linear twin, by more than chance explains"),
        (result(2, 20, 0.0001, 0.8, 0.9), "p < 0.001"),
    ],
)
def test_verdict_goes_by_mcnemar(found: dict[str, Any], said: str) -> None:
    assert said in twin_verdict("linear", found)


def test_headline_counts_misses_and_alarms() -> None:
    test = {"num_images": 20, "accuracy": 0.8, "labels": ["crack", "none"], "positive": "crack", "confusion": [[9, 1], [3, 7]]}
    assert headline(test) == (
        "16 of 20 images that it had never seen were answered correctly; of 10 with crack it missed 1, and it raised 3 false alarms."
    )
    clean = {**test, "accuracy": 1.0, "confusion": [[10, 0], [0, 10]]}
    assert headline(clean).endswith("of 10 with crack it missed none, and it raised no false alarm.")
    assert headline({**test, "labels": ["a", "b", "c"]}) == "16 of 20 images that it had never seen were answered correctly."


def test_leakage_is_said_beside_the_figure(finished_run: Path, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    assert "byte for byte" not in write_report(run.path).read_text("utf-8")
    recorded = run.data()
    assert recorded is not None
    run.write_data({**recorded, "leaked": 3})
    page = Page(write_report(run.path).read_text("utf-8"))
    assert "3 images of the validation and test split are byte for byte equal to one that was trained on" in page.text
    assert "never seen" not in page.text


def test_command_repeats_the_options(finished_run: Path, photographs: Path) -> None:
    import shlex

    from training.cli.fitting import fit

    values = {"data": photographs / "it's", "backend": "aer", "shots": 5, "backend_options": {"mitigation": "readout"}, "seed": 3}
    config = FitConfig.parse({**values, "num_layers": 2, "tensorboard": True})
    program, command, *arguments = shlex.split(reproduce_command(config))
    assert (program, command) == ("hqtl-train", "fit")
    known = {option for parameter in fit.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known
    assert str(photographs / "it's") in arguments
    assert "mitigation=readout" in arguments


def test_evaluations_and_bundle_stand_beside_the_run(
    finished_run: Path, exported_bundle: Path, photographs: Path, feature_cache: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "aer.json", tmp_path / "page.html"
    command = ["evaluate", str(finished_run), str(photographs), "--backend", "aer", "--shots", "300", "--cache-dir", str(feature_cache)]
    file.write_text(CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False).stdout)
    shown = CliRunner().invoke(
        main, ["report", str(finished_run), "--out", str(out), "--evaluation", str(file), "--bundle", str(exported_bundle)]
    )
    assert (shown.exit_code, shown.stdout.strip()) == (0, str(out)), shown.output
    page = Page(out.read_text("utf-8"))
    page.assert_whole()
    assert re.search(r"aer\s*300\s*6 of photographs \(test\)", page.text)
    file.write_text('{"accuracy": 1}')
    with pytest.raises(InputError, match="is missing"):
        write_report(finished_run, out, [file])
    with pytest.raises(BundleError):
        write_report(finished_run, out, bundle=finished_run)


def test_unfinished_run_and_comparison_options_are_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").start(FitConfig.parse({"data": tmp_path}))
    with pytest.raises(InputError, match="has not finished"):
        write_report(tmp_path / "run")
    (tmp_path / "compare.json").write_text("{}")
    assert "of schema None" in CliRunner().invoke(main, ["report", str(tmp_path)]).stderr
    assert CliRunner().invoke(main, ["report", str(tmp_path), "--bundle", str(tmp_path)]).exit_code == 2
