"""A bundle and a backend together: images in, answers out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.adaptive import DecisionRule, ShotPlan, evaluate_adaptively
from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import backend_capabilities, get_backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.calibration import Applied
from hqtl_common.errors import BundleFormatError, ConfigError, ShapeError, UnknownBackendError
from hqtl_common.manifest import FAMILIARITY, Manifest
from hqtl_common.preprocess import preprocess_batch
from hqtl_common.providers import CPU
from hqtl_common.records import Evaluation, InferenceBatch, Prediction
from hqtl_common.stages import Stage

__all__ = ["HybridClassifier", "applied_calibration", "decide", "is_noise_free", "softmax"]

Source = bytes | str | os.PathLike[str]
F64 = NDArray[np.float64]

_MAY_BE_NOISY = frozenset({"pennylane:qiskit.remote"})  # by its option fake_backend
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class HybridClassifier:
    """Runs every stage of a bundle; the head on ``backend``. Use it as a context manager or call :meth:`close`.

    Args:
        bundle: A loaded bundle.
        backend: Where the head runs (default: ``statevector``, exact). It is not closed by this object.
        threads: Threads of the backbone (default: all cores).
        providers: Where the backbone computes, see :data:`hqtl_common.providers.PROVIDERS`; the preferred one first.
        max_batch: Rows of the largest batch that TensorRT prepares the backbone for.
        threshold: Probability from which the positive label is given (default: the bundle's for the backend); two classes only.

    Raises:
        BundleError: The bundle was changed since it was loaded, or ONNX Runtime cannot load it.
        ConfigError: A threshold outside (0, 1), or one for more than two classes; a provider that cannot be used.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        backend: Backend | None = None,
        *,
        threads: int | None = None,
        providers: Sequence[str] = CPU,
        max_batch: int = 32,
        threshold: float | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend or get_backend("statevector")
        self.threshold = _check_threshold(bundle, threshold)
        self._backbone = Stage(bundle.read("backbone.onnx"), "backbone.onnx", threads=threads, providers=providers, max_batch=max_batch)
        self._pre_net = Stage(bundle.read("pre_net.onnx"), "pre_net.onnx", threads=1)
        self._post_net = Stage(bundle.read("post_net.onnx"), "post_net.onnx", threads=1)
        head, features, pixels = bundle.head, bundle.manifest.backbone.feature_width, bundle.preprocess.pixels_shape
        _check_stage(self._backbone, pixels, features)
        _check_stage(self._pre_net, (features,), head.num_angles)
        _check_stage(self._post_net, (head.num_qubits,), len(bundle.labels))
        self._familiarity = _familiarity_stage(bundle)
        self._post_bias = np.asarray(self._post_net(np.zeros((1, head.num_qubits)))[0], dtype=np.float64)  # (C,)
        self._post_weight = self._post_net(np.eye(head.num_qubits)) - self._post_bias  # (n, C): it is linear

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the ONNX Runtime sessions; calling it again does nothing."""
        for name in ("_backbone", "_pre_net", "_post_net", "_familiarity"):
            self.__dict__.pop(name, None)

    def preprocess(self, sources: Sequence[Source]) -> InferenceBatch:
        """Images → a batch with ``pixels``.

        Raises:
            InputError: See :func:`hqtl_common.preprocess.preprocess_batch`.
        """
        return InferenceBatch(pixels=preprocess_batch(sources, self.bundle.preprocess))

    @property
    def providers(self) -> tuple[str, ...]:
        """Where the backbone computes."""
        return self._backbone.providers

    def extract(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """``pixels`` (B, 3, S, S) → ``features`` (B, F), by the backbone alone.

        Raises:
            ShapeError: Another shape.
        """
        features: NDArray[np.float32] = self._backbone(pixels)
        return features

    def featurize(self, batch: InferenceBatch) -> InferenceBatch:
        """Fill ``features``, ``familiarity`` and ``angles`` from ``pixels`` (or the last two from ``features`` that are given)."""
        features = batch.features
        if features is None:
            if batch.pixels is None:
                raise ShapeError("a batch needs pixels or features; call preprocess first")
            features = self.extract(batch.pixels)
        familiarity = None if self._familiarity is None else self._familiarity(features)
        return dataclasses.replace(batch, features=features, familiarity=familiarity, angles=self._pre_net(features))

    def run(
        self,
        batch: InferenceBatch,
        *,
        backend: Backend | None = None,
        stream: int = 0,
        threshold: float | None = None,
        max_shots: int | None = None,
    ) -> InferenceBatch:
        """Fill every field after ``angles``, and before it those still empty: classical stages whose result is given do not run.

        Args:
            batch: At least ``pixels``, ``features`` or ``angles``.
            backend: Where the head runs (default: the classifier's).
            stream: Which independent noise to draw; see :meth:`hqtl_common.backends.base.Backend.run`.
            threshold: In place of the classifier's.
            max_shots: Sample images whose label is still in doubt again, with at most so many shots each; fills ``shots_used``.
                See :func:`hqtl_common.adaptive.evaluate_adaptively`.

        Raises:
            ShapeError: An array does not fit its stage.
            ConfigError: An illegal threshold, or ``max_shots`` below the backend's shots or far above them.
            CapabilityError: ``max_shots`` with a backend that gives exact values.
            BackendError: The head could not be run.
        """
        backend = backend or self.backend
        applied = self._applied(backend, threshold)
        if batch.angles is None:
            batch = self.featurize(batch)
        assert batch.angles is not None
        positive = self.bundle.labels.index(self.bundle.manifest.positive_label)
        answer, shots_used = self._evaluate(backend, batch.angles, stream, applied, positive, max_shots)
        logits = np.asarray(self._post_net(answer.expvals), dtype=np.float64)
        probabilities = softmax(logits / applied.temperature)
        covs, info = answer.expval_covs, self.bundle.manifest.familiarity
        return dataclasses.replace(
            batch,
            expvals=answer.expvals,
            expval_covs=covs,
            logits=logits,
            probabilities=probabilities,
            intervals=None if covs is None else _intervals(probabilities, covs, self._post_weight / applied.temperature),
            label_indices=decide(probabilities, positive, applied.threshold),
            labels=self.bundle.labels,
            execution=answer.record,
            shots_used=shots_used,
            familiarity_level=None if info is None else info.level,
            temperature=applied.temperature,
            threshold=applied.threshold,
            boundaries=_boundaries(applied.threshold, positive),
            calibration=applied.name,
        )

    def _applied(self, backend: Backend, threshold: float | None) -> Applied:
        """What is applied to the logits of a backend's answers; a threshold that was given goes before the bundle's."""
        found = applied_calibration(self.bundle.manifest, backend.name, backend.shots)
        given = self.threshold if threshold is None else _check_threshold(self.bundle, threshold)
        return found if given is None else dataclasses.replace(found, threshold=given)

    def _evaluate(
        self, backend: Backend, angles: NDArray[np.float32], stream: int, applied: Applied, positive: int, max_shots: int | None
    ) -> tuple[Evaluation, NDArray[np.int64] | None]:
        head, weights = self.bundle.head, self.bundle.weights
        if max_shots is None:
            return backend.run(head, weights, angles, stream=stream), None
        weight, bias = self._post_weight / applied.temperature, self._post_bias / applied.temperature
        rule = DecisionRule.of(weight, bias, positive, applied.threshold)
        found = evaluate_adaptively(backend, head, weights, angles, rule, ShotPlan.of(backend, max_shots), stream=stream)
        return found.answer, found.shots_used

    def predict(self, source: Source) -> Prediction:
        """Classify one image (encoded bytes, or a path).

        Raises:
            InputError: The image cannot be used.
            BackendError: The head could not be run.
        """
        return self.predict_many([source])[0]

    def predict_many(self, sources: Sequence[Source]) -> list[Prediction]:
        """Classify several images in one execution; see :meth:`predict`."""
        return self.run(self.preprocess(sources)).predictions()


def applied_calibration(manifest: Manifest, backend: str, shots: int | None) -> Applied:
    """Temperature and threshold that a bundle gives to the answers of a backend.

    Args:
        manifest: Of the bundle.
        backend: Name of the backend.
        shots: Its repetitions, None = exact.
    """
    return manifest.applied_to(backend, shots, noise_free=is_noise_free(backend))


def is_noise_free(backend: str) -> bool:
    """True for a backend whose answers have no noise but that of sampling: the exact simulator's calibration holds for it."""
    try:
        return backend_capabilities(backend).noise is None and backend not in _MAY_BE_NOISY
    except UnknownBackendError:  # of the caller's own making
        return False


def softmax(logits: F64) -> F64:
    """Softmax over the last axis, float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: F64 = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def decide(probabilities: F64, positive: int, threshold: float | None) -> NDArray[np.intp]:
    """Label indices (B,) from probabilities (B, C).

    With two classes the positive one is given where its probability is at least ``threshold``; with more, the most probable.
    """
    winners = np.argmax(probabilities, axis=-1)
    if threshold is not None:
        winners = np.where(probabilities[..., positive] >= threshold, positive, 1 - positive)
    return np.asarray(winners, dtype=np.intp)


def _check_stage(stage: Stage, inputs: tuple[int, ...], width: int) -> None:
    outputs = stage(np.zeros((1, *inputs))).shape[1:] if stage.input_shape == inputs else stage.output_shape
    if (stage.input_shape, outputs) != (inputs, (width,)):
        raise BundleFormatError(
            f"{stage.name} maps {stage.input_shape} to {outputs}; the manifest says {inputs} to {(width,)}: export the bundle again"
        )


def _familiarity_stage(bundle: ModelBundle) -> Stage | None:
    if bundle.manifest.familiarity is None:
        return None
    stage, width = Stage(bundle.read(FAMILIARITY), FAMILIARITY, threads=1), bundle.manifest.backbone.feature_width
    if stage.input_shape != (width,) or stage.output_shape != () or not np.isfinite(stage(np.ones((1, width)))).all():
        raise BundleFormatError(f"{FAMILIARITY} does not map features ({width},) to one finite number: export the bundle again")
    return stage


def _check_threshold(bundle: ModelBundle, threshold: float | None) -> float | None:
    if threshold is None:
        return None
    if len(bundle.labels) != 2:
        raise ConfigError(f"a threshold needs two classes; the bundle has {len(bundle.labels)}: leave it out")
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold must lie between 0 and 1; got {threshold}")
    return threshold


def _boundaries(threshold: float | None, positive: int) -> tuple[float, ...]:
    """The probability from which each of two labels is given."""
    if threshold is None:
        return ()
    return tuple(threshold if index == positive else 1 - threshold for index in range(2))


def _intervals(probabilities: F64, covs: F64, weight: F64) -> F64:
    """95 % intervals (B, C, 2) of probabilities from the covariance of the expvals (B, n, n), by the log-odds.

    log-odds g_c = log p_c/(1−p_c) has ∂g_c/∂logit_k = δ_ck − (1−δ_ck)·p_k/(1−p_c); weight (n, C) carries it to the expvals.
    """
    tiny = np.finfo(np.float64).tiny
    identity = np.eye(probabilities.shape[1], dtype=bool)
    rest = np.maximum(probabilities @ ~identity, tiny)  # summed: 1 − p is 0 as soon as p rounds to 1
    others = -probabilities[:, None, :] / rest[:, :, None]
    gradient = np.where(identity, 1.0, others) @ weight.T
    deviation = np.sqrt(np.maximum(np.einsum("bci,bij,bcj->bc", gradient, covs, gradient), 0.0))
    log_odds = np.log(np.maximum(probabilities, tiny)) - np.log(rest)
    bounds = log_odds[:, :, None] + _Z95 * deviation[:, :, None] * np.array([-1.0, 1.0])
    result: F64 = np.exp(-np.logaddexp(0.0, -bounds))
    return result
