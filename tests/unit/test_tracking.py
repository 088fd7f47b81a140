"""Event files for TensorBoard, read back by TensorBoard: every epoch once, also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hqtl_common import HeadSpec
from training.config import FitConfig
from training.head import make_head
from training.model import build_model
from training.runs import RunFolder
from training.stack import make_lineup
from training.tracking import open_trackers
from training.trainer import EpochReport, Trainer, TrainingData

pytest.importorskip("tensorboard")


class StoppedError(Exception):
    """Raised where a kill is simulated."""


def train(path: Path, epochs: int, stop_at: int | None = None, *, tensorboard: bool = True) -> RunFolder:
    """Train; at ``stop_at`` the events are written and the checkpoint is not."""
    config, run = FitConfig(data=Path("none"), epochs=epochs, lr=0.02, tensorboard=tensorboard), RunFolder(path)
    if not path.exists():
        run.start(config)
    model = build_model(5, 2, HeadSpec(), seed=0)
    trainer = Trainer(make_lineup([model], make_head(HeadSpec(), model.head.weights.detach()[None]), [0]), [config], [run])
    data = (torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2)
    with open_trackers(trainer.runs) as track:

        def on_epoch(reports: list[EpochReport]) -> None:
            track(reports)
            if reports[0].figures["epoch"] == stop_at:
                raise StoppedError

        trainer.train([TrainingData(data, data)], on_epoch)
    return run


def events(run: RunFolder) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    return found.Reload()


def test_every_figure_is_there(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 4)
    found, metrics = events(run), run.metrics()
    for tag, key in (
        ("loss/train", "train_loss"),
        ("loss/validation", "val_loss"),
        ("accuracy/validation", "val_accuracy"),
        ("jobs", "jobs"),
    ):
        assert [(one.step, one.value) for one in found.Scalars(tag)] == [(line["epoch"], pytest.approx(line[key])) for line in metrics]
    twin = [one.value for one in found.Scalars("loss/validation, linear twin")]
    assert twin == pytest.approx([line["twins"]["linear"]["val_loss"] for line in metrics])
    assert [one.value for one in found.Scalars("lr")] == pytest.approx([0.02] * 4)
    assert [one.step for one in found.Histograms("pre_net.linear.weight")] == [1, 2, 3, 4]
    assert found.Histograms("head.weights")[0].histogram_value.num == 4


def test_no_step_counts_twice_after_a_resume(tmp_path: Path) -> None:
    for stop_at in (3, 4):
        with pytest.raises(StoppedError):
            train(tmp_path / "run", 6, stop_at)
    run = train(tmp_path / "run", 6)
    whole = train(tmp_path / "whole", 6)
    for tag in ("loss/train", "loss/validation"):
        mine, theirs = ([(one.step, one.value) for one in events(each).Scalars(tag)] for each in (run, whole))
        assert mine == theirs
    assert [one.step for one in events(run).Histograms("post_net.bias")] == [1, 2, 3, 4, 5, 6]


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    assert not (train(tmp_path / "run", 1, tensorboard=False).path / "tensorboard").exists()
