"""Run a command against the emulator, as it would run against IBM's platform."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.errors import InputError
from training.emulator import EmulatorOptions, emulated_environment, start

__all__ = ["Rehearsal", "rehearse"]

_OWN_COMMANDS = ("fit", "evaluate", "backends", "jobs", "plan")


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How it went: the command's exit code, and what the emulator counted."""

    exit_code: int
    stats: dict[str, Any]


def rehearse(
    command: Sequence[str],
    *,
    machine: str = "ibm_kolkata",
    time_factor: float = 0.0,
    queue_seconds: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Rehearsal:
    """Run ``command`` with every variable that makes it take the emulator for the platform.

    Args:
        command: A command of hqtl-train with its arguments, or any program.
        machine: The machine to stand in for.
        time_factor: Real seconds per emulated second.
        queue_seconds: Shortest and longest wait in the queue, emulated seconds.
        seed: Of the emulated machine.

    Raises:
        InputError: There is no such program.
        UnknownBackendError: The machine has no snapshot.
    """
    words = [sys.executable, "-m", "training.cli", *command] if command[0] in _OWN_COMMANDS else [*command]
    if shutil.which(words[0]) is None:
        raise InputError(f"there is no program {words[0]!r}; give a command of hqtl-train or a program after --")
    emulated = EmulatorOptions(backends=(machine,), seed=seed, time_factor=time_factor, queue_seconds=queue_seconds, open_seconds=None)
    with start(emulated) as emulator, tempfile.TemporaryDirectory(prefix="hqtl-rehearsal-") as folder:
        ledger = {"HQTL_LEDGER": os.environ.get("HQTL_REHEARSAL_LEDGER") or str(Path(folder) / "ledger.sqlite")}
        done = subprocess.run(words, env=os.environ | emulated_environment(emulator, sealed=False) | ledger, check=False)
        killed = done.returncode < 0  # by a signal: told as a shell tells it
        return Rehearsal(128 - done.returncode if killed else done.returncode, emulator.stats())
