"""One bundle and the backends that the operator offers: requests in, answers out. Knows no HTTP.

Each backend family has a lane, a thread of its own: a slow backend never holds up a fast one, and simulators that share
global state run one request at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import backend_capabilities, family_of, get_backend, is_installed
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import BackendError, BundleFormatError, UnknownBackendError
from hqtl_common.records import InferenceBatch
from serving.batcher import Batcher
from serving.errors import FieldError, ForbiddenBackendError
from serving.forms import PredictOptions
from serving.intake import Intake, PredictRequest
from serving.settings import ServiceSettings

__all__ = ["Predictor"]

_heavy_import = threading.Lock()  # two lanes importing halves of the same packages at once would see them half made


class Predictor:
    """Answers requests with one bundle; every stage has been run once when it stands.

    Args:
        settings: Which bundle, which backends, which limits.

    Raises:
        BundleError: The bundle cannot be used.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.bundle = ModelBundle.load(settings.bundle)
        self._classifier = HybridClassifier(self.bundle, threads=settings.threads)
        self._rehearse()
        self.intake = Intake(self.bundle.preprocess, settings)
        self._backbone = Batcher(self._featurize, settings.max_batch)
        patterns = {family_of(name).pattern for name in settings.backends}
        self._lanes = {pattern: ThreadPoolExecutor(1, thread_name_prefix=f"head-{pattern}") for pattern in patterns}

    def close(self) -> None:
        """Stop the threads once what they run is done."""
        self.intake.close()
        for lane in self._lanes.values():
            lane.shutdown(cancel_futures=True)
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
        lane = self._lanes[self._check(request.options, len(request.filenames))]
        features = await self._backbone(request.pixels)
        batch = await asyncio.get_running_loop().run_in_executor(lane, self._run_head, features, request.options)
        assert batch.execution is not None
        answers = zip(request.filenames, batch.predictions(), strict=True)
        return {
            "predictions": [{"filename": filename, **prediction.to_dict()} for filename, prediction in answers],
            "execution": batch.execution.to_dict(),
        }

    def describe_backends(self) -> dict[str, Any]:
        """The backends on offer with what each can do, the default and the limits; imports none of them."""
        settings = self.settings
        return {
            "default": settings.default_backend,
            "backends": [
                {"name": name, "available": is_installed(name), **dataclasses.asdict(backend_capabilities(name))}
                for name in settings.backends
            ],
            "limits": settings.model_dump(include={name for name in ServiceSettings.model_fields if name.startswith("max_")}),
        }

    def _rehearse(self) -> None:
        size = self.bundle.preprocess.size
        try:
            self._classifier.run(InferenceBatch(pixels=np.zeros((1, 3, size, size), dtype=np.float32)))
        except Exception as error:  # of the bundle's or ONNX Runtime's making
            raise BundleFormatError(f"the bundle {str(self.bundle.path)!r} cannot classify an image: {error}") from error

    def _check(self, options: PredictOptions, num_images: int) -> str:
        """The lane of a request that may be run."""
        settings, name = self.settings, options.backend or self.settings.default_backend
        if name not in settings.backends:
            raise _not_offered(name, settings.backends)
        shots = options.shots or 0
        if shots > settings.max_shots:
            raise FieldError("shots", f"must be at most {settings.max_shots:,}; got {shots:,}")
        if shots * num_images > settings.max_total_shots:
            raise FieldError(
                "shots", f"times the number of images must be at most {settings.max_total_shots:,}; got {shots:,} × {num_images}"
            )
        return family_of(name).pattern

    def _featurize(self, pixels: NDArray[Any]) -> NDArray[Any]:
        features = self._classifier.featurize(InferenceBatch(pixels=pixels)).features
        assert features is not None
        return features

    def _run_head(self, features: NDArray[Any], options: PredictOptions) -> InferenceBatch:
        backend = _make_backend(options.backend or self.settings.default_backend, options)
        try:
            return self._classifier.run(InferenceBatch(features=features), backend=backend, threshold=options.threshold)
        finally:
            backend.close()


def _not_offered(name: str, offered: tuple[str, ...]) -> BackendError:
    choice = f"this service offers {', '.join(offered)}"
    try:
        family_of(name)
    except UnknownBackendError:
        return UnknownBackendError(f"unknown backend {name!r}; {choice}")
    return ForbiddenBackendError(f"backend {name!r} is not allowed here; {choice}")


def _make_backend(name: str, options: PredictOptions) -> Backend:
    if family_of(name).package is None:
        return get_backend(name, shots=options.shots, seed=options.seed)
    with _heavy_import:
        return get_backend(name, shots=options.shots, seed=options.seed)
