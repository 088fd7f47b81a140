"""The run folder: what is written comes back, and what a kill or a bad disk leaves is told apart from a run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hqtl_common import HeadSpec
from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig
from training.head import make_head
from training.model import build_model
from training.runs import Checkpoint, RunFolder, commit_together, is_run
from training.stack import Lineup, make_lineup
from training.trainer import Trainer, TrainingData

CONFIG = FitConfig(data=Path("photos"), weights="none", epochs=5, seed=3)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "deep" / "run")
    run.start(CONFIG)
    return run


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.iterdir())


def test_start_records_every_option(run: RunFolder) -> None:
    assert run.config() == FitConfig.parse(CONFIG.model_dump())
    assert json.loads((run.path / "config.json").read_text())["seed"] == 3
    assert (run.data(), run.result(), run.metrics(), run.load_checkpoint()) == (None, None, [], None)
    assert names(run) == ["config.json"]


@pytest.mark.parametrize("left", [[], ["config.json"], ["config.json", ".lock", ".data.json.partial", ".checkpoint.partial"]])
def test_a_run_that_had_not_begun_is_begun_anew(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{}")
    RunFolder(tmp_path).start(CONFIG)
    assert RunFolder(tmp_path).config().seed == 3


@pytest.mark.parametrize("left", ["data.json", "metrics.jsonl", "checkpoint.safetensors", "thesis.tex", ".hidden"])
def test_anything_else_in_the_folder_is_refused_and_stays(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("precious")
    with pytest.raises(ConfigError, match=r"exists already; go on with it by --resume"):
        RunFolder(tmp_path).start(CONFIG)
    assert (tmp_path / left).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        RunFolder(tmp_path / "run").start(CONFIG)


def test_data_and_result_round_trip(run: RunFolder) -> None:
    data = {"labels": ["Riß", "plain"], "split": {"train": ["undecodable \udcff.png"]}}
    run.write_data(data)
    run.write_result({"accuracy": 0.1 + 0.2})
    assert run.data() == data
    assert run.result() == {"accuracy": 0.1 + 0.2}
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_result({"accuracy": math.nan})
    assert run.result() == {"accuracy": 0.1 + 0.2}, "a failed write must leave the old file"


def test_what_is_no_run(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    assert not is_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a run: there is no config\.json"):
        RunFolder(tmp_path).config()
    (tmp_path / "several/seed-1").mkdir(parents=True)
    (tmp_path / "several/seed-1/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds 1 runs, give one of them, like '.*/several/seed-1'"):
        RunFolder(tmp_path / "several").config()
    (tmp_path / "config.json").write_text('{"data": "x", "colour": "red"}')
    assert is_run(tmp_path)
    with pytest.raises(ConfigError, match="colour"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("damage", [b"", b'{"labels": ', b"[1]", b"null", b'\xff\xfe{"', b"\0" * 40, b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "data.json", "result.json", "metrics.jsonl"])
def test_damaged_files_are_named(run: RunFolder, name: str, damage: bytes) -> None:
    readers = {"config.json": run.config, "data.json": run.data, "result.json": run.result, "metrics.jsonl": run.metrics}
    (run.path / name).write_bytes(damage + b"\n")
    with pytest.raises(InputError, match=rf"{name}' is damaged .*; remove the run and train again"):
        readers[name]()


def line(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1 / epoch}


def test_metrics_round_trip_and_trim(run: RunFolder) -> None:
    for epoch in range(1, 6):
        run.append_metrics(line(epoch))
    assert run.metrics() == [line(epoch) for epoch in range(1, 6)]
    run.trim_metrics(3)
    assert run.metrics() == [line(1), line(2), line(3)]
    run.append_metrics(line(4))
    assert run.metrics()[-1] == line(4)
    run.trim_metrics(0)
    assert (run.path / "metrics.jsonl").read_bytes() == b""


def test_line_cut_off_by_a_kill_is_left_out(run: RunFolder) -> None:
    for epoch in (1, 2):
        run.append_metrics(line(epoch))
    whole = (run.path / "metrics.jsonl").read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        (run.path / "metrics.jsonl").write_bytes(whole[:length])
        assert run.metrics() == [line(1)]
    run.trim_metrics(1)
    run.append_metrics(line(2))
    assert (run.path / "metrics.jsonl").read_bytes() == whole


TENSORS = {
    "model.a": torch.arange(3.0),
    "model.b.c": torch.ones(2, 2, dtype=torch.float64),
    "best.a": torch.zeros(()),
    "modelling": torch.ones(1),
}


def test_checkpoint_round_trip(run: RunFolder) -> None:
    run.save_checkpoint(Checkpoint(TENSORS, {"epoch": 3, "best_loss": math.inf, "loss": 0.1}))
    found = run.load_checkpoint()
    assert found is not None
    assert found.progress == {"epoch": 3, "best_loss": math.inf, "loss": 0.1}
    assert sorted(found.tensors) == sorted(TENSORS)
    for key, value in TENSORS.items():
        assert found.tensors[key].dtype == value.dtype
        assert torch.equal(found.tensors[key], value)
    assert sorted(found.part("model")) == ["a", "b.c"]
    assert names(run) == ["checkpoint.safetensors", "config.json"]


def test_checkpoint_is_replaced_in_one_step(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint(Checkpoint({"model.a": torch.zeros(1)}, {"epoch": 1}))

    def cut_off(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("training.runs.save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(Checkpoint({"model.a": torch.ones(1)}, {"epoch": 2}))
    found = run.load_checkpoint()
    assert found is not None
    assert found.progress["epoch"] == 1


def test_damaged_checkpoint_is_named(run: RunFolder) -> None:
    path = run.path / "checkpoint.safetensors"
    run.save_checkpoint(Checkpoint(TENSORS, {"epoch": 3}))
    whole = path.read_bytes()
    save_file({"model.a": torch.ones(1)}, run.path / "other")
    other = (run.path / "other").read_bytes()
    for damaged in (b"", b"abc", whole[:8], whole[:-1], b"\0" * 50, other, whole.replace(b"epoch", b"epo\\x")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"checkpoint\.safetensors' is damaged .*; remove the run"):
            run.load_checkpoint()


def lineup(count: int = 1) -> Lineup:
    models = [build_model(8, 2, HeadSpec(), seed=seed) for seed in range(1, count + 1)]
    return make_lineup(models, make_head(HeadSpec(), torch.stack([model.head.weights.detach() for model in models])), range(count))


def trained(run: RunFolder) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(9, 8, generator=generator), torch.arange(9) % 2)
    trainer = Trainer(lineup(), [CONFIG], [run])
    trainer.train([TrainingData(data, data)], lambda reports: None)
    return trainer


def test_trainer_goes_on_where_the_checkpoint_stands(run: RunFolder) -> None:
    trained(run)
    run.append_metrics(line(6))  # of an epoch whose checkpoint was not written any more
    again = Trainer(lineup(), [CONFIG], [run])
    assert (again.epoch, again.runs[0].finished) == (5, True)
    assert [figures["epoch"] for figures in run.metrics()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("key", ["model.pre_net.linear.weight", "best.head.weights", "twins.linear.outer.bias", "optimizer.float64.mean"])
def test_checkpoint_of_something_else_is_refused(run: RunFolder, key: str) -> None:
    trained(run)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    part = key.partition(".")[0]
    without = {name: value for name, value in checkpoint.tensors.items() if name != key}
    wrong = {**checkpoint.tensors, key: torch.zeros(1, 2, 3)}
    for tensors in (without, wrong, {name: value for name, value in without.items() if not name.startswith(part)}):
        run.save_checkpoint(Checkpoint(tensors, checkpoint.progress))
        with pytest.raises(InputError, match=r"checkpoint of .* does not fit the model"):
            Trainer(lineup(), [CONFIG], [run])
    run.save_checkpoint(Checkpoint(checkpoint.tensors, {"epoch": 3}))
    with pytest.raises(InputError, match=r"checkpoint of .* does not fit the model"):
        Trainer(lineup(), [CONFIG], [run])


@pytest.fixture
def pair(tmp_path: Path) -> list[RunFolder]:
    """Two runs whose checkpoints of epoch 3 are in force."""
    runs = [RunFolder(tmp_path / name) for name in ("first", "second")]
    for run in runs:
        run.start(CONFIG)
        run.save_checkpoint(Checkpoint(TENSORS, {"epoch": 3}))
    return runs


def epochs(runs: list[RunFolder]) -> list[int]:
    return [checkpoint.progress["epoch"] for run in runs if (checkpoint := run.load_checkpoint())]


def test_kill_between_the_commits_of_a_stack_is_mended(pair: list[RunFolder]) -> None:
    for run in pair:
        run.stage_checkpoint(Checkpoint(TENSORS, {"epoch": 4}))
    assert epochs(pair) == [3, 3]
    commit_together(pair)
    assert epochs(pair) == [3, 3], "as long as none was put in force, the epoch has not happened"
    pair[1].commit_checkpoint()
    commit_together(pair)
    assert epochs(pair) == [4, 4]
    commit_together(pair)
    assert epochs(pair) == [4, 4]


def test_run_that_stopped_early_stays_behind(pair: list[RunFolder]) -> None:
    pair[0].save_checkpoint(Checkpoint(TENSORS, {"epoch": 4}))
    commit_together(pair)
    assert epochs(pair) == [4, 3]
    pair[1].stage_checkpoint(Checkpoint(TENSORS, {"epoch": 7}))  # of no epoch that this stack could have staged
    commit_together(pair)
    assert epochs(pair) == [4, 3]


def test_runs_at_different_epochs_are_not_trained_together(run: RunFolder, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 9})
    other = RunFolder(tmp_path / "other")
    other.start(config)
    trained(run)
    with pytest.raises(InputError, match="stand at different epochs"):
        Trainer(lineup(2), [config, config], [run, other])


def test_one_process_per_folder(run: RunFolder) -> None:
    with run.locked(), pytest.raises(ConfigError, match="another process trains in"), RunFolder(run.path).locked():
        pass
    with run.locked():
        assert names(run) == [".lock", "config.json"]
    assert names(run) == ["config.json"]


def test_lock_of_a_killed_process_locks_nobody_out(run: RunFolder) -> None:
    holder = """
import sys, time
from pathlib import Path
from training.runs import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print(1, flush=True)
    time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", holder, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(ConfigError, match="another process trains in"):
            RunFolder(run.path).start(CONFIG)
        process.kill()
        process.wait()
    assert ".lock" in names(run)
    with run.locked():
        pass
    assert names(run) == ["config.json"]
