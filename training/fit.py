"""Train the hybrid model on a folder of photographs, into a run folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hqtl_common.backends.opening import Limits, check_limits
from hqtl_common.classifier import softmax
from hqtl_common.errors import ConfigError
from training.backbones import load_backbone
from training.config import FitConfig
from training.console import progress_bar, say
from training.data import SPLIT_NAMES
from training.head import make_head, resolve_diff_method
from training.metrics import classification_metrics, find_positive
from training.model import HybridModel, build_model
from training.plan import read_prices
from training.planning import plan_fit
from training.plots import plot_confusion, plot_curves
from training.prepare import PreparedData, pick_device, prepare
from training.runs import RunFolder
from training.trainer import Trainer, TrainingData

__all__ = ["fit", "open_run"]


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
    """Train, or go on training, and return what ``result.json`` holds.

    Args:
        config: Options.
        run: From :func:`open_run`.
        cache_folder: Where features are cached.
        limits: What may be spent on a paid backend.
        verbose: Say more.

    Raises:
        ConfigError: Weights that cannot be had, options that do not fit the data, or data changed since the run began.
        InputError: The folder of images cannot be used.
        BackendError: The head could not be run.
    """
    if (finished := run.result()) is not None:
        say(f"{run.path} is finished; nothing to do")
        return finished
    check_limits(config.backend, limits)
    method = resolve_diff_method(config.backend, config.shots, config.diff_method)
    backbone = load_backbone(config.backbone, config.weights, config.seed)
    data = prepare(config, backbone, cache_folder, pick_device(config.device), verbose=verbose)
    positive = find_positive(data.record["labels"], config.positive)
    head_record = {"diff_method": method, "positive": positive, "backbone_sha256": backbone.digest}
    _record_data(run, data.record | head_record)
    trainer, model = _train(config, run, data, method, limits)
    model.load_state_dict(trainer.best_state)
    val, test = _measure(model, data, "val", positive), _measure(model, data, "test", positive)
    result = {
        "epochs": trainer.epoch,
        "best_epoch": trainer.best_epoch,
        "parameter_sets": model.head.num_rows,
        "jobs": model.head.num_jobs,
        "positive": positive,
        "diff_method": method,
        "shots": model.head.shots,
        "qpu_seconds": model.head.qpu_seconds,
        "planned": plan_fit(config, _sizes(data), read_prices()).to_dict(),
        "val": val,
        "test": test,
        "logistic_regression": _reference(data, positive),
    }
    model.head.close()
    plot_curves(run.metrics(), trainer.best_epoch, run.path / "curves.png")
    plot_confusion(test["confusion"], data.record["labels"], "test split", run.path / "confusion.png")
    run.write_result(result)
    return result


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


def _scope(config: FitConfig, data: PreparedData) -> str:
    """What paid executions belong to: the same options on the same data replay what was paid, wherever the run lies."""
    what = json.dumps([config.training_record(), data.record["data_sha256"], data.record["split_sha256"]], sort_keys=True)
    return f"fit-{hashlib.sha256(what.encode()).hexdigest()[:24]}"


def _train(config: FitConfig, run: RunFolder, data: PreparedData, method: str, limits: Limits | None) -> tuple[Trainer, HybridModel]:
    width, classes = data.features.shape[1], len(data.record["labels"])
    model = build_model(width, classes, config.head_spec, seed=config.seed)
    head = make_head(
        config.head_spec,
        model.head.weights,
        backend=config.backend,
        diff_method=method,
        diff_step=config.diff_step,
        shots=config.shots,
        seed=config.seed,
        backend_options=config.backend_options,
        limits=limits,
        scope=_scope(config, data),
    )
    model = model.with_head(head)
    shots = "exact" if model.head.shots is None else f"{model.head.shots} shots"
    say(f"head on {config.backend}, {shots}, gradient by {method}")
    trainer = Trainer(model, config, run)
    if trainer.epoch:
        say(f"going on after epoch {trainer.epoch} of {config.epochs}")
    with progress_bar("training", config.epochs, "epochs") as advance:
        advance(trainer.epoch)

        def on_epoch(line: dict[str, Any]) -> None:
            accuracy = f"{100 * line['val_accuracy']:.1f} %"
            advance(1, f"loss {line['train_loss']:.3f}, validation {line['val_loss']:.3f} / {accuracy}")

        trainer.train(TrainingData(data.tensors("train"), data.tensors("val")), on_epoch)
    return trainer, model


@torch.no_grad()
def _measure(model: HybridModel, data: PreparedData, name: str, positive: str) -> dict[str, Any]:
    features, truth = data.tensors(name)
    probabilities = softmax(model.eval()(features).numpy())
    return classification_metrics(truth.numpy(), probabilities, data.record["labels"], positive)


def _reference(data: PreparedData, positive: str) -> dict[str, Any]:
    """Logistic regression on the same features, measured on the same test split."""
    features, truth = data.tensors("train")
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
    reference.fit(features.numpy(), truth.numpy())
    test_features, test_truth = data.tensors("test")
    probabilities = reference.predict_proba(test_features.numpy())
    return classification_metrics(test_truth.numpy(), probabilities, data.record["labels"], positive)
