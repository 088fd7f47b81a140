"""Measuring a run and a bundle: the same numbers, on the right images, and nothing silently left out."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import training.judges
from hqtl_common import backend_capabilities
from hqtl_common.errors import BackendError, BundleError, ConfigError, InputError
from training.cli import main
from training.evaluate import evaluate
from training.runs import RunFolder

Measure = Callable[..., dict[str, Any]]
FIGURES = (
    "num_images",
    "accuracy",
    "accuracy_interval",
    "balanced_accuracy",
    "precision",
    "recall",
    "f1",
    "confusion",
    "roc_auc",
    "labels",
)


@pytest.fixture
def measure(photographs: Path, feature_cache: Path) -> Measure:
    def measure(model: Path, folder: Path = photographs, **options: Any) -> dict[str, Any]:
        return evaluate(model, folder, cache_folder=feature_cache, **options)

    return measure


@pytest.mark.parametrize("subset", ["train", "val", "test", "all"])
def test_run_and_bundle_give_the_same_numbers(measure: Measure, finished_run: Path, exported_bundle: Path, subset: str) -> None:
    by_run, by_bundle = measure(finished_run, subset=subset), measure(exported_bundle, subset=subset)
    assert by_run["num_images"] == {"train": 28, "val": 6, "test": 6, "all": 40}[subset]
    for key in FIGURES:
        assert by_run[key] == by_bundle[key], key
    assert by_run["loss"] == pytest.approx(by_bundle["loss"], abs=1e-5)
    assert (by_run["model"], by_bundle["model"]) == (str(finished_run), str(exported_bundle))
    json.dumps([by_run, by_bundle], allow_nan=False)


def test_numbers_are_those_of_the_training(measure: Measure, finished_run: Path) -> None:
    result = RunFolder(finished_run).result()
    assert result is not None
    for subset in ("val", "test"):
        found = measure(finished_run, subset=subset)
        assert {key: found[key] for key in FIGURES} == {key: result[subset][key] for key in FIGURES}
        assert found["loss"] == pytest.approx(result[subset]["loss"], abs=1e-12)


def test_auto_takes_the_test_split_of_known_data_wherever_they_lie(
    measure: Measure, finished_run: Path, exported_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(photographs, tmp_path / "copy"))
    for model, folder in itertools.product((finished_run, exported_bundle), (photographs, copy)):
        found = measure(model, folder)
        assert (found["subset"], found["num_images"]) == ("test", 6)


@pytest.fixture
def foreign(photographs: Path, tmp_path: Path) -> Path:
    """Ten photographs of the set: another set, as far as the model knows."""
    for label in ("crack", "no_crack"):
        (tmp_path / "foreign" / label).mkdir(parents=True)
        for path in sorted((photographs / label).iterdir())[:5]:
            shutil.copy(path, tmp_path / "foreign" / label)
    return tmp_path / "foreign"


def test_auto_takes_everything_of_unknown_data(measure: Measure, finished_run: Path, exported_bundle: Path, foreign: Path) -> None:
    for model in (finished_run, exported_bundle):
        found = measure(model, foreign)
        assert (found["subset"], found["num_images"]) == ("all", 10)
        with pytest.raises(ConfigError, match=r"is not the folder the model was trained on and has no test split; use all"):
            measure(model, foreign, subset="test")
    with pytest.raises(ConfigError, match="subset must be one of auto, all, train, val, test; got 'half'"):
        measure(finished_run, foreign, subset="half")


def test_auto_takes_the_test_folder_of_a_divided_set(
    measure: Measure, train: Measure, finished_run: Path, foreign: Path, tmp_path: Path
) -> None:
    """Also where the model's own grouping does not fit the names of the foreign set."""
    for part, count in (("train", 2), ("val", 1), ("test", 2)):
        for label in ("crack", "no_crack"):
            (tmp_path / "divided" / part / label).mkdir(parents=True)
            for path in sorted((foreign / label).iterdir())[:count]:
                path.rename(tmp_path / "divided" / part / label / f"other {path.name}")
    found = measure(finished_run, tmp_path / "divided")
    assert (found["subset"], found["num_images"]) == ("test", 4)
    assert measure(finished_run, tmp_path / "divided", subset="all")["num_images"] == 10
    train(tmp_path / "run", epochs=1, group_by=r"^\w+/(\d+)")
    assert measure(tmp_path / "run", tmp_path / "divided")["num_images"] == 4


def test_test_split_that_is_no_longer_the_one_of_the_training_is_refused(
    measure: Measure, train: Measure, photographs: Path, tmp_path: Path
) -> None:
    """The grouping stands in patches.csv, which is no image: without it training images would be called test images."""
    data = Path(shutil.copytree(photographs, tmp_path / "data"))
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    (data / "patches.csv").write_text("file,source\n" + "".join(f"{name},wall {i % 13}\n" for i, name in enumerate(files)))
    train(tmp_path / "run", data=data, epochs=1, group_by="source")
    assert measure(tmp_path / "run", data)["subset"] == "test"
    (data / "patches.csv").unlink()
    with pytest.raises(InputError, match=r"no longer divided as for training .*--subset all"):
        measure(tmp_path / "run", data)
    assert measure(tmp_path / "run", data, subset="all")["num_images"] == 40


@pytest.mark.parametrize("name", ["finished_run", "exported_bundle"])
def test_unknown_classes_are_refused_before_anything_runs(
    measure: Measure, foreign: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (foreign / "crack").rename(foreign / "fissure")
    for judge in (training.judges.RunJudge, training.judges.BundleJudge):
        monkeypatch.setattr(judge, "answer", lambda *args: pytest.fail("spent before it was checked"))
    with pytest.raises(InputError, match=r"has the classes fissure, which the model does not know \(crack, no_crack\)"):
        measure(request.getfixturevalue(name), foreign)


def test_classes_may_be_fewer_than_the_models(measure: Measure, train: Measure, photographs: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photographs, tmp_path / "data"))
    for index in range(8):
        (data / "bolt").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32), 30 * index, dtype=np.uint8)).save(data / "bolt" / f"{index}.png")
    train(tmp_path / "run", data=data, epochs=1)
    found = measure(tmp_path / "run", photographs)
    assert found["labels"] == ["bolt", "crack", "no_crack"]
    assert found["confusion"][0] == [0, 0, 0]
    assert (found["roc_auc"], sum(map(sum, found["confusion"]))) == (None, 40)


@pytest.mark.parametrize(
    ("name", "backend"), [("finished_run", "statevector"), ("finished_run", "pennylane:default.qubit"), ("exported_bundle", "aer")]
)
def test_sampled_heads_repeat_with_the_seed(measure: Measure, request: pytest.FixtureRequest, name: str, backend: str) -> None:
    model = request.getfixturevalue(name)
    losses = [measure(model, backend=backend, shots=30, seed=seed)["loss"] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    found = measure(model, backend=backend, shots=20_000, seed=1)
    assert found["loss"] == pytest.approx(measure(model)["loss"], abs=0.02)
    assert found["execution"]["backend_used"] == backend
    assert (found["execution"]["shots"], found["execution"]["num_rows"], found["execution"]["num_jobs"]) == (20_000, 6, 1)


def test_exact_backends_agree(measure: Measure, finished_run: Path) -> None:
    expected = measure(finished_run)["loss"]
    for backend in ("pennylane:default.qubit", "pennylane:lightning.qubit"):
        assert backend_capabilities(backend).exact
        assert measure(finished_run, backend=backend)["loss"] == pytest.approx(expected, abs=1e-7)


def test_device_without_a_seed_is_used_and_announced(measure: Measure, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(finished_run, backend="pennylane:qiskit.aer", shots=10)
    assert (found["execution"]["shots"], found["execution"]["seed"]) == (10, None)
    assert "warning: pennylane:qiskit.aer draws without a seed: another run gives other samples" in capsys.readouterr().err


def test_bad_options_are_refused_before_anything_runs(
    measure: Measure, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.judges.RunJudge, "answer", lambda *args: pytest.fail("ran before it was checked"))
    with pytest.raises(BackendError, match="unknown backend 'moon'"):
        measure(finished_run, backend="moon")
    with pytest.raises(BackendError, match="has no exact values"):
        measure(finished_run, backend="pennylane:qiskit.aer")
    with pytest.raises(ConfigError, match="seed must be"):
        measure(finished_run, backend="aer", shots=5, seed=2**63)
    with pytest.raises(BundleError, match="not a folder"):
        measure(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["finished_run", "exported_bundle"])
def test_corrupt_images_are_left_out_reported_and_exit_3(
    foreign: Path, feature_cache: Path, request: pytest.FixtureRequest, name: str
) -> None:
    victim = sorted((foreign / "crack").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:1000])
    command = ["evaluate", str(request.getfixturevalue(name)), str(foreign), "--json", "--cache-dir", str(feature_cache)]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 3
    found = json.loads(answer.stdout)
    assert found["num_images"] == 9
    assert [error["path"] for error in found["errors"]] == [f"crack/{victim.name}"]
    assert "damaged or cut off" in found["errors"][0]["error"]
    assert answer.stderr.count(f"left out crack/{victim.name}") == 1
    victim.unlink()
    answer = CliRunner().invoke(main, command)
    assert (answer.exit_code, json.loads(answer.stdout)["errors"]) == (0, [])
    assert {key: json.loads(answer.stdout)[key] for key in FIGURES} == {key: found[key] for key in FIGURES}


@pytest.mark.parametrize("name", ["finished_run", "exported_bundle"])
def test_no_usable_image_is_an_error(measure: Measure, foreign: Path, request: pytest.FixtureRequest, name: str) -> None:
    for path in foreign.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="no usable image to evaluate"):
        measure(request.getfixturevalue(name), foreign)


def test_unfinished_run_is_refused(measure: Measure, finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (copy / "result.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        measure(copy)
