"""Measure a run or a bundle on a folder of labelled photographs, with the head on any backend."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqtl_common.adaptive import DecisionRule, ShotPlan, evaluate_adaptively
from hqtl_common.backends.base import Backend
from hqtl_common.backends.opening import Limits, check_limits, open_backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier, softmax
from hqtl_common.errors import ConfigError, InputError
from hqtl_common.records import ExecutionRecord, InferenceBatch
from training.backbones import Backbone, load_backbone
from training.config import FitConfig
from training.console import progress_bar, say, warn
from training.data import SPLIT_NAMES, ImageDataset, Sample
from training.decode import decode_batches
from training.features import BATCH_SIZE
from training.metrics import classification_metrics
from training.model import HybridModel, build_model
from training.prepare import SourceData, compute_features, pick_device, read_source, split_source
from training.runs import RunFolder, is_run

__all__ = ["Answers", "TrainedRun", "evaluate", "load_run"]

SUBSETS = ("auto", "all", *SPLIT_NAMES)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers for the usable ones of N images.

    Args:
        positions: (k,) which images could be used.
        probabilities: (k, C).
        execution: What ran the head.
        errors: Position → why an image cannot be used.
    """

    positions: list[int]
    probabilities: NDArray[np.float64]
    execution: ExecutionRecord
    errors: dict[int, str]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """The best model of a run.

    Args:
        config: Options of the run.
        data: What ``data.json`` holds.
        result: What ``result.json`` holds.
        backbone: The network whose features the model was trained on.
        model: With the best epoch's values, its head exact.
    """

    config: FitConfig
    data: dict[str, Any]
    result: dict[str, Any]
    backbone: Backbone
    model: HybridModel


def load_run(path: Path) -> TrainedRun:
    """The best model of a finished run, and its backbone.

    Args:
        path: The run folder.

    Raises:
        InputError: Not a run, or one that has not finished.
        ConfigError: The weights of the backbone cannot be had or changed since the run.
    """
    run = RunFolder(path)
    config, data, result, checkpoint = run.config(), run.data(), run.result(), run.load_checkpoint()
    if data is None or result is None or checkpoint is None:
        raise InputError(f"the run {str(path)!r} has not finished; finish it with: hqtl-train fit --resume {path}")
    backbone = load_backbone(config.backbone, config.weights, config.seed)
    if backbone.digest != data["backbone_sha256"]:
        raise ConfigError(f"the weights {config.weights!r} of {config.backbone} changed since the run; restore them or train again")
    model = build_model(backbone.feature_width, len(data["labels"]), config.head_spec, state=checkpoint.part("best"))
    return TrainedRun(config, data, result, backbone, model.eval())


def evaluate(
    model: Path,
    folder: Path,
    *,
    backend: str = "statevector",
    shots: int | None = None,
    max_shots: int | None = None,
    seed: int = 0,
    backend_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    subset: str = "auto",
    cache_folder: Path,
    device: str = "auto",
    verbose: bool = False,
) -> dict[str, Any]:
    """Figures of merit, JSON-ready; see :func:`training.metrics.classification_metrics`.

    Args:
        model: A run folder or a bundle.
        folder: Labelled photographs; its classes must be classes of the model.
        backend: Where the head runs.
        shots: Repetitions, None = exact.
        max_shots: Sample images in doubt again, with at most so many shots each; see :mod:`hqtl_common.adaptive`.
        seed: Seed of the sampling.
        backend_options: Options of the backend by its own names.
        limits: What may be spent on a paid backend.
        subset: ``train``, ``val``, ``test`` or ``all``. ``auto`` is ``test`` for the folder that the model was trained
            on and for a folder that has a folder ``test``, so that no training image flatters the figures; else ``all``.
        cache_folder: Where features of a run are cached.
        device: torch's device for the backbone of a run.
        verbose: Say more.

    Raises:
        ConfigError: An option that does not fit.
        InputError: The model or the folder cannot be used.
        BackendError: The head could not be run.
    """
    check_limits(backend, limits)
    trained: _RunJudge | _BundleJudge = _RunJudge(model, cache_folder, device, verbose) if is_run(model) else _BundleJudge(model)
    source = read_source(folder)
    scope = f"evaluate-{hashlib.sha256(f'{trained.data_sha256} {source.digest} {subset}'.encode()).hexdigest()[:24]}"
    engine = open_backend(backend, shots=shots, seed=seed, options=backend_options, limits=limits, scope=scope)
    if engine.shots is not None and engine.seed is None:
        warn(f"{backend} draws without a seed: another run gives other samples")
    name, indices = _choose(source, trained, subset)
    chosen = _restrict(source, indices)
    truth = _truth(chosen.dataset, trained.labels)
    say(f"evaluating {len(indices)} images ({name}) with the head on {backend}")
    answers = trained.answer(chosen, engine, max_shots)
    engine.close()
    return {
        "model": str(model),
        "data": str(folder),
        "subset": name,
        **classification_metrics(truth[answers.positions], answers.probabilities, trained.labels, trained.positive, trained.threshold),
        "errors": [{"path": chosen.dataset.samples[i].relative, "error": message} for i, message in answers.errors.items()],
        "execution": answers.execution.to_dict(),
    }


class _RunJudge:
    """Answers through torch, features from the cache."""

    def __init__(self, path: Path, cache_folder: Path, device: str, verbose: bool) -> None:
        self._run = load_run(path)
        config = self._run.config
        self._cache_folder, self._device, self._verbose = cache_folder, device, verbose
        self.labels: list[str] = self._run.data["labels"]
        self.positive: str = self._run.result["positive"]
        self.threshold: float | None = 0.5 if len(self.labels) == 2 else None
        self.recipe = (config.split, config.group_by, config.seed)
        self.data_sha256: str = self._run.data["data_sha256"]
        self.split_sha256: str = self._run.data["split_sha256"]

    @torch.no_grad()
    def answer(self, source: SourceData, backend: Backend, max_shots: int | None) -> Answers:
        spec = self._run.config.preprocess_spec
        device = pick_device(self._device)
        table = compute_features(source, self._run.backbone, spec, self._cache_folder, device, verbose=self._verbose)
        positions = [i for i in range(len(source.hashes)) if i not in table.errors]
        model = self._run.model
        angles = model.pre_net(torch.from_numpy(table.features[positions])).numpy()
        weights = model.head.weights.numpy()
        if max_shots is None:
            answer = backend.run(model.head.spec, weights, angles)
        else:
            rule = DecisionRule.of(
                model.post_net.weight.numpy().T, model.post_net.bias.numpy(), self.labels.index(self.positive), self.threshold
            )
            plan = ShotPlan.of(backend, max_shots)
            answer = evaluate_adaptively(backend, model.head.spec, weights, angles, rule, plan).answer
        logits = model.post_net(torch.from_numpy(answer.expvals)).numpy()
        return Answers(positions, softmax(logits), answer.record, table.errors)


class _BundleJudge:
    """Answers through the exported stages, as the service and the folder scoring give them."""

    def __init__(self, path: Path) -> None:
        self._bundle = ModelBundle.load(path)
        manifest = self._bundle.manifest
        self.labels: list[str] = list(manifest.labels)
        self.positive = manifest.positive_label
        self.threshold: float | None = manifest.threshold if len(self.labels) == 2 else None
        self.recipe = (manifest.split.recipe, manifest.split.group_by, manifest.split.seed)
        self.data_sha256: str = manifest.training.get("data_sha256", "")
        self.split_sha256: str = manifest.split.sha256

    def answer(self, source: SourceData, backend: Backend, max_shots: int | None) -> Answers:
        paths = [sample.path for sample in source.dataset.samples]
        angles: list[NDArray[np.float32]] = []
        positions: list[int] = []
        errors: dict[int, str] = {}
        with HybridClassifier(self._bundle, backend) as classifier, progress_bar("features", len(paths), "images") as advance:
            for batch in decode_batches(paths, self._bundle.preprocess, BATCH_SIZE):
                found = classifier.featurize(InferenceBatch(pixels=batch.pixels)).angles
                assert found is not None
                angles.append(found)
                positions += batch.positions
                errors |= batch.errors
                advance(len(batch.positions) + len(batch.errors))
            answer = classifier.run(InferenceBatch(angles=np.concatenate(angles)), max_shots=max_shots)
        for position, message in errors.items():
            warn(f"left out {source.dataset.samples[position].relative}: {message}")
        assert answer.probabilities is not None
        assert answer.execution is not None
        return Answers(positions, answer.probabilities, answer.execution, errors)


def _choose(source: SourceData, trained: _RunJudge | _BundleJudge, subset: str) -> tuple[str, tuple[int, ...]]:
    if subset not in SUBSETS:
        raise ConfigError(f"subset must be one of {', '.join(SUBSETS)}; got {subset!r}")
    known = source.digest == trained.data_sha256
    divided = known or source.dataset.fixed_split is not None
    if subset == "auto":
        subset = "test" if divided else "all"
    if subset == "all":
        return subset, tuple(range(len(source.hashes)))
    if not divided:
        raise ConfigError(f"{str(source.dataset.root)!r} is not the folder the model was trained on and has no {subset} split; use all")
    recipe, group_by, seed = trained.recipe
    split = split_source(source, recipe, group_by if known else "none", seed)
    if known and split.digest(source.dataset) != trained.split_sha256:
        raise InputError(
            f"{str(source.dataset.root)!r} is no longer divided as for training (did patches.csv change?); restore it, or use --subset all"
        )
    return subset, split.indices(subset)


def _restrict(source: SourceData, indices: tuple[int, ...]) -> SourceData:
    samples: tuple[Sample, ...] = tuple(source.dataset.samples[i] for i in indices)
    dataset = dataclasses.replace(source.dataset, samples=samples, fixed_split=None)
    return SourceData(dataset, [source.hashes[i] for i in indices], source.digest)


def _truth(dataset: ImageDataset, labels: list[str]) -> NDArray[np.intp]:
    unknown = sorted(set(dataset.labels) - set(labels))
    if unknown:
        raise InputError(f"{str(dataset.root)!r} has the classes {', '.join(unknown)}, which the model does not know ({', '.join(labels)})")
    return np.array([labels.index(dataset.labels[sample.label]) for sample in dataset.samples], dtype=np.intp)
