"""How far a run is: its best epochs and counters, to and from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hqtl_common.errors import InputError
from training.config import FitConfig
from training.runs import Checkpoint, RunFolder
from training.stack import CONTENDERS, State

__all__ = ["Best", "RunProgress", "fitting"]

_CURRENT = {name: "model" if name == "hybrid" else f"twins.{name}" for name in CONTENDERS}
_BEST = {name: "best" if name == "hybrid" else f"best_twins.{name}" for name in CONTENDERS}


@dataclass(frozen=True, slots=True)
class Best:
    """The epoch with the lowest validation loss, and its values."""

    state: State
    epoch: int = 0
    loss: float = math.inf


@dataclass(slots=True)
class RunProgress:
    """One run.

    Args:
        config: Options.
        folder: Where its checkpoint lies.
        best: By contender.
        epoch: Epochs done.
        num_rows: Parameter sets evaluated for it.
        num_jobs: Executions it took part in.
        qpu_seconds: Its share of what was billed.
    """

    config: FitConfig
    folder: RunFolder
    best: dict[str, Best]
    epoch: int = 0
    num_rows: int = 0
    num_jobs: int = 0
    qpu_seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """All epochs done, or no better one of the hybrid for ``patience`` epochs."""
        patience = self.config.patience
        return self.epoch >= self.config.epochs or (patience is not None and self.epoch - self.best["hybrid"].epoch >= patience)

    def note(self, name: str, loss: float, state: State) -> None:
        """Take ``state`` of a contender for its best if the validation loss of this epoch is the lowest so far."""
        if loss < self.best[name].loss:
            self.best[name] = Best(state, self.epoch, loss)

    def snapshot(self, current: dict[str, State], moments: State, shared: dict[str, Any]) -> Checkpoint:
        """What a checkpoint holds.

        Args:
            current: Values by contender.
            moments: Of the optimiser.
            shared: JSON-ready counters of the whole stack.
        """
        parts = {"optimizer": moments}
        for name in CONTENDERS:
            parts |= {_CURRENT[name]: current[name], _BEST[name]: self.best[name].state}
        progress = {
            "epoch": self.epoch,
            "best": {name: [best.epoch, best.loss] for name, best in self.best.items()},
            "num_rows": self.num_rows,
            "num_jobs": self.num_jobs,
            "qpu_seconds": self.qpu_seconds,
        }
        return Checkpoint({f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}, progress | shared)

    def restore(self, checkpoint: Checkpoint) -> dict[str, State]:
        """Go on from a checkpoint; the answer is the values by contender.

        Raises:
            InputError: It is not of this model.
        """
        with fitting(self.folder):
            progress = checkpoint.progress
            self.epoch, self.num_rows, self.num_jobs = progress["epoch"], progress["num_rows"], progress["num_jobs"]
            self.qpu_seconds = progress["qpu_seconds"]
            for name in CONTENDERS:
                epoch, loss = progress["best"][name]
                state = checkpoint.part(_BEST[name])
                _check_same_shapes(self.best[name].state, state)
                self.best[name] = Best(state, epoch, loss)
            return {name: checkpoint.part(_CURRENT[name]) for name in CONTENDERS}


@contextmanager
def fitting(folder: RunFolder) -> Iterator[None]:
    """Whatever does not fit within is an error of the run's checkpoint.

    Raises:
        InputError: Names the run.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the checkpoint of {str(folder.path)!r} does not fit the model; remove the run and train again") from error


def _check_same_shapes(expected: State, found: State) -> None:
    if {key: value.shape for key, value in expected.items()} != {key: value.shape for key, value in found.items()}:
        raise ValueError(f"expected {', '.join(expected)}; got {', '.join(found)}")
