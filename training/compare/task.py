"""Train a few runs as one program: what an engine hands to a worker, wherever the worker is."""

from __future__ import annotations

import contextlib
import platform
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hqtl_common.backends.opening import Limits
from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.errors import BudgetExceededError
from training.compare.folder import CompareFolder
from training.config import FitConfig

__all__ = ["ENVIRONMENT", "Task", "environment", "train_task"]

_PACKAGES = ("hqtl", "torch", "torchvision", "numpy", "scikit-learn", "pennylane", "qiskit", "qiskit-aer", "qiskit-ibm-runtime")
ENVIRONMENT = ("python", *_PACKAGES, "machine")


@dataclass(frozen=True, slots=True)
class Task:
    """Runs that differ only in seed and learning rate.

    Args:
        names: Of the runs.
        configs: Their options.
        folder: Of the comparison, absolute.
        cache_folder: Where features are cached, absolute.
        engine: Recorded with the outcome.
        threads: For torch and the linear algebra.
        limits: What may be spent on a paid backend.
        verbose: Say more in the log.
    """

    names: tuple[str, ...]
    configs: tuple[FitConfig, ...]
    folder: Path
    cache_folder: Path
    engine: str
    threads: int = 1
    limits: Limits | None = None
    verbose: bool = False


def train_task(task: Task) -> None:
    """Train the runs of a task and record how each ended; where they fail together, each is tried alone.

    Raises:
        BudgetExceededError: The limits are reached; nothing is recorded, the runs can go on.
    """
    folder = CompareFolder(task.folder)
    members = list(zip(task.names, task.configs, strict=True))
    paid = backend_capabilities(task.configs[0].backend).paid
    with folder.locked(task.names, wait=True), _logged(folder.log(task.names[0])), _threads(task.threads):
        error = _train(task, folder, members)
        if error is None or len(members) == 1 or paid:  # a second attempt would be paid too
            _record(task, folder, task.names, error)
            return
        for member in members:
            alone = _train(task, folder, [member])
            _record(task, folder, [member[0]], alone and error, alone)


def environment() -> dict[str, str]:
    """Versions of what decides the figures, and the kind of machine."""
    machine = f"{platform.system()} {platform.machine()}"
    return dict(zip(ENVIRONMENT, (platform.python_version(), *map(version, _PACKAGES), machine), strict=True))


def _train(task: Task, folder: CompareFolder, members: Sequence[tuple[str, FitConfig]]) -> Exception | None:
    """Train runs together; the answer is why they failed."""
    from training.fit import fit_many, open_run

    try:
        opened = [open_run(folder.runs / name, config, resume=True) for name, config in members]
        runs, configs = [run for run, _ in opened], [config for _, config in opened]
        fit_many(configs, runs, task.cache_folder, limits=task.limits, verbose=task.verbose)
    except BudgetExceededError:
        raise
    except Exception as error:  # whatever ends a run is written down, and the other runs go on
        traceback.print_exc()
        return error
    return None


def _record(task: Task, folder: CompareFolder, names: Sequence[str], *errors: Exception | None) -> None:
    """How runs ended: what went wrong first, and then when one was tried alone."""
    found = [error for error in errors if error is not None]
    messages = dict.fromkeys(" ".join(str(error).split()) for error in found)
    failure = {"type": type(found[0]).__name__, "message": "; and alone: ".join(messages)} if found else None
    outcome = {"status": "failed" if found else "finished", "error": failure, "engine": task.engine, "environment": environment()}
    for name in names:
        folder.write_outcome(name, outcome)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Everything said meanwhile goes into a file: several workers on one screen could not be told apart."""
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        yield


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """The same number of threads wherever a task runs, so that sums are made in the same order."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)
