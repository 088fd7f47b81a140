"""``hqtl-train paper`` on synthetic photographs with random weights: every item in miniature, and what happens when it is stopped."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from training.cli import main
from training.paper import table3, work
from training.paper.protocol import DEVICES, Part
from training.paper.study import ITEMS

ROOT = Path(__file__).parents[2]
TINY = ["--weights", "none", "--seeds", "2", "--epochs", "2", "--layers", "1", "--batch-size", "8", "--shots", "64", "--workers", "1"]
TINY += ["--device-epochs", "1", "--device-seeds", "1", "--twin-seeds", "1", "--twin-group-by", "none"]
TINY += ["--backbone", "resnet18"]
COUNTED = ("backprop", "parameter-shift", "lean-shift", "commuting")

Study = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def fewer_counts() -> Iterator[None]:
    """Table 3 with L = 1 and without the finite difference, which figure 6 trains."""
    with pytest.MonkeyPatch.context() as patch:
        for key in list(table3.METHODS):
            if key in COUNTED:
                patch.setitem(table3.METHODS, key, dataclasses.replace(table3.METHODS[key], layers=(1,)))
            else:
                patch.delitem(table3.METHODS, key)
        yield


@pytest.fixture(scope="module")
def study(photographs: Path, feature_cache: Path) -> Study:
    """``study(out, *options)``: exit code, standard output and standard error of the command."""

    def study(out: Path, *options: str) -> tuple[int, str, str]:
        arguments = ["paper", "--data", str(photographs), "--out", str(out), "--cache-dir", str(feature_cache), *TINY, *options]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        return done.exit_code, done.stdout, done.stderr

    return study


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished study of all items, and what ``--json`` printed; read-only."""
    out = tmp_path_factory.mktemp("paper") / "study"
    code, stdout, stderr = study(out, "--json")
    assert code == 0, stderr
    answer: dict[str, Any] = json.loads(stdout)
    return out, answer


def test_every_item_leaves_data_and_pictures(whole: tuple[Path, dict[str, Any]]) -> None:
    out, answer = whole
    assert list(answer["items"]) == list(ITEMS) == ["table3", "figure6", "figure7", "table5", "figure9", "table6", "twin"]
    for name, item in answer["items"].items():
        assert set(item["files"]) == {f"{name}.{kind}" for kind in ("json", "csv", "png", "pdf", "svg")}
        assert all((out / file).stat().st_size for file in item["files"])
        assert item["findings"]
        with Image.open(out / f"{name}.png") as image:
            image.load()
        rows = json.loads((out / f"{name}.json").read_text())["rows"]
        with (out / f"{name}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
    assert list(out.rglob("*.partial")) == []
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    assert [session["items"] for session in sessions] == [list(ITEMS)]
    assert sessions[0]["cpu_seconds"] > 0


def test_calls_are_counted_as_the_formulas_say(whole: tuple[Path, dict[str, Any]]) -> None:
    values = json.loads((whole[0] / "table3.json").read_text())
    assert [row["method"] for row in values["rows"]] == list(COUNTED)
    for row in values["rows"]:
        assert row["counted"] == row["per_epoch"] == row["per_image"] * row["train"] + row["val"], row
    assert (values["rows"][0]["train"], values["rows"][0]["val"]) == (28, 6)
    assert values["equation9"]["parameter-shift"] == 7888


def test_the_three_methods_take_the_same_steps(whole: tuple[Path, dict[str, Any]]) -> None:
    values = json.loads((whole[0] / "figure6.json").read_text())
    loss = {(row["method"], row["seed"]): row["loss"] for row in values["rows"]}
    assert len(loss) == 6
    for seed in (0, 1):
        assert loss["parameter-shift", seed] == pytest.approx(loss["backprop", seed], abs=1e-5), "both are exact"
        assert loss["finite-diff-forward", seed] == pytest.approx(loss["backprop", seed], abs=0.05)
        assert loss["finite-diff-forward", seed] != loss["parameter-shift", seed]
    assert loss["backprop", 0] != loss["backprop", 1]


def test_figures_are_those_of_the_runs(whole: tuple[Path, dict[str, Any]]) -> None:
    out, _ = whole
    rows = json.loads((out / "figure9.json").read_text())["rows"]
    assert [(row["backbone"], row["num_layers"], row["seed"]) for row in rows] == [("resnet18", 1, 0), ("resnet18", 1, 1)]
    for row in rows:
        result = json.loads((out / "runs" / f"{row['backbone']}-L1-backprop" / f"seed-{row['seed']}" / "result.json").read_text())
        assert row["accuracy"] == result["test"]["accuracy"]
        assert row["bottleneck_loss"] == result["twins"]["bottleneck"]["test"]["loss"]
    mistakes = json.loads((out / "figure7.json").read_text())
    confusion, positive = mistakes["test"]["confusion"], mistakes["labels"].index(mistakes["positive"])
    kinds = [row["kind"] for row in mistakes["rows"]]
    assert kinds.count("false positive") == confusion[1 - positive][positive]
    assert kinds.count("false negative") == confusion[positive][1 - positive]


def test_page_names_every_stand_in_where_it_is_used(whole: tuple[Path, dict[str, Any]]) -> None:
    page = (whole[0] / "index.html").read_text()
    sections = {name: page.partition(f'<section id="{name}">')[2].partition("</section>")[0] for name in ITEMS}
    for device in ("qasm_simulator", "ibmq_kolkata", "ibmq_ehningen"):
        assert f"{device} (stand-in {DEVICES[device].backend})" in sections["table5"]
        assert DEVICES[device].note.partition("'")[0] in sections["table5"]
    assert "fake_lima, the stand-in for ibmq_lima" in sections["figure7"]
    assert "random" in sections["figure9"]
    for time_of_the_paper in ("2 min 26 s", "12 min 05 s", "17 h 01 min 30 s", "16 h 45 min 28 s"):
        assert time_of_the_paper in sections["table5"]
    assert "36 min 20 s" in sections["table6"]
    assert sections["twin"].count("twin") > 5
    for name in ("table5", "figure7"):
        assert "stand-in" in (whole[0] / f"{name}.svg").read_text()


def test_a_finished_study_is_not_done_again(whole: tuple[Path, dict[str, Any]], study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = whole

    def refuse(*arguments: object) -> None:
        raise AssertionError("there is nothing to train")

    monkeypatch.setattr(work, "_do_part", refuse)
    before = (out / "figure9.json").read_bytes()
    code, stdout, stderr = study(out, "--figure", "9")
    assert code == 0, stderr
    assert "Figure 9" in stdout
    assert "Table 5" not in stdout
    assert (out / "figure9.json").read_bytes() == before
    assert '<section id="table5">' in (out / "index.html").read_text(), "the page keeps what was made before"


def test_other_options_need_another_folder(whole: tuple[Path, dict[str, Any]], study: Study, tmp_path: Path) -> None:
    code, _, stderr = study(whole[0], "--seeds", "3")
    assert code == 1
    assert "seeds: 2 there, 3 now" in stderr
    (tmp_path / "thesis.tex").touch()
    code, _, stderr = study(tmp_path)
    assert code == 1
    assert "holds something else" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_stopped_study_goes_on(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = work._do_part

    def stop_at_the_second(part: Part, out: Path, cache_folder: Path) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(part.name)
        real(part, out, cache_folder)

    with monkeypatch.context() as patch:
        patch.setattr(work, "_do_part", stop_at_the_second)
        code, _, stderr = study(tmp_path / "study", "--table", "3")
    assert code == 130
    assert not (tmp_path / "study" / "index.html").exists()
    monkeypatch.setattr(work, "_do_part", lambda part, out, cache: (done.append(part.name), real(part, out, cache)))
    code, _, stderr = study(tmp_path / "study", "--table", "3")
    assert code == 0, stderr
    assert done == [f"calls-{method}-L1" for method in COUNTED]


@pytest.mark.slow
def test_killed_in_the_middle_with_its_workers(photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = [
        sys.executable,
        "-m",
        "training.cli",
        "paper",
        "--data",
        str(photographs),
        "--out",
        str(out),
        "--cache-dir",
        str(feature_cache),
    ]
    command += [*TINY, "--workers", "2", "--epochs", "40", "--figure", "6"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list(out.glob("runs/*/seed-0/checkpoint.safetensors"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = {path: path.read_bytes() for path in out.glob("runs/*/seed-0/metrics.jsonl")}
    time.sleep(3)
    grown = [path for path, before in lines.items() if len(path.read_bytes()) > len(before) + 2000]
    assert not grown, "the workers ended with their parent"
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert len(json.loads((out / "figure6.json").read_text())["rows"]) == 6


def wait_until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)
