"""The loop: epochs of Adam on cached features, with a checkpoint after each, so that a kill loses at most one epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
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
from training.model import HybridModel
from training.runs import Checkpoint, RunFolder

__all__ = ["Trainer", "TrainingData"]

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Features (B, F) float32 and labels (B,) int64 of the two splits that training sees."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]


class Trainer:
    """Trains a model in a run folder, from its checkpoint where there is one.

    The order of batches in an epoch depends on the seed and the epoch's number only, and the position in the head's
    noise is part of the checkpoint: a resumed training takes the same steps as one that was never stopped.

    Args:
        model: Freshly built.
        config: Options.
        run: Where checkpoints and metrics go.

    Raises:
        InputError: The checkpoint is damaged.
    """

    def __init__(self, model: HybridModel, config: FitConfig, run: RunFolder) -> None:
        self._model, self._config, self._run = model, config, run
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.epoch = 0
        self.best_epoch = 0
        self._best_loss = math.inf
        self.best_state = {key: value.clone() for key, value in model.state_dict().items()}
        checkpoint = run.load_checkpoint()
        if checkpoint is not None:
            try:
                self._restore(checkpoint)
            except (KeyError, ValueError, RuntimeError, AttributeError) as error:
                raise InputError(f"the checkpoint of {str(run.path)!r} does not fit the model; remove the run and train again") from error
        run.trim_metrics(self.epoch)

    @property
    def finished(self) -> bool:
        """All epochs done, or no better one for ``patience`` epochs."""
        patience = self._config.patience
        return self.epoch >= self._config.epochs or (patience is not None and self.epoch - self.best_epoch >= patience)

    def train(self, data: TrainingData, on_epoch: EpochCallback) -> None:
        """Run the epochs that are left; ``on_epoch`` is called with the figures of each.

        Raises:
            ConfigError: The loss is no finite number any more.
        """
        with _single_thread():
            while not self.finished:
                started = time.perf_counter()
                train_loss = self._train_epoch(*data.train)
                val_loss, val_accuracy = self._validate(*data.val)
                self.epoch += 1
                if not math.isfinite(train_loss + val_loss):
                    raise ConfigError(
                        f"the loss is no finite number in epoch {self.epoch}; begin a new run with a smaller --lr or other --weights"
                    )
                if val_loss < self._best_loss:
                    self._best_loss, self.best_epoch = val_loss, self.epoch
                    self.best_state = {key: value.clone() for key, value in self._model.state_dict().items()}
                figures = {
                    "epoch": self.epoch,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    "val_accuracy": val_accuracy,
                    "parameter_sets": self._model.head.num_rows,
                    "jobs": self._model.head.num_jobs,
                    "seconds": time.perf_counter() - started,
                }
                self._run.append_metrics(figures)
                self._run.save_checkpoint(self._snapshot())
                on_epoch(figures)

    def _train_epoch(self, features: Tensor, truth: Tensor) -> float:
        self._model.train()
        total = 0.0
        for batch in self._batches(len(truth)):
            self._optimizer.zero_grad()
            loss = cross_entropy(self._model(features[batch]), truth[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.item() * len(batch)
        return total / len(truth)

    def _batches(self, count: int) -> Iterator[Tensor]:
        order = np.random.default_rng([self._config.seed, self.epoch]).permutation(count)
        yield from torch.split(torch.from_numpy(order), self._config.batch_size)

    @torch.no_grad()
    def _validate(self, features: Tensor, truth: Tensor) -> tuple[float, float]:
        self._model.eval()
        logits = self._model(features)
        return cross_entropy(logits, truth).item(), (logits.argmax(1) == truth).double().mean().item()

    def _snapshot(self) -> Checkpoint:
        tensors = {f"model.{key}": value for key, value in self._model.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best_state.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        head = self._model.head
        progress = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self._best_loss,
            "num_rows": head.num_rows,
            "num_jobs": head.num_jobs,
            "qpu_seconds": head.qpu_seconds,
            "stream": head.stream if isinstance(head, ShiftHead) else 0,
        }
        return Checkpoint(tensors, progress)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.best_state = checkpoint.part("best")
        self._model.load_state_dict(self.best_state)  # only to see that it fits
        self._model.load_state_dict(checkpoint.part("model"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.part("optimizer").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        progress, head = checkpoint.progress, self._model.head
        self.epoch, self.best_epoch, self._best_loss = progress["epoch"], progress["best_epoch"], progress["best_loss"]
        head.num_rows, head.num_jobs, head.qpu_seconds = progress["num_rows"], progress["num_jobs"], progress["qpu_seconds"]
        if isinstance(head, ShiftHead):
            head.stream = progress["stream"]


@contextmanager
def _single_thread() -> Iterator[None]:
    """Tensors of a step are too small to share between threads; several would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
