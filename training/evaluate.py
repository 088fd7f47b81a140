"""Measure a run or a bundle on a folder of labelled photographs, with the head on any backend."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.opening import Limits, check_limits, open_backend
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import ConfigError, InputError
from training.console import say, warn
from training.data import SPLIT_NAMES, ImageDataset, Sample
from training.judges import Answers, BundleJudge, Judge, RunJudge
from training.metrics import classification_metrics, wilson_interval
from training.prepare import SourceData, read_source, split_source
from training.reliability import plot_reliability, reliability_figures
from training.runs import is_run, write_json
from training.trained import TrainedRun, load_run

__all__ = ["Measured", "TrainedRun", "answer_subset", "evaluate", "load_run", "write_evaluation"]

SUBSETS = ("auto", "all", *SPLIT_NAMES)


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers and the truth.

    Args:
        subset: Which images they are.
        truth: (k,) positions of the true classes of the usable images.
        answers: Of the model.
        labels: C class names.
        positive: One of them.
        errors: Path and message of images that could not be used.
    """

    subset: str
    truth: NDArray[np.intp]
    answers: Answers
    labels: list[str]
    positive: str
    errors: list[dict[str, str]]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(k, C), calibrated."""
        return softmax(self.answers.logits / self.answers.applied.temperature)

    def figures(self) -> dict[str, Any]:
        """Figures of merit and of calibration, with and without the unfamiliar images, JSON-ready."""
        applied, index, probabilities = self.answers.applied, self.labels.index(self.positive), self.probabilities
        return {
            "subset": self.subset,
            **classification_metrics(self.truth, probabilities, self.labels, self.positive, applied.threshold),
            "calibration": dataclasses.asdict(applied),
            "reliability": reliability_figures(probabilities, self.truth, index),
            "uncalibrated": reliability_figures(softmax(self.answers.logits), self.truth, index),
            "familiarity": self._by_familiarity(probabilities, index),
            "errors": self.errors,
            "execution": self.answers.execution.to_dict(),
        }

    def _by_familiarity(self, probabilities: NDArray[np.float64], index: int) -> dict[str, Any] | None:
        unfamiliar = self.answers.unfamiliar
        if unfamiliar is None:
            return None
        right = decide(probabilities, index, self.answers.applied.threshold) == self.truth
        return {"familiar": _share(right[~unfamiliar]), "unfamiliar": _share(right[unfamiliar])}


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
    out: Path | None = None,
) -> dict[str, Any]:
    """Figures of merit and of calibration, JSON-ready; see :func:`training.metrics.classification_metrics`, :meth:`Measured.figures`.

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
        out: Folder to write; see :func:`write_evaluation`.

    Raises:
        ConfigError: An option that does not fit.
        InputError: The model or the folder cannot be used.
        BackendError: The head could not be run.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} exists already; give another folder for the evaluation")
    check_limits(backend, limits)
    judge: Judge = RunJudge(model, cache_folder, device, verbose) if is_run(model) else BundleJudge(model)
    measured = answer_subset(
        judge,
        folder,
        subset,
        backend=backend,
        shots=shots,
        max_shots=max_shots,
        seed=seed,
        backend_options=backend_options,
        limits=limits,
        purpose="evaluate",
    )
    result = {"model": str(model), "data": str(folder), **measured.figures()}
    if out is not None:
        write_evaluation(measured, result, out)
    return result


def answer_subset(
    judge: Judge,
    folder: Path,
    subset: str,
    *,
    backend: str,
    shots: int | None,
    max_shots: int | None,
    seed: int,
    backend_options: Mapping[str, Any] | None,
    limits: Limits | None,
    purpose: str,
) -> Measured:
    """Answers of a model to a subset of a folder; see :func:`evaluate` for the arguments and errors.

    ``purpose`` parts the paid executions of one command from those of another on the same images.
    """
    source = read_source(folder, judge.spec)
    scope = f"{purpose}-{hashlib.sha256(f'{judge.data_sha256} {source.digest} {subset}'.encode()).hexdigest()[:24]}"
    engine = open_backend(backend, shots=shots, seed=seed, options=backend_options, limits=limits, scope=scope)
    if engine.shots is not None and engine.seed is None:
        warn(f"{backend} draws without a seed: another run gives other samples")
    name, indices = _choose(source, judge, subset)
    chosen = _restrict(source, indices)
    truth = _truth(chosen.dataset, judge.labels)
    say(f"answering {len(indices)} images ({name}) with the head on {backend}")
    answers = judge.answer(chosen, engine, max_shots)
    engine.close()
    errors = [{"path": chosen.dataset.samples[i].relative, "error": message} for i, message in answers.errors.items()]
    if not answers.positions:
        raise InputError("there is no usable image to evaluate")
    return Measured(name, truth[answers.positions], answers, judge.labels, judge.positive, errors)


def write_evaluation(measured: Measured, result: dict[str, Any], out: Path) -> None:
    """Write ``evaluation.json`` and the reliability diagram ``reliability.png``.

    Args:
        measured: The answers.
        result: What :func:`evaluate` returns.
        out: The folder, made if it is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    series = {"calibrated": measured.probabilities}
    if measured.answers.applied.temperature != 1:
        series = {"uncalibrated": softmax(measured.answers.logits), **series}
    plot_reliability(series, measured.truth, measured.labels, measured.labels.index(measured.positive), out / "reliability.png")
    write_json(out / "evaluation.json", result)


def _share(right: NDArray[np.bool_]) -> dict[str, Any]:
    """How many answers, and how many of them are right."""
    if not len(right):
        return {"num_images": 0, "accuracy": None, "accuracy_interval": None}
    correct = int(right.sum())
    return {"num_images": len(right), "accuracy": correct / len(right), "accuracy_interval": list(wilson_interval(correct, len(right)))}


def _choose(source: SourceData, trained: Judge, subset: str) -> tuple[str, tuple[int, ...]]:
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
