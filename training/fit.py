"""Train the hybrid model and its classical twins on a folder of photographs, one run or several together, each into its run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hqtl_common.backends.opening import Limits, check_limits
from hqtl_common.errors import ConfigError
from training.backbones import Backbone, load_backbone
from training.config import FitConfig
from training.console import progress_bar, say
from training.data import SPLIT_NAMES
from training.features import FeatureTable
from training.finetune import tune_features, unfrozen_parameters
from training.head import make_head, resolve_diff_method
from training.metrics import classification_metrics, find_positive
from training.model import build_model
from training.outcome import MEASURED, figures_of, predictions_of
from training.plan import read_prices
from training.planning import plan_fit
from training.plots import plot_confusion, plot_curves
from training.prepare import PreparedData, add_variants, assemble, compute_features, pick_device, read_source
from training.runs import RunFolder
from training.stack import make_lineup
from training.tracking import open_trackers
from training.trainer import EpochReport, Trainer, TrainingData

__all__ = ["fit", "fit_many", "open_run"]

_OWN = {"seed", "lr", "split_seed", "fold"}  # what may differ between runs that train together


@dataclass(frozen=True, slots=True)
class _Job:
    """One run with its data."""

    config: FitConfig
    run: RunFolder
    data: PreparedData
    positive: str
    tuning: dict[str, Any] | None = None


def open_run(path: Path, config: FitConfig | None, *, resume: bool) -> tuple[RunFolder, FitConfig]:
    """The run folder to work in, and the options that count.

    Args:
        path: The folder.
        config: Options given now, None to take the recorded ones.
        resume: Go on with a run that is there.

    Raises:
        ConfigError: The folder is not empty and ``resume`` was not asked for, or the options differ from the recorded ones.
        InputError: No options were given and the folder is no run.
    """
    run = RunFolder(path)
    if resume and (config is None or (path / "config.json").exists()):
        recorded = run.config()
        if config is not None and (differences := recorded.differences(config)):
            raise ConfigError(
                f"{str(path)!r} was begun with other options ({'; '.join(differences)} as given now); resume it with the same, or with none"
            )
        return run, config or recorded
    assert config is not None
    run.start(config)
    return run, config


def fit(config: FitConfig, run: RunFolder, cache_folder: Path, *, limits: Limits | None = None, verbose: bool = False) -> dict[str, Any]:
    """Train, or go on training, and return what ``result.json`` holds: a stack of one, see :func:`fit_many`."""
    return fit_many([config], [run], cache_folder, limits=limits, verbose=verbose)[0]


def fit_many(
    configs: Sequence[FitConfig], runs: Sequence[RunFolder], cache_folder: Path, *, limits: Limits | None = None, verbose: bool = False
) -> list[dict[str, Any]]:
    """Train runs that differ only in seeds, step size and fold as one batched program; the answers are those of each trained alone.

    Runs whose splits have the same sizes train together; where the sizes differ, one group after the other. On a sampled
    backend the rows of a group are one job per step, and a limit counts for all runs together.

    Args:
        configs: Options of each.
        runs: From :func:`open_run`.
        cache_folder: Where features are cached.
        limits: What may be spent on a paid backend.
        verbose: Say more.

    Returns:
        What ``result.json`` of each run holds.

    Raises:
        ConfigError: Weights that cannot be had, options that do not fit the data or each other, data changed since a run
            began, or another process works in a run folder.
        InputError: The folder of images cannot be used.
        BackendError: The head could not be run.
    """
    finished = [result for run in runs if (result := run.result()) is not None]
    if len(finished) == len(runs):
        say(f"{runs[0].path} is finished; nothing to do" if len(runs) == 1 else f"all {len(runs)} runs are finished; nothing to do")
        return finished
    _check_alike(configs)
    check_limits(configs[0].backend, limits)
    method = resolve_diff_method(configs[0].backend, configs[0].shots, configs[0].diff_method, configs[0].head_spec)
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.locked())
        jobs = _prepare(configs, runs, cache_folder, method, verbose=verbose)
        scope = _scope(jobs)
        for stack in _stacks(jobs):
            if any(job.run.result() is None for job in stack):
                _train_stack(stack, method, limits, scope)
    return [result for run in runs if (result := run.result()) is not None]


def _check_alike(configs: Sequence[FitConfig]) -> None:
    first, fields = configs[0], FitConfig.model_fields.keys() - _OWN
    for config in configs:
        if differing := sorted(name for name in fields if getattr(config, name) != getattr(first, name)):
            raise ConfigError(f"runs that train together may differ in {', '.join(sorted(_OWN))}; these differ in {', '.join(differing)}")


def _prepare(configs: Sequence[FitConfig], runs: Sequence[RunFolder], cache_folder: Path, method: str, *, verbose: bool) -> list[_Job]:
    """The data of every run; equal data are one object, so that runs share them."""
    device = pick_device(configs[0].device)
    backbones: dict[int, Backbone] = {}
    tables: dict[int, FeatureTable] = {}
    prepared: dict[tuple[int, str, int], PreparedData] = {}
    source = None
    jobs = []
    for config, run in zip(configs, runs, strict=True):
        seed = config.data_seed if config.weights == "none" else 0  # only random weights depend on it
        if seed not in backbones:
            backbones[seed] = load_backbone(config.backbone, config.weights, seed, config.preprocess_spec)
            if config.unfreeze is not None:
                unfrozen_parameters(backbones[seed].network, config.unfreeze)  # a wrong name is refused before anything is recorded
        source = source or read_source(config.data, config.preprocess_spec)
        if seed not in tables:
            tables[seed] = compute_features(source, backbones[seed], config.preprocess_spec, cache_folder, device, verbose=verbose)
        key = (seed, config.split_recipe, config.data_seed)
        if key not in prepared:
            prepared[key] = assemble(config, source, tables[seed])
            if config.unfreeze is None:
                prepared[key] = add_variants(config, prepared[key], backbones[seed], cache_folder, device)
        data, tuning = prepared[key], None
        positive = find_positive(data.record["labels"], config.positive)
        _record_data(run, data.record | {"diff_method": method, "positive": positive, "backbone_sha256": backbones[seed].digest})
        if config.unfreeze is not None:
            data, tuning = tune_features(config, run, backbones[seed], data, cache_folder, device)
        jobs.append(_Job(config, run, data, positive, tuning))
    return jobs


def _record_data(run: RunFolder, record: dict[str, Any]) -> None:
    recorded = run.data()
    if recorded is None:
        run.write_data(record)
        return
    changed = [key for key, value in recorded.items() if record.get(key) != value]
    if changed:
        raise ConfigError(
            f"the data or the weights changed since {str(run.path)!r} was begun ({', '.join(changed)} differ); begin a new run"
        )


def _sizes(data: PreparedData) -> dict[str, int]:
    return {name: len(data.split.indices(name)) for name in SPLIT_NAMES}


def _stacks(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs with splits of equal sizes, in the order given."""
    groups: dict[tuple[int, ...], list[_Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(_sizes(job.data).values()), []).append(job)
    return list(groups.values())


def _scope(jobs: Sequence[_Job]) -> str:
    """What paid executions belong to: the same options on the same data replay what was paid, wherever the runs lie."""
    parts = [[job.config.training_record(), job.data.record["data_sha256"], job.data.record["split_sha256"]] for job in jobs]
    what = json.dumps(parts if len(parts) > 1 else parts[0], sort_keys=True)
    return f"fit-{hashlib.sha256(what.encode()).hexdigest()[:24]}"


def _train_stack(jobs: Sequence[_Job], method: str, limits: Limits | None, scope: str) -> None:
    """Train some runs together and write their results."""
    configs, runs, first = [job.config for job in jobs], [job.run for job in jobs], jobs[0]
    width, classes = first.data.features.shape[1], len(first.data.record["labels"])
    models = [build_model(width, classes, config.head_spec, seed=config.seed) for config in configs]
    head = make_head(
        first.config.head_spec,
        torch.stack([model.head.weights.detach() for model in models]),
        backend=first.config.backend,
        diff_method=method,
        diff_step=first.config.diff_step,
        shots=first.config.shots,
        seed=first.config.seed,
        backend_options=first.config.backend_options,
        limits=limits,
        scope=scope,
    )
    together = f", {len(jobs)} runs together" if len(jobs) > 1 else ""
    say(f"head on {first.config.backend}, {'exact' if head.shots is None else f'{head.shots} shots'}, gradient by {method}{together}")
    trainer = Trainer(make_lineup(models, head, [config.seed for config in configs]), configs, runs)
    _run_epochs(trainer, jobs)
    _write_results(trainer, jobs, method, head.shots)
    head.close()


def _run_epochs(trainer: Trainer, jobs: Sequence[_Job]) -> None:
    if trainer.epoch:
        say(f"going on after epoch {trainer.epoch} of {jobs[0].config.epochs}")
    shared = {id(job.data): TrainingData(job.data.training_tensors(), job.data.tensors("val")) for job in jobs}
    with progress_bar("training", jobs[0].config.epochs, "epochs") as advance, open_trackers(trainer.runs) as track:
        advance(trainer.epoch)

        def on_epoch(reports: list[EpochReport]) -> None:
            track(reports)
            lines = [report.figures for report in reports]
            loss, val_loss, accuracy = (sum(line[key] for line in lines) / len(lines) for key in ("train_loss", "val_loss", "val_accuracy"))
            advance(1, f"loss {loss:.3f}, validation {val_loss:.3f} / {100 * accuracy:.1f} %")

        trainer.train([shared[id(job.data)] for job in jobs], on_epoch)


def _write_results(trainer: Trainer, jobs: Sequence[_Job], method: str, shots: int | None) -> None:
    """Measure the best epochs of all runs, one execution per split, and write what each run left to write."""
    trainer.take_best()
    logits = {name: trainer.answer(torch.stack([job.data.tensors(name)[0] for job in jobs])).numpy() for name in MEASURED}
    references: dict[int, dict[str, Any]] = {}
    for entry, (job, run) in enumerate(zip(jobs, trainer.runs, strict=True)):
        if job.run.result() is not None:  # of a stack that was stopped while it wrote its results
            continue
        predictions = predictions_of(job.data, {name: logits[name][:, entry] for name in MEASURED})
        figures = figures_of(predictions, job.positive)
        for twin in figures["twins"]:
            figures["twins"][twin]["best_epoch"] = run.best[twin].epoch
        if id(job.data) not in references:
            references[id(job.data)] = _reference(job.data, job.positive)
        result = {
            "epochs": run.epoch,
            "best_epoch": run.best["hybrid"].epoch,
            "parameter_sets": run.num_rows,
            "jobs": run.num_jobs,
            "runs": len(jobs),
            "positive": job.positive,
            "diff_method": method,
            "shots": shots,
            "qpu_seconds": run.qpu_seconds,
            "planned": plan_fit(job.config, _sizes(job.data), read_prices()).to_dict(),
            **figures,
            "logistic_regression": references[id(job.data)],
            **({} if job.tuning is None else {"tuning": job.tuning}),
        }
        job.run.write_predictions(predictions)
        plot_curves(job.run.metrics(), result["best_epoch"], job.run.path / "curves.png")
        plot_confusion(figures["test"]["confusion"], job.data.record["labels"], "test split", job.run.path / "confusion.png")
        job.run.write_result(result)


def _reference(data: PreparedData, positive: str) -> dict[str, Any]:
    """Logistic regression on the same features, measured on the same test split."""
    features, truth = data.tensors("train")
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
    reference.fit(features.numpy(), truth.numpy())
    test_features, test_truth = data.tensors("test")
    probabilities = reference.predict_proba(test_features.numpy())
    return classification_metrics(test_truth.numpy(), probabilities, data.record["labels"], positive)
