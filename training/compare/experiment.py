"""A comparison from its file to its tables: plan, features, runs, results; the same command goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hqtl_common.backends.opening import Limits
from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.errors import BudgetExceededError, HqtlError, InputError
from training.backbones import load_backbone
from training.compare.checks import RunChecker
from training.compare.engines import make_engine, pick_engine
from training.compare.folder import CompareFolder
from training.compare.grid import PlannedRun, make_runs, refuse, stacks
from training.compare.local_engines import Engine, EngineOptions, LocalEngine
from training.compare.options import CompareConfig
from training.compare.plots import plot_comparison
from training.compare.results import result_rows, write_table
from training.compare.summary import summarise
from training.compare.task import Task, environment
from training.console import progress_bar, say, warn
from training.prepare import pick_device, prepare
from training.runs import RunFolder

# Options that do not decide what the backbone makes of the images.
_NOT_FEATURES = {
    *("num_qubits", "embedding", "entangler", "ansatz", "num_layers", "epochs", "batch_size", "lr", "weight_decay", "patience"),
    *("split", "folds", "fold", "group_by", "backend", "diff_method", "diff_step", "shots", "backend_options", "positive", "tensorboard"),
}

__all__ = ["Comparison", "PlannedComparison", "compare", "plan_comparison", "read_comparison"]


@dataclass(frozen=True, slots=True)
class PlannedComparison:
    """A checked comparison.

    Args:
        config: What was asked.
        runs: Every run.
        plans: What each costs, JSON-ready, in the same order.
    """

    config: CompareConfig
    runs: list[PlannedRun]
    plans: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The end of a comparison.

    Args:
        varied: Names of the options that runs differ in.
        rows: A row per run; see :func:`training.compare.results.result_rows`.
        summary: A row per group; see :func:`training.compare.summary.summarise`.
    """

    varied: tuple[str, ...]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]

    @property
    def failures(self) -> dict[str, list[str]]:
        """Names of the runs that ended with an error, by error."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row["status"] == "failed":
                found.setdefault(row["error"], []).append(row["run"])
        return found


def plan_comparison(config: CompareConfig, limits: Limits) -> PlannedComparison:
    """All runs of a comparison, checked; nothing is written.

    Raises:
        ConfigError: Lists every run that cannot work, with its reason.
    """
    runs = make_runs(config)
    checker = RunChecker(limits)
    checker.check(runs)
    return PlannedComparison(config, runs, [checker.plan(run).to_dict() for run in runs])


def compare(
    planned: PlannedComparison, out: Path, cache_folder: Path, *, engine: str, options: EngineOptions, limits: Limits, verbose: bool = False
) -> Comparison:
    """Do what is left of a comparison, and write its tables and pictures.

    Args:
        planned: Of :func:`plan_comparison`.
        out: Folder of the comparison, a new one or its own.
        cache_folder: Where features are cached.
        engine: ``auto``, ``local``, ``process`` or ``ray``; runs on paid backends always take ``local``.
        options: How the engine works.
        limits: What all paid runs together may spend.
        verbose: Say more.

    Raises:
        ConfigError: The folder holds something else, or runs with other options; no such engine.
        BudgetExceededError: The limits are reached; the same call goes on.
    """
    folder = CompareFolder(out.absolute())
    folder.check()
    _check_recorded(planned.runs, folder)
    maker = make_engine(pick_engine(engine, options), options)
    with folder.locked(["comparison"], wait=False):
        together = stacks(planned.runs, planned.config.stack_size, (folder.record() or {}).get("stacks", ()))
        scope = folder.begin(json.loads(planned.config.model_dump_json()), [[run.name for run in members] for members in together])
        work = _Work(folder, together, cache_folder.absolute(), planned.config.threads, replace(limits, scope=scope), verbose)
        try:
            work.train(maker, options)
        except BudgetExceededError:
            _write(planned, folder)
            raise
        return _write(planned, folder)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is left to train."""

    folder: CompareFolder
    stacks: list[list[PlannedRun]]
    cache_folder: Path
    threads: int
    limits: Limits
    verbose: bool

    def train(self, engine: Engine, options: EngineOptions) -> None:
        todo = [members for members in self.stacks if not all(self._finished(run.name) for run in members)]
        names = [run.name for members in todo for run in members if not self._finished(run.name)]
        total = sum(map(len, self.stacks))
        say(f"{total} runs as {len(self.stacks)} programs; {total - len(names)} runs are finished already")
        for name in names:
            self.folder.forget(name)
        self._compute_features([run for members in todo for run in members])
        paid = [members for members in todo if backend_capabilities(members[0].config.backend).paid]
        free = [members for members in todo if members not in paid]
        started = time.perf_counter()
        with progress_bar("programs", len(todo), "programs") as advance:
            for chosen, maker in ((free, engine), (paid, LocalEngine(options))):
                for task, death in maker.run([self._task(members, maker.name) for members in chosen]) if chosen else ():
                    self._conclude(task, death)
                    advance(1)
        if todo:
            say(f"{len(names)} runs took {time.perf_counter() - started:.0f} s by the engine {engine.name}")

    def _finished(self, name: str) -> bool:
        return RunFolder(self.folder.runs / name).result() is not None

    def _compute_features(self, runs: Sequence[PlannedRun]) -> None:
        """Fill the cache before workers start, so that no two of them compute the same; what fails here fails again in its run."""
        seen = set()
        for run in runs:
            key = run.config.model_dump_json(exclude=_NOT_FEATURES | (set() if run.config.weights == "none" else {"seed", "split_seed"}))
            if key in seen or run.config.unfreeze is not None:  # then each training makes its own
                continue
            seen.add(key)
            try:
                config = run.config
                backbone = load_backbone(config.backbone, config.weights, config.data_seed, config.preprocess_spec)
                prepare(config, backbone, self.cache_folder, pick_device(config.device), verbose=self.verbose)
            except HqtlError as error:
                warn(f"no features for {run.name}: {error}")

    def _task(self, members: Sequence[PlannedRun], engine: str) -> Task:
        return Task(
            names=tuple(run.name for run in members),
            configs=tuple(run.config for run in members),
            folder=self.folder.path,
            cache_folder=self.cache_folder,
            engine=engine,
            threads=self.threads,
            limits=self.limits,
            verbose=self.verbose,
        )

    def _conclude(self, task: Task, death: str | None) -> None:
        """Say how the runs of a task ended; record it where the worker could not."""
        for name in task.names:
            if self._finished(name):
                continue
            outcome = self.folder.outcome(name)
            if outcome is None:
                message = death or "the worker's files cannot be seen here; every node must see the output folder under the same path"
                error = {"type": "WorkerDied" if death else "NotVisible", "message": message}
                outcome = {"status": "failed", "error": error, "engine": task.engine, "environment": environment()}
                self.folder.write_outcome(name, outcome)
            warn(f"{name} failed: {outcome['error']['message']} (log: {self.folder.log(task.names[0])})")
        done = [result for name in task.names if (result := RunFolder(self.folder.runs / name).result()) is not None]
        if done:
            accuracies = [100 * result["test"]["accuracy"] for result in done]
            seeds = f" and {len(done) - 1} more trained with it" if len(done) > 1 else ""
            say(f"{task.names[0]}{seeds}: test accuracy {sum(accuracies) / len(done):.1f} %")


def _check_recorded(runs: Sequence[PlannedRun], folder: CompareFolder) -> None:
    """Refuse runs that were begun with other options than they have now."""
    problems = []
    for run in runs:
        files = RunFolder(folder.runs / run.name)
        if (files.path / "config.json").exists() and (differences := files.config().differences(run.config)):
            problems.append((run.name, f"was begun with other options ({'; '.join(differences)} now); remove it, or give another --out"))
    refuse(problems)


def read_comparison(path: Path) -> Comparison:
    """What a comparison has found so far.

    Raises:
        InputError: The folder is no comparison.
    """
    folder = CompareFolder(path.absolute())
    record = folder.record()
    if record is None:
        raise InputError(f"{str(path)!r} is no comparison: there is no compare.json; make one with hqtl-train compare")
    config = CompareConfig.model_validate(record["options"])
    return _read(make_runs(config), config.varied, folder)


def _read(runs: Sequence[PlannedRun], varied: tuple[str, ...], folder: CompareFolder) -> Comparison:
    rows = result_rows(runs, folder)
    return Comparison(varied, rows, summarise(rows, varied))


def _write(planned: PlannedComparison, folder: CompareFolder) -> Comparison:
    found = _read(planned.runs, planned.config.varied, folder)
    write_table(folder, "results", found.rows, parquet=True)
    if found.summary:
        write_table(folder, "summary", found.summary)
        plot_comparison(found.summary, found.rows, found.varied, folder.path)
    return found
