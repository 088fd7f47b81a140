"""The run folder: what a training leaves behind, and what it needs to go on after a kill.

=====================  ==============================================================
config.json            every option (:class:`training.config.FitConfig`)
data.json              labels, split membership and hashes of the data
metrics.jsonl          one line per epoch
checkpoint.safetensors model, best model and optimiser after the last whole epoch
result.json            written once, at the end
curves.png             loss and accuracy per epoch
confusion.png          confusion matrix of the test split
=====================  ==============================================================
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig

__all__ = ["Checkpoint", "RunFolder", "is_run"]


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
            ConfigError: It holds something else already.
        """
        if self.path.exists() and not (self.path.is_dir() and all(_is_beginning(entry.name) for entry in self.path.iterdir())):
            raise ConfigError(f"{str(self.path)!r} exists already; go on with it by --resume, or give another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("config.json", json.loads(config.model_dump_json()))

    def config(self) -> FitConfig:
        """The recorded options.

        Raises:
            InputError: The folder is not a run.
            ConfigError: An option is not known to this version.
        """
        values = self._read("config.json")
        if values is None:
            raise InputError(f"{str(self.path)!r} is not a run: there is no config.json; make one with hqtl-train fit")
        return FitConfig.parse(values)

    def write_data(self, values: dict[str, Any]) -> None:
        """Record labels, split and hashes."""
        self._write("data.json", values)

    def data(self) -> dict[str, Any] | None:
        """What :meth:`write_data` recorded, or None."""
        return self._read("data.json")

    def write_result(self, values: dict[str, Any]) -> None:
        """Record the end of the run."""
        self._write("result.json", values)

    def result(self) -> dict[str, Any] | None:
        """The recorded end of the run, or None while it is not finished."""
        return self._read("result.json")

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
        self._replace("metrics.jsonl", "".join(kept).encode())

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        partial = self.path / ".checkpoint.partial"
        save_file(checkpoint.tensors, partial, metadata={"progress": json.dumps(checkpoint.progress)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path / "checkpoint.safetensors")

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None before the first epoch has ended.

        Raises:
            InputError: The file is damaged.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                return Checkpoint(tensors, json.loads(file.metadata()["progress"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error}); remove the run and train again") from error

    def _write(self, name: str, values: dict[str, Any]) -> None:
        self._replace(name, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.path / f".{name}.partial"
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return _parse(path.read_bytes(), path) if path.exists() else None


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged (not JSON: {error}); remove the run and train again") from error
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} is damaged (expected names and values); remove the run and train again")
    return values


def _is_beginning(name: str) -> bool:
    return name == "config.json" or name.endswith(".partial")


def is_run(path: Path) -> bool:
    """True if ``path`` looks like a run folder (and not like a bundle)."""
    return (path / "config.json").is_file()
