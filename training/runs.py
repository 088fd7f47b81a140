"""The run folder: what a training leaves behind, and what it needs to go on after a kill.

=====================  ==============================================================
config.json            every option (:class:`training.config.FitConfig`)
data.json              labels, split membership and hashes of the data
metrics.jsonl          one line per epoch
checkpoint.safetensors model, twins, their best epochs and the optimiser after the last whole epoch
predictions.json       logits of the model and its twins for the validation and test images
result.json            written once, at the end
curves.png             loss and accuracy per epoch
confusion.png          confusion matrix of the test split
=====================  ==============================================================
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hqtl_common.durable import replace_file
from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig

__all__ = ["Checkpoint", "RunFolder", "commit_together", "is_run", "read_json", "write_json"]

_CHECKPOINT, _STAGED = "checkpoint.safetensors", ".checkpoint.partial"
_LOCK = ".lock"  # held by the process that trains; what a killed one leaves locks nobody out


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after a whole epoch.

    Args:
        tensors: ``model.*``, ``best.*`` and ``optimizer.*`` by name.
        progress: JSON-ready counters: epoch, best epoch and its loss, position of the head's noise.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix.``, without it."""
        return {key.removeprefix(prefix + "."): value for key, value in self.tensors.items() if key.startswith(prefix + ".")}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Reads and writes the files above; every file is replaced in one step.

    Args:
        path: The folder.
    """

    path: Path

    def start(self, config: FitConfig) -> None:
        """Make the folder for a new run; a run that ended before it had read its data is begun anew.

        Raises:
            ConfigError: It holds something else already, or another process works in it.
        """
        if self.path.exists() and not (self.path.is_dir() and all(_is_beginning(entry.name) for entry in self.path.iterdir())):
            raise ConfigError(f"{str(self.path)!r} exists already; go on with it by --resume, or give another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            write_json(self.path / "config.json", json.loads(config.model_dump_json()))

    def config(self) -> FitConfig:
        """The recorded options.

        Raises:
            InputError: The folder is not a run.
            ConfigError: An option is not known to this version.
        """
        values = read_json(self.path / "config.json")
        if values is None:
            runs = [file.parent for pattern in ("*/config.json", "runs/*/config.json") for file in sorted(self.path.glob(pattern))]
            advice = f"it holds {len(runs)} runs, give one of them, like {str(runs[0])!r}" if runs else "make one with hqtl-train fit"
            raise InputError(f"{str(self.path)!r} is not a run: there is no config.json; {advice}")
        return FitConfig.parse(values)

    def write_data(self, values: dict[str, Any]) -> None:
        """Record labels, split and hashes."""
        write_json(self.path / "data.json", values)

    def data(self) -> dict[str, Any] | None:
        """What :meth:`write_data` recorded, or None."""
        return read_json(self.path / "data.json")

    def write_result(self, values: dict[str, Any]) -> None:
        """Record the end of the run."""
        write_json(self.path / "result.json", values)

    def result(self) -> dict[str, Any] | None:
        """The recorded end of the run, or None while it is not finished."""
        return read_json(self.path / "result.json")

    def write_predictions(self, values: dict[str, Any]) -> None:
        """Keep the answers of every contender for the images that training did not fit."""
        write_json(self.path / "predictions.json", values, indent=None)

    def predictions(self) -> dict[str, Any] | None:
        """What :meth:`write_predictions` kept, or None; its form is that of :func:`training.outcome.predictions_of`."""
        return read_json(self.path / "predictions.json")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add the figures of one epoch."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The figures of all recorded epochs; a line cut off by a kill is left out.

        Raises:
            InputError: A line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [_parse(line, path) for line in lines]

    def trim_metrics(self, epochs: int) -> None:
        """Keep the first ``epochs`` epochs."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["epoch"] <= epochs]
        replace_file(self.path / "metrics.jsonl", "".join(kept).encode())

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        self.stage_checkpoint(checkpoint)
        self.commit_checkpoint()

    def stage_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the next checkpoint beside the one in force."""
        partial = self.path / _STAGED
        save_file(checkpoint.tensors, partial, metadata={"progress": json.dumps(checkpoint.progress)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())

    def commit_checkpoint(self) -> None:
        """Put the staged checkpoint in force."""
        (self.path / _STAGED).replace(self.path / _CHECKPOINT)

    def load_checkpoint(self, *, staged: bool = False) -> Checkpoint | None:
        """The checkpoint in force, or None before the first epoch has ended.

        Args:
            staged: The staged one instead.

        Raises:
            InputError: The file is damaged.
        """
        path = self.path / (_STAGED if staged else _CHECKPOINT)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                return Checkpoint(tensors, json.loads(file.metadata()["progress"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error}); remove the run and train again") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the folder meanwhile.

        Raises:
            ConfigError: Another one works in it.
        """
        path = self.path / _LOCK
        with path.open("ab") as file:
            if not _lock(file, path):
                raise ConfigError(f"another process trains in {str(self.path)!r}; wait for it, stop it, or give another folder")
            try:
                yield
            finally:
                path.unlink()


def commit_together(folders: Sequence[RunFolder]) -> None:
    """Mend what a kill between the commits of a stack left: a run that is one epoch behind has its next checkpoint staged.

    Args:
        folders: Of the stack.

    Raises:
        InputError: A checkpoint is damaged.
    """
    epochs = [_epoch(folder.load_checkpoint()) for folder in folders]
    for folder, epoch in zip(folders, epochs, strict=True):
        if epoch < max(epochs) and _epoch(folder.load_checkpoint(staged=True)) == epoch + 1:
            folder.commit_checkpoint()


def _epoch(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.progress.get("epoch", 0))


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged (not JSON: {error}); remove the run and train again") from error
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} is damaged (expected names and values); remove the run and train again")
    return values


def write_json(path: Path, values: dict[str, Any], *, indent: int | None = 2) -> None:
    """Replace a file of JSON in one step."""
    replace_file(path, (json.dumps(values, indent=indent, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The values in a file of JSON, or None where there is none.

    Raises:
        InputError: The file is damaged.
    """
    return _parse(path.read_bytes(), path) if path.exists() else None


def _lock(file: BinaryIO, path: Path) -> bool:
    """Whether the lock could be had, on the file that still lies at ``path``."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _is_beginning(name: str) -> bool:
    return name in ("config.json", _LOCK) or name.endswith(".partial")


def is_run(path: Path) -> bool:
    """True if ``path`` looks like a run folder or one of several runs (and not like a bundle)."""
    return (path / "config.json").is_file() or (path / "series.json").is_file()
