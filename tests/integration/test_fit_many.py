"""Runs trained together: what each leaves is what it leaves alone, in as many jobs as one, whatever stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hqtl_common.backends.statevector import StatevectorBackend
from hqtl_common.errors import ConfigError
from hqtl_common.records import Evaluation, ExecutionRecord
from training.cli import main
from training.config import FitConfig
from training.fit import fit_many, open_run
from training.runs import RunFolder

Many = Callable[..., list[dict[str, Any]]]
OPTIONS = {"weights": "none", "split_seed": 0, "epochs": 12, "lr": 0.01, "patience": 2}


@pytest.fixture(scope="module")
def many(photographs: Path, feature_cache: Path) -> Many:
    """``many(folder, seeds, **options)``: train one run per seed together."""

    def many(folder: Path, seeds: list[int], **options: Any) -> list[dict[str, Any]]:
        base = FitConfig.parse({"data": photographs, **OPTIONS, **options})
        configs = [base.model_copy(update={"seed": seed}) for seed in seeds]
        opened = [open_run(folder / f"seed-{config.seed}", config, resume=True) for config in configs]
        return fit_many([config for _, config in opened], [run for run, _ in opened], feature_cache)

    return many


@pytest.fixture(scope="module")
def together(many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, trained without a disturbance, each until its own early stop."""
    folder = tmp_path_factory.mktemp("together")
    many(folder, [0, 1, 2])
    return folder


def logits(run: Path) -> np.ndarray:
    predictions = RunFolder(run).predictions()
    assert predictions is not None
    return np.concatenate([np.array(list(predictions[name]["logits"].values())) for name in ("val", "test")], axis=1)


def assert_same_series(left: Path, right: Path) -> None:
    for mine in left.iterdir():
        theirs = right / mine.name
        for name in ("result.json", "predictions.json", "data.json", "config.json", "curves.png", "checkpoint.safetensors"):
            assert (mine / name).read_bytes() == (theirs / name).read_bytes(), (mine, name)
        kept = [[{**line, "seconds": 0} for line in RunFolder(path).metrics()] for path in (mine, theirs)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize("seed", [0, 2])
def test_each_is_what_it_would_be_alone(together: Path, many: Many, tmp_path: Path, seed: int) -> None:
    (alone,) = many(tmp_path, [seed])
    mine = RunFolder(together / f"seed-{seed}").result()
    assert mine is not None
    for key in ("epochs", "best_epoch", "jobs", "parameter_sets", "planned", "logistic_regression", "mcnemar"):
        assert mine[key] == alone[key], key
    assert (mine["runs"], alone["runs"]) == (3, 1)
    for split in ("val", "test"):
        assert mine[split]["confusion"] == alone[split]["confusion"]
        assert mine[split]["loss"] == pytest.approx(alone[split]["loss"], abs=1e-5)
        assert mine["twins"]["linear"][split]["loss"] == pytest.approx(alone["twins"]["linear"][split]["loss"], abs=1e-5)
    np.testing.assert_allclose(logits(together / f"seed-{seed}"), logits(tmp_path / f"seed-{seed}"), atol=1e-4)


def test_each_stops_by_itself(together: Path) -> None:
    epochs = {len(RunFolder(path).metrics()) for path in together.iterdir()}
    assert len(epochs) > 1, "choose other seeds: none stops before another"
    running = [line["runs"] for line in max((RunFolder(path).metrics() for path in together.iterdir()), key=len)]
    assert running[0] == 3
    assert running[-1] < 3


def test_predictions_are_those_of_the_figures(together: Path) -> None:
    run = RunFolder(together / "seed-1")
    predictions, result, data = run.predictions(), run.result(), run.data()
    assert predictions is not None
    assert result is not None
    assert data is not None
    right = {}
    for split in ("val", "test"):
        part = predictions[split]
        assert part["paths"] == data["split"][split]
        assert [predictions["labels"][label] for label in part["truth"]] == [path.partition("/")[0] for path in part["paths"]]
        for name, figures in (("hybrid", result), *result["twins"].items()):
            right[name] = np.array(part["logits"][name]).argmax(1) == part["truth"]
            assert right[name].mean() == pytest.approx(figures[split]["accuracy"])
    for twin, test in result["mcnemar"].items():
        assert test["only_model"] - test["only_twin"] == right["hybrid"].sum() - right[twin].sum()


class StoppedError(Exception):
    """Raised where a kill is simulated."""


@pytest.mark.parametrize(("method", "at"), [("commit_checkpoint", 2), ("append_metrics", 6), ("stage_checkpoint", 5), ("write_result", 2)])
def test_stopped_anywhere_a_stack_goes_on_as_a_stack(
    together: Path, many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, at: int
) -> None:
    """Also between the runs of one epoch, and again and again."""
    original = getattr(RunFolder, method)
    calls = 0

    def stop(run: RunFolder, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % at == 0:
            raise StoppedError
        original(run, *arguments)

    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, method, stop)
        while stops < 2:
            try:
                many(tmp_path, [0, 1, 2])
                break
            except StoppedError:
                stops += 1
    assert stops == 2
    many(tmp_path, [0, 1, 2])
    assert_same_series(together, tmp_path)


SAMPLED = {"shots": 30, "diff_method": "parameter-shift", "epochs": 2, "patience": None}


def test_ten_seeds_cost_the_jobs_of_one(many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[ExecutionRecord] = []
    original = StatevectorBackend.run

    def run(*arguments: Any, **options: Any) -> Evaluation:
        answer = original(*arguments, **options)
        records.append(answer.record)
        return answer

    monkeypatch.setattr(StatevectorBackend, "run", run)
    for picture in ("plot_curves", "plot_confusion"):  # eleven times both would take longer than all the rest
        monkeypatch.setattr(f"training.fit.{picture}", lambda *arguments: None)
    counts = {}
    for seeds in (1, 10):
        records.clear()
        results = many(tmp_path / str(seeds), list(range(seeds)), **SAMPLED)
        counts[seeds] = (sum(record.num_jobs for record in records), sum(record.num_rows for record in records))
        assert {(each["jobs"], each["parameter_sets"]) for each in results} == {(counts[1][0], counts[1][1])}
    assert counts[1] == (2 * (7 + 1) + 2, 2 * (28 * 17 + 6) + 12)
    assert counts[10] == (counts[1][0], 10 * counts[1][1])


def test_sampled_runs_are_resumed_together(many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "whole", [3, 4], **SAMPLED)
    original, calls = RunFolder.commit_checkpoint, 0

    def stop(run: RunFolder) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoppedError
        original(run)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit_checkpoint", stop)
        with pytest.raises(StoppedError):
            many(tmp_path / "stopped", [3, 4], **SAMPLED)
    with pytest.raises(ConfigError, match="share the noise of their backend; resume all that were begun together"):
        many(Path(shutil.copytree(tmp_path / "stopped", tmp_path / "one")), [3], **SAMPLED)
    many(tmp_path / "stopped", [3, 4], **SAMPLED)
    assert_same_series(tmp_path / "whole", tmp_path / "stopped")


def test_what_differs_in_more_is_refused(photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    configs = [FitConfig.parse({"data": photographs, "weights": "none", "epochs": epochs, "batch_size": 9 - epochs}) for epochs in (1, 2)]
    runs = [RunFolder(tmp_path / str(index)) for index in range(2)]
    with pytest.raises(ConfigError, match="may differ in fold, lr, seed, split_seed; these differ in batch_size, epochs"):
        fit_many(configs, runs, feature_cache)


def test_a_folder_in_use_is_left_alone(together: Path, many: Many, tmp_path: Path) -> None:
    open_run(tmp_path / "seed-0", RunFolder(together / "seed-0").config(), resume=False)
    with RunFolder(tmp_path / "seed-0").locked(), pytest.raises(ConfigError, match="another process trains in"):
        many(tmp_path, [0])


def command(*words: str | Path) -> tuple[int, str, str]:
    answer = CliRunner().invoke(main, ["fit", *map(str, words)])
    return answer.exit_code, answer.stdout, answer.stderr


def test_seeds_by_the_command(photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    out, common = tmp_path / "series", ("--cache-dir", feature_cache)
    given = ("--weights", "none", "--split-seed", "0", "--epochs", "2", "--num-qubits", "3", "--entangler", "circular")
    code, stdout, stderr = command(photographs, "--out", out, "--seeds", "0-2", *given, *common, "--json")
    assert code == 0, stderr
    assert "3 runs together" in stderr
    summary = json.loads(stdout)
    assert summary.pop("run") == str(out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "seed-0", "seed-1", "seed-2", "series.json", "summary.json"]
    results = [RunFolder(out / f"seed-{seed}").result() for seed in range(3)]
    assert summary["test"]["loss"]["mean"] == pytest.approx(np.mean([result["test"]["loss"] for result in results if result]))
    (out / "seed-1" / "result.json").unlink()
    before = (out / "summary.json").read_bytes()
    code, stdout, stderr = command("--resume", out, *common)
    assert code == 0, stderr
    assert (out / "summary.json").read_bytes() == before
    for part in ("seed-2", "mean and 95 % interval", "test, less the linear twin", str(out / "summary.json")):
        assert part in stdout
    assert command(photographs, "--out", out, "--seeds", "0-2", *given, *common)[0] == 1
    assert command(photographs, "--out", out, "--seeds", "0-3", *given, *common, "--resume")[0] == 1
    code, _, stderr = command(photographs, "--out", tmp_path / "x", "--seeds", "0-2", "--seed", "1")
    assert (code, "not both" in stderr) == (2, True)


def test_folds_by_the_command(photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    given = ("--weights", "none", "--folds", "4", "--epochs", "1", "--cache-dir", feature_cache)
    code, stdout, stderr = command(photographs, "--out", tmp_path / "folds", *given)
    assert code == 0, stderr
    assert "McNemar's exact test" in stdout
    tested = [RunFolder(tmp_path / "folds" / f"fold-{fold}").data() for fold in range(1, 5)]
    paths = [path for data in tested if data for path in data["split"]["test"]]
    assert len(paths) == len(set(paths)) == 40, "every image is tested once"
    code, _, stderr = command(photographs, "--out", tmp_path / "one", *given, "--fold", "2")
    assert code == 0, stderr
    alone = RunFolder(tmp_path / "one").data()
    assert alone == tested[1]
    assert command(photographs, "--out", tmp_path / "none", *given, "--fold", "5")[0] == 1
