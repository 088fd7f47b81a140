"""The loop: epochs of Adam on cached features for one run or several together, with a checkpoint per run after each epoch.

All runs of a stack take their steps at the same time: the batches of all are one call of the head, and on a sampled or paid
backend one job. Each run has its own order of batches, step size, best epoch, early stop and folder. What the runs share is the
head's noise: its draws come from the seed of the first run, so on a sampled backend a run ends like one trained alone in
distribution and not digit by digit; on an exact one it ends the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig
from training.head import ShiftHead
from training.progress import Best, RunProgress, fitting
from training.runs import Checkpoint, RunFolder, commit_together
from training.stack import CONTENDERS, Lineup, StackedAdam, State

__all__ = ["EpochReport", "Trainer", "TrainingData"]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The two splits that training sees: features (B, F) float32 and labels (B,) int64.

    The features of ``train`` may also be (K, B, F): K variants of every image, of which each epoch takes one per image.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch of one run.

    Args:
        entry: Position of the run.
        figures: Its line of metrics.jsonl.
        state: Values of the hybrid after it.
    """

    entry: int
    figures: dict[str, Any]
    state: State


class Trainer:
    """Trains a stack of runs, from their checkpoints where there are some.

    The order of batches in an epoch depends on a run's seed and the epoch's number only, and the position in the head's
    noise is part of the checkpoint: a resumed training takes the same steps as one that was never stopped.

    Args:
        lineup: Freshly built; S entries.
        configs: S options, alike in all but seeds and step sizes.
        folders: S run folders.

    Raises:
        InputError: A checkpoint is damaged, or they do not belong together.
        ConfigError: Sampled runs that were not trained together.
    """

    def __init__(self, lineup: Lineup, configs: Sequence[FitConfig], folders: Sequence[RunFolder]) -> None:
        self._lineup = lineup
        initial = [{name: lineup.state_of(name, entry) for name in CONTENDERS} for entry in range(len(folders))]
        self.runs = [
            RunProgress(config, folder, {name: Best(state) for name, state in states.items()})
            for config, folder, states in zip(configs, folders, initial, strict=True)
        ]
        commit_together(folders)
        checkpoints = [folder.load_checkpoint() for folder in folders]
        current = [
            run.restore(checkpoint) if checkpoint else states
            for run, checkpoint, states in zip(self.runs, checkpoints, initial, strict=True)
        ]
        self._active = [entry for entry, run in enumerate(self.runs) if not run.finished]
        self._check_together(checkpoints)
        for run in self.runs:
            run.folder.trim_metrics(run.epoch)
        chosen = self._active or list(range(len(folders)))
        with fitting(folders[chosen[0]]):
            self._lineup.load([current[entry] for entry in chosen])
            self._optimizer = StackedAdam(lineup, [configs[entry].lr for entry in chosen], configs[0].weight_decay)
            begun = [checkpoint for entry in chosen if (checkpoint := checkpoints[entry])]
            if begun:
                self._optimizer.load([checkpoint.part("optimizer") for checkpoint in begun], begun[0].progress["steps"])
            if isinstance(lineup.head, ShiftHead):
                lineup.head.stream = max([checkpoint.progress["stream"] for checkpoint in checkpoints if checkpoint], default=0)

    @property
    def epoch(self) -> int:
        """Epochs that the longest run has done."""
        return max(run.epoch for run in self.runs)

    def train(self, data: Sequence[TrainingData], on_epoch: Callable[[list[EpochReport]], None]) -> None:
        """Run the epochs that are left; ``on_epoch`` is called with what each gave, before the checkpoints are written.

        Args:
            data: S data sets of equal size; the same object for runs that share one.
            on_epoch: See above.

        Raises:
            ConfigError: A loss is no finite number any more.
        """
        tables = _Tables(data)
        with _single_thread():
            while self._active:
                started, before = time.perf_counter(), self._spent()
                losses = self._train_epoch(tables)
                val_losses, accuracies = self._validate([data[entry].val for entry in self._active])
                self._check_finite(losses + val_losses)
                self._count(before)
                reports = [
                    self._report(k, losses[:, k], val_losses[:, k], accuracies[:, k], time.perf_counter() - started)
                    for k in range(len(self._active))
                ]
                for report in reports:
                    self.runs[report.entry].folder.append_metrics(report.figures)
                on_epoch(reports)
                self._save()
                self._drop_finished()

    def take_best(self) -> None:
        """Give all runs the values of each contender's best epoch; no training is possible afterwards."""
        self._lineup.load([{name: run.best[name].state for name in CONTENDERS} for run in self.runs])
        self._active = list(range(len(self.runs)))

    @torch.no_grad()
    def answer(self, features: Tensor) -> Tensor:
        """Logits (M, S, B, C) of all runs for features (S, B, F), after :meth:`take_best`; counted as an execution of every run."""
        before = self._spent()
        with _single_thread():
            logits: Tensor = self._lineup(features)
        self._count(before)
        return logits

    def _train_epoch(self, tables: _Tables) -> Tensor:
        """Mean losses (M, S) over an epoch."""
        order = torch.stack([tables.order(entry, self.runs[entry].config.seed, self.runs[entry].epoch) for entry in self._active])
        total = torch.zeros(len(CONTENDERS), len(self._active), dtype=torch.float64)
        size = self.runs[0].config.batch_size
        for start in range(0, order.shape[1], size):
            batch = order[:, start : start + size]
            losses = _losses(self._lineup(tables.features[batch]), tables.truth[batch])
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += losses.detach() * batch.shape[1]
        return total / order.shape[1]

    @torch.no_grad()
    def _validate(self, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Losses and accuracies, both (M, S)."""
        truth = torch.stack([truth for _, truth in parts])
        logits = self._lineup(torch.stack([features for features, _ in parts]))
        return _losses(logits, truth), (logits.argmax(-1) == truth).double().mean(-1)

    def _report(self, k: int, losses: Tensor, val_losses: Tensor, accuracies: Tensor, seconds: float) -> EpochReport:
        """Take note of an epoch of the k-th active run."""
        run = self.runs[self._active[k]]
        run.epoch += 1
        figures: dict[str, dict[str, Any]] = {}
        for index, name in enumerate(CONTENDERS):
            values = {"train_loss": losses[index], "val_loss": val_losses[index], "val_accuracy": accuracies[index]}
            figures[name] = {key: value.item() for key, value in values.items()}
            run.note(name, figures[name]["val_loss"], self._lineup.state_of(name, k))
        counts = {"parameter_sets": run.num_rows, "jobs": run.num_jobs, "qpu_seconds": run.qpu_seconds}
        times = {"seconds": seconds, "runs": len(self._active)}
        line = {"epoch": run.epoch, **figures.pop("hybrid"), **counts, **times, "twins": figures}
        return EpochReport(self._active[k], line, self._lineup.state_of("hybrid", k))

    def _check_finite(self, losses: Tensor) -> None:
        for entry, finite in zip(self._active, losses.isfinite().all(0).tolist(), strict=True):
            if not finite:
                where = f" of {str(self.runs[entry].folder.path)!r}" if len(self.runs) > 1 else ""
                raise ConfigError(
                    f"the loss is no finite number in epoch {self.runs[entry].epoch + 1}{where}; "
                    "begin a new run with a smaller --lr or other --weights"
                )

    def _spent(self) -> tuple[int, int, float]:
        head = self._lineup.head
        return head.num_rows, head.num_jobs, head.qpu_seconds

    def _count(self, before: tuple[int, int, float]) -> None:
        """Share what the head has done since among the active runs."""
        rows, jobs, seconds = (now - then for now, then in zip(self._spent(), before, strict=True))
        for entry in self._active:
            run = self.runs[entry]
            run.num_rows += int(rows) // len(self._active)
            run.num_jobs += int(jobs)
            run.qpu_seconds += seconds / len(self._active)

    def _save(self) -> None:
        """Write the checkpoints of all active runs, then put all in force; :func:`training.runs.commit_together` mends a kill between."""
        head = self._lineup.head
        stream = head.stream if isinstance(head, ShiftHead) else 0
        shared = {"steps": self._optimizer.steps, "runs": len(self.runs), "stream": stream}
        for k, entry in enumerate(self._active):
            current = {name: self._lineup.state_of(name, k) for name in CONTENDERS}
            checkpoint = self.runs[entry].snapshot(current, self._optimizer.state_of(k), shared)
            self.runs[entry].folder.stage_checkpoint(checkpoint)
        for entry in self._active:
            self.runs[entry].folder.commit_checkpoint()

    def _drop_finished(self) -> None:
        kept = [k for k, entry in enumerate(self._active) if not self.runs[entry].finished]
        if kept and len(kept) < len(self._active):
            self._optimizer.select(kept)
        self._active = [self._active[k] for k in kept]

    def _check_together(self, checkpoints: Sequence[Checkpoint | None]) -> None:
        """Runs that go on must stand at one epoch, and sampled ones where the noise of the whole stack does."""
        where = str(self.runs[0].folder.path.parent)
        if len({self.runs[entry].epoch for entry in self._active}) > 1:
            raise InputError(f"the runs in {where!r} stand at different epochs, so they cannot go on together; remove them and train again")
        sampled = self._lineup.head.shots is not None
        if sampled and any(checkpoint and checkpoint.progress.get("runs") != len(self.runs) for checkpoint in checkpoints):
            raise ConfigError(
                f"the runs in {where!r} share the noise of their backend; resume all that were begun together, not one of them"
            )


class _Tables:
    """The training images of all runs as one table; runs with the same data share its rows.

    Args:
        data: S data sets of equal size.
    """

    def __init__(self, data: Sequence[TrainingData]) -> None:
        distinct = list({id(each): each for each in data}.values())
        self._count = len(distinct[0].train[1])
        features = [each.train[0].reshape(-1, self._count, each.train[0].shape[-1]) for each in distinct]
        self._variants = len(features[0])
        self.features = torch.cat([each.flatten(0, 1) for each in features])
        self.truth = torch.cat([each.train[1].repeat(self._variants) for each in distinct])
        position = {id(each): index for index, each in enumerate(distinct)}
        self._offsets = [position[id(each)] * self._variants * self._count for each in data]

    def order(self, entry: int, seed: int, epoch: int) -> Tensor:
        """Rows of one run in the order of an epoch: each image once, one of its variants."""
        rows = np.random.default_rng([seed, epoch]).permutation(self._count)
        if self._variants > 1:
            rows += self._count * np.random.default_rng([seed, epoch, 1]).integers(self._variants, size=self._count)
        return torch.from_numpy(rows + self._offsets[entry])


def _losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropies (M, S) of logits (M, S, B, C) for labels (S, B)."""
    shape = logits.shape[:-1]
    return cross_entropy(logits.flatten(0, 2), truth.expand(shape).flatten(), reduction="none").view(shape).mean(-1)


@contextmanager
def _single_thread() -> Iterator[None]:
    """Tensors of a step are too small to share between threads; several would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
