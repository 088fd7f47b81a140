"""Figures for Prometheus: BentoML's own by their names, and what this service spends, refuses and sees.

BentoML labels its figures with the path of the request, so that anybody who asks for random paths grows its memory; here the
label is the route, and everything that is no route is ``other``. With several workers (``PROMETHEUS_MULTIPROC_DIR``, which
BentoML sets) the figures of all of them are added up when they are asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from hqtl_common.calibration import NOISE_FREE
from hqtl_common.manifest import Manifest

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "reference_means", "shots_of"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TENTHS = tuple(k / 10 for k in range(1, 11))
_MEMORY = 500  # images over which a running mean forgets
_BENTOML = ("endpoint", "service_name", "service_version", "runner_name")


class Metrics:
    """The figures of one process.

    Args:
        version: Of the software, the label ``service_version``.
        reference: Mean of each watched quantity when the bundle was made, where it is known; see :func:`reference_means`.
    """

    def __init__(self, version: str, reference: Mapping[str, float] | None = None) -> None:
        self._registry = CollectorRegistry()
        self._means: dict[str, tuple[float, int]] = {}  # and of how many, at most _MEMORY
        self._service = {"service_name": "hqtl", "service_version": version, "runner_name": "hqtl"}
        _forget_the_dead()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        def gauge(name: str, text: str, mode: Any, *labels: str) -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode=mode, registry=self._registry)

        self._requests = counter("bentoml_service_request_total", "Requests", *_BENTOML, "http_response_code")
        self._duration = histogram(
            "bentoml_service_request_duration_seconds", "Duration of requests", _SECONDS, *_BENTOML, "http_response_code"
        )
        self._in_progress = gauge("bentoml_service_request_in_progress", "Requests in progress", "livesum", *_BENTOML[1:])
        self._images = counter("hqtl_images_total", "Images answered", "backend")
        self._shots = counter("hqtl_shots_total", "Repetitions of the circuit", "backend")
        self._qpu_seconds = counter("hqtl_qpu_seconds_total", "Billed seconds of quantum hardware", "backend")
        self._fallbacks = counter("hqtl_fallbacks_total", "Answers by another backend than was asked for", "requested", "used")
        self._queue = histogram("hqtl_queue_seconds", "Waiting time before a stage begins", _SECONDS, "stage")
        self._rejected = counter("hqtl_rejected_total", "Requests answered with an error, by its code", "reason")
        self._deaths = counter("hqtl_decoder_deaths_total", "Decoder processes that an image has ended", "cause")
        self._backbone = gauge("hqtl_backbone_info", "How the backbone runs; always 1", "livemostrecent", "precision", "providers")
        self._jobs = gauge("hqtl_jobs", "Jobs by state", "livemostrecent", "state")
        self._labels = counter("hqtl_labels_total", "Images by label given", "label")
        self._reviews = counter("hqtl_reviews_total", "Images that a person should look at")
        self._watched = {
            "score": histogram("hqtl_score", "Probability of the positive label", _TENTHS),
            "familiarity": histogram("hqtl_familiarity", "How much an image is like those of the training", _TENTHS),
        }
        self._mean = gauge("hqtl_recent_mean", "Running mean of a watched quantity", "livemostrecent", "quantity")
        self._drift = gauge("hqtl_drift", "Running mean less the mean when the bundle was made", "livemostrecent", "quantity")
        self._reference = dict(reference or {})
        reference_gauge = gauge("hqtl_reference_mean", "Mean of a watched quantity when the bundle was made", "livemostrecent", "quantity")
        for quantity, value in self._reference.items():
            reference_gauge.labels(quantity).set(value)

    def begin(self) -> None:
        """A request has come."""
        self._in_progress.labels(**self._service).inc()

    def end(self, route: str, status: int, seconds: float, code: str | None) -> None:
        """A request has been answered; ``code`` is that of its error."""
        labels = {**self._service, "endpoint": route, "http_response_code": str(status)}
        self._in_progress.labels(**self._service).dec()
        self._requests.labels(**labels).inc()
        self._duration.labels(**labels).observe(seconds)
        if code is not None:
            self._rejected.labels(code).inc()

    def answered(self, answer: Mapping[str, Any], positive: str) -> None:
        """An answer of :meth:`serving.predictor.Predictor.predict` goes out.

        Args:
            answer: With ``predictions`` and ``execution``.
            positive: The bundle's positive label.
        """
        execution, predictions = answer["execution"], answer["predictions"]
        used, requested = execution["backend_used"], execution["backend_requested"]
        self._images.labels(used).inc(len(predictions))
        self._shots.labels(used).inc(shots_of(answer))
        self._qpu_seconds.labels(used).inc(execution["qpu_seconds"])
        if used != requested:
            self._fallbacks.labels(requested, used).inc()
        for prediction in predictions:
            self._labels.labels(prediction["label"]).inc()
            self._watch("score", prediction["probabilities"][positive])
            self._watch("familiarity", prediction.get("familiarity"))
            self._watch("positive", float(prediction["label"] == positive))
            self._watch("review", float(bool(prediction.get("review"))))
        self._reviews.inc(sum(bool(prediction.get("review")) for prediction in predictions))

    def waited(self, stage: str, seconds: float) -> None:
        """Work has waited for a stage: ``backbone`` or ``head``."""
        self._queue.labels(stage).observe(seconds)

    def set_backbone(self, precision: str, providers: str) -> None:
        """What the backbone computes with, and where."""
        self._backbone.labels(precision, providers).set(1)

    def decoder_died(self, cause: str) -> None:
        """An image has ended a decoder; ``cause`` is a signal or an exit code."""
        self._deaths.labels(cause if re.fullmatch(r"SIG[A-Z]+|exit code \d+", cause) else "other").inc()

    def set_jobs(self, by_state: Mapping[str, int]) -> None:
        """How many jobs are in each state; a state that is not given keeps its figure."""
        for state, number in by_state.items():
            self._jobs.labels(state).set(number)

    def render(self) -> bytes:
        """All figures of all workers in Prometheus' text format."""
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _watch(self, quantity: str, value: float | None) -> None:
        if value is None:
            return
        if quantity in self._watched:
            self._watched[quantity].observe(value)
        mean, number = self._means.get(quantity, (0.0, 0))
        number = min(number + 1, _MEMORY)
        mean += (value - mean) / number
        self._means[quantity] = mean, number
        self._mean.labels(quantity).set(mean)
        if quantity in self._reference:
            self._drift.labels(quantity).set(mean - self._reference[quantity])


def reference_means(manifest: Manifest) -> dict[str, float]:
    """Means of what is watched, as far as a bundle knows them of its test images.

    ``score`` is the mean probability of the positive label, ``positive`` the share of answers with it; both were measured before the
    bundle was calibrated, so that one whose calibration changes them has no reference. By its definition the familiarity of images
    like those held out is spread evenly over 0…1.
    """
    found = {"familiarity": 0.5} if manifest.familiarity else {}
    tested, applied = manifest.metrics.get("test", {}), manifest.applied_to(NOISE_FREE, None, noise_free=True)
    if applied.temperature != 1.0:
        return found
    if "mean_score" in tested:
        found["score"] = float(tested["mean_score"])
    answers = [sum(column) for column in zip(*tested.get("confusion", ()), strict=True)]  # by label
    if sum(answers) and applied.threshold in (None, 0.5):
        found["positive"] = answers[manifest.labels.index(manifest.positive_label)] / sum(answers)
    return found


def shots_of(answer: Mapping[str, Any]) -> int:
    """Repetitions behind an answer, 0 where it is exact."""
    adaptive: Iterable[int | None] = (prediction.get("shots_used") for prediction in answer["predictions"])
    one = answer["execution"]["shots"] or 0
    return sum(one if shots is None else shots for shots in adaptive)


def _forget_the_dead() -> None:
    """Drop the live figures of workers that were killed; their counts stay."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for path in Path(folder).glob("gauge_live*_*.db") if folder else ():
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
