"""What a comparison leaves on disk, and what it needs to go on after a kill.

======================  ==================================================================
compare.json            the options, which runs train together, the name of the budget; written at every start
runs/NAME/              run folders (:mod:`training.runs`)
outcomes/NAME.json      how a run ended: finished or failed, its error, versions, machine
logs/NAME.log           what the training of a stack said, by the name of its first run
results.parquet, .csv   a row per run
summary.csv             a row per group of runs that differ only in seed or fold
accuracy.*, cost.*      pictures as PNG, SVG and PDF
report.html             everything above on one page
======================  ==================================================================
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.durable import replace_file
from hqtl_common.errors import ConfigError, InputError

__all__ = ["CompareFolder"]

_SCHEMA = "hqtl-compare/1"
_RECORD = "compare.json"
_BEGINNING = {".locks", f".{_RECORD}.partial", "runs", "outcomes", "logs"}  # what a kill in the first moment leaves


@dataclass(frozen=True, slots=True)
class CompareFolder:
    """Reads and writes the files above.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def runs(self) -> Path:
        """Where the run folders lie."""
        return self.path / "runs"

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            ConfigError: It is neither missing, nor empty, nor a comparison.
        """
        if self.record() is not None or not self.path.exists():
            return
        if not self.path.is_dir() or {entry.name for entry in self.path.iterdir()} - _BEGINNING:
            raise ConfigError(f"{str(self.path)!r} holds something that is no comparison; give another folder by --out")

    def begin(self, options: dict[str, Any], stacks: Sequence[Sequence[str]]) -> str:
        """Make the folder, or go on in it; returns the scope that paid executions belong to.

        The scope follows from the first place of the folder: what was paid is replayed, even if the folder was removed.

        Args:
            options: Of the comparison, JSON-ready.
            stacks: Names of the runs that are trained together.
        """
        known = self.record()
        for name in ("runs", "outcomes", "logs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        scope = known["scope"] if known else f"compare-{hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:24]}"
        self._write(_RECORD, {"schema": _SCHEMA, "scope": scope, "stacks": stacks, "options": options})
        return str(scope)

    def record(self) -> dict[str, Any] | None:
        """What :meth:`begin` wrote, or None.

        Raises:
            InputError: It is damaged or of another version.
        """
        record = _read(self.path / _RECORD)
        if record is not None and record.get("schema") != _SCHEMA:
            raise InputError(f"{str(self.path / _RECORD)!r} is of schema {record.get('schema')!r}, not {_SCHEMA!r}; give another folder")
        return record

    def write_outcome(self, name: str, outcome: dict[str, Any]) -> None:
        """Record how a run ended."""
        self._write(f"outcomes/{name}.json", outcome)

    def outcome(self, name: str) -> dict[str, Any] | None:
        """How a run ended, or None."""
        return _read(self.path / "outcomes" / f"{name}.json")

    def forget(self, name: str) -> None:
        """Forget how a run ended, because it is tried again."""
        (self.path / "outcomes" / f"{name}.json").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """The log of the stack that begins with this run."""
        return self.path / "logs" / f"{name}.log"

    @contextmanager
    def locked(self, names: Iterable[str], *, wait: bool) -> Iterator[None]:
        """Hold a lock per name until the end; the system frees it when a process dies.

        Args:
            names: What is locked.
            wait: Wait for another process, instead of refusing.

        Raises:
            ConfigError: Another process holds one of them.
        """
        folder = self.path / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name in sorted(names):
                file = stack.enter_context((folder / name).open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise ConfigError(f"another process works in {str(self.path)!r}; wait for it, or give another folder") from error
            yield

    def _write(self, name: str, values: dict[str, Any]) -> None:
        replace_file(self.path / name, (json.dumps(values, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is damaged (not JSON: {error}); remove it and compare again") from error
    return values if isinstance(values, dict) else {}
