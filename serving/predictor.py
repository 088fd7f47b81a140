"""One bundle and the backends that the operator offers: requests in, answers out. Knows no HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

import hqtl_common
from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import backend_capabilities, family_of, get_backend, import_backend, is_installed
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import BackendError, BundleFormatError, ConfigError, UnknownBackendError
from hqtl_common.records import InferenceBatch
from serving.batcher import Batcher
from serving.collector import exempt_imports
from serving.errors import FieldError, ForbiddenBackendError
from serving.forms import PredictOptions
from serving.intake import Intake, PredictRequest
from serving.lanes import HeadLane
from serving.metrics import Metrics, reference_means
from serving.settings import ServiceSettings

__all__ = ["Predictor", "open_classifier"]

_heavy_import = threading.Lock()  # two lanes importing halves of the same packages at once would see them half made


class Predictor:
    """Answers requests with one bundle; every stage has been run once when it stands.

    Args:
        settings: Which bundle, which backends, which limits.

    Raises:
        BundleError: The bundle cannot be used.
        ConfigError: It classifies volumes.
        NotReadyError: Images cannot be decoded.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.bundle = ModelBundle.load(settings.bundle)
        if self.bundle.preprocess.depth is not None:
            raise ConfigError(f"the bundle {str(self.bundle.path)!r} classifies volumes and this service takes images: use hqtl-score")
        self.bundle_hash = str(json.loads(self.bundle.manifest.to_bytes())["manifest_sha256"])
        self._circuit = self.bundle.read("head.qasm").decode()
        self.metrics = Metrics(hqtl_common.__version__, reference_means(self.bundle.manifest))
        self.intake = Intake(self.bundle.preprocess, settings, self.metrics.decoder_died)  # starts while the rest is loaded
        try:
            for name in settings.preload:
                self.load(name)
            self._classifier = open_classifier(self.bundle, settings)
            self.intake.wait_ready()
        except Exception:
            self.intake.close()
            raise
        self.runtime = {"precision": self.bundle.manifest.precision_name, "providers": list(self._classifier.providers)}
        self.metrics.set_backbone(self.bundle.manifest.precision_name, ",".join(self._classifier.providers))
        self._backbone = Batcher(self._classifier.extract, settings.max_batch, partial(self.metrics.waited, "backbone"))
        waited = partial(self.metrics.waited, "head")
        patterns = {family_of(name).pattern for name in settings.backends}
        self._lanes = {name: HeadLane(self._run_head, f"head-{name}", settings.max_total_shots, waited) for name in patterns}

    def close(self) -> None:
        """Stop the threads once what they run is done."""
        self.intake.close()
        for lane in self._lanes.values():
            lane.close()
        self._backbone.close()
        self._classifier.close()

    async def predict(self, request: PredictRequest) -> dict[str, Any]:
        """Answer a request: ``predictions`` in the order of the images, and ``execution``, the record of the head.

        Raises:
            UnknownBackendError: No such backend.
            ForbiddenBackendError: The operator does not offer it.
            FieldError: More shots than the operator allows.
            ConfigError: A threshold, and the bundle has more than two classes.
            BackendError: The head could not be run.
        """
        self.check(request.options, len(request.filenames))
        running = self.start(await self.featurize(request), request.options)
        return self.answer(request.filenames, await asyncio.wrap_future(running), explain=request.options.explain)

    async def featurize(self, request: PredictRequest) -> InferenceBatch:
        """The classical part: ``features`` of the images of a request."""
        return InferenceBatch(features=await self._backbone(request.pixels))

    def start(self, batch: InferenceBatch, options: PredictOptions) -> Future[InferenceBatch]:
        """Run the head of a request that :meth:`check` let pass, in the lane of its backend.

        The future raises:
            ConfigError: A threshold, and the bundle has more than two classes.
            BackendError: The head could not be run.
        """
        return self._lanes[family_of(self.backend_of(options)).pattern].submit(batch, options)

    def open_backend(self, options: PredictOptions, **limits: Any) -> Backend:
        """The backend of a request; the caller closes it.

        Args:
            options: Of the request.
            limits: Options of a paid backend: its scope, ledger and budget.

        Raises:
            BackendError: It cannot be opened.
        """
        self.load(self.backend_of(options))  # the login, which asks the network, comes after it
        return get_backend(self.backend_of(options), shots=options.shots, seed=options.seed, **options.backend_options, **limits)

    def run_on(self, backend: Backend, batch: InferenceBatch, options: PredictOptions) -> InferenceBatch:
        """Run the head where it may take days, in the thread of the caller.

        Args:
            backend: See :meth:`open_backend`.
            batch: With angles.
            options: Of the request.

        Raises:
            BackendError: The head could not be run.
        """
        return self._classifier.run(batch, backend=backend, threshold=options.threshold)

    def load(self, name: str) -> None:
        """Import what a backend needs.

        Raises:
            BackendUnavailableError: The package behind the backend is not installed.
        """
        with _heavy_import, exempt_imports():
            import_backend(name)

    def run_exact(self, batch: InferenceBatch, options: PredictOptions) -> InferenceBatch:
        """The exact answer, at once; ``angles`` and ``familiarity`` are filled as well.

        Raises:
            ConfigError: A threshold, and the bundle has more than two classes.
        """
        return self._classifier.run(self._classifier.featurize(batch), threshold=options.threshold)

    def answer(self, filenames: Sequence[str], batch: InferenceBatch, *, explain: bool = False) -> dict[str, Any]:
        """What goes out, counted in the figures; see :meth:`describe`."""
        answer = self.describe(filenames, batch, explain=explain)
        self.metrics.answered(answer, self.bundle.manifest.positive_label)
        return answer

    def describe(self, filenames: Sequence[str], batch: InferenceBatch, *, explain: bool = False) -> dict[str, Any]:
        """An answer, JSON-ready: ``predictions``, ``execution``, how the backbone runs, and the explanation."""
        assert batch.execution is not None
        answers = zip(filenames, batch.predictions(), strict=True)
        answer: dict[str, Any] = {
            "predictions": [{"filename": filename, **prediction.to_dict()} for filename, prediction in answers],
            "execution": batch.execution.to_dict(),
            "runtime": self.runtime,
        }
        return answer | self._explain(batch) if explain else answer

    def describe_backends(self) -> dict[str, Any]:
        """The backends on offer with what each can do, the default and the limits; imports none of them."""
        settings = self.settings
        return {
            "default": settings.default_backend,
            "backends": [
                {"name": name, "available": is_installed(name), **dataclasses.asdict(backend_capabilities(name))}
                for name in settings.backends
            ],
            "limits": settings.limits,
        }

    def backend_of(self, options: PredictOptions) -> str:
        """The name of the backend of a request: the one it asks for, else the default."""
        return options.backend or self.settings.default_backend

    def check(self, options: PredictOptions, num_images: int) -> None:
        """Refuse what the operator does not offer.

        Raises:
            UnknownBackendError: No such backend.
            ForbiddenBackendError: The operator does not offer it.
            FieldError: More shots than the operator allows.
        """
        settings, name = self.settings, self.backend_of(options)
        if name not in settings.backends:
            raise _not_offered(name, settings.backends)
        field, shots = max(("shots", options.shots or 0), ("max_shots", options.max_shots or 0), key=lambda given: given[1])
        if shots > settings.max_shots:
            raise FieldError(field, f"must be at most {settings.max_shots:,}; got {shots:,}")
        if shots * num_images > settings.max_total_shots:
            raise FieldError(
                field, f"times the number of images must be at most {settings.max_total_shots:,}; got {shots:,} × {num_images}"
            )

    def _run_head(self, batch: InferenceBatch, options: PredictOptions) -> InferenceBatch:
        backend = _make_backend(self.backend_of(options), options)
        try:
            return self._classifier.run(batch, backend=backend, threshold=options.threshold, max_shots=options.max_shots)
        finally:
            backend.close()

    def _explain(self, batch: InferenceBatch) -> dict[str, Any]:
        """What stands between pixels and label besides what every prediction holds."""
        assert batch.features is not None
        return {"explanation": {"features": batch.features.tolist(), "weights": self.bundle.weights.tolist(), "circuit": self._circuit}}


def open_classifier(bundle: ModelBundle, settings: ServiceSettings) -> HybridClassifier:
    """The classifier of a bundle, which has classified a blank image.

    Raises:
        BundleError: It cannot.
        ConfigError: A provider cannot be used here.
    """
    size = bundle.preprocess.size
    classifier = HybridClassifier(bundle, threads=settings.threads, providers=settings.providers, max_batch=settings.max_batch)
    try:
        classifier.run(InferenceBatch(pixels=np.zeros((1, 3, size, size), dtype=np.float32)))
    except Exception as error:  # of the bundle's or ONNX Runtime's making
        raise BundleFormatError(f"the bundle {str(bundle.path)!r} cannot classify an image: {error}") from error
    return classifier


def _not_offered(name: str, offered: tuple[str, ...]) -> BackendError:
    choice = f"this service offers {', '.join(offered)}"
    try:
        family_of(name)
    except UnknownBackendError:
        return UnknownBackendError(f"unknown backend {name!r}; {choice}")
    return ForbiddenBackendError(f"backend {name!r} is not allowed here; {choice}")


def _make_backend(name: str, options: PredictOptions) -> Backend:
    if family_of(name).package is None:
        return get_backend(name, shots=options.shots, seed=options.seed, **options.backend_options)
    with _heavy_import, exempt_imports():
        return get_backend(name, shots=options.shots, seed=options.seed, **options.backend_options)
