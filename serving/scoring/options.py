"""What decides the answers of a run: given by the caller, filled in, recorded, and compared when the run is resumed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from hqtl_common.adaptive import ShotPlan
from hqtl_common.backends import backend_capabilities
from hqtl_common.backends.base import Backend
from hqtl_common.backends.opening import Limits, open_backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.errors import ConfigError, HqtlError

__all__ = ["DEFAULT_BACKEND", "DEFAULT_BATCH_SIZE", "Options", "Request", "open_engine", "resolve"]

DEFAULT_BACKEND = "statevector"
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Request:
    """Options as given; None = not given.

    Args:
        backend: Where the head runs (default: ``statevector``).
        shots: Repetitions (default: exact where the backend can).
        seed: Seed of the sampling (default: 0, or none for a backend that takes no seed).
        batch_size: Images that go through the backbone together (default: 32).
        chunk_size: Images per evaluation of the head, which is one job on backends that have jobs, and the unit in
            which results are written (default: the batch size).
        threshold: Probability from which the positive label is given (default: the bundle's).
        max_shots: Sample images in doubt again, with at most so many shots each (default: ``shots`` for every image).
        backend_options: Options of the backend by its own names.
    """

    backend: str | None = None
    shots: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    chunk_size: int | None = None
    threshold: float | None = None
    max_shots: int | None = None
    backend_options: dict[str, Any] | None = None


class Options(BaseModel):
    """Options in effect, as recorded; see :class:`Request`. ``threshold`` is None with more than two classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    shots: int | None
    seed: int | None
    batch_size: Annotated[int, Field(ge=1)]
    chunk_size: Annotated[int, Field(ge=1)]
    threshold: float | None
    max_shots: Annotated[int | None, Field(ge=1)] = None
    backend_options: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Options that are not used are not recorded."""
        return {name: value for name, value in serialize(self).items() if value or name not in ("max_shots", "backend_options")}


def resolve(request: Request, bundle: ModelBundle, recorded: Options | None) -> Options:
    """Fill in what was not given: from the record of a run that is resumed, else from the defaults.

    Raises:
        ConfigError: A size below 1, or an option that differs from the recorded one.
        BackendError: There is no such backend, or it cannot do what the options ask.
    """
    if recorded is None:
        return _with_defaults(request, bundle)
    given = {name: value for name, value in dataclasses.asdict(request).items() if value is not None}
    different = [
        f"{name.replace('_', '-')} (recorded: {_shown(getattr(recorded, name))}, now: {_shown(value)})"
        for name, value in given.items()
        if value != getattr(recorded, name)
    ]
    if different:
        raise ConfigError(f"the run was started with other options: {', '.join(different)}; leave them out, or give another output folder")
    return recorded


def _with_defaults(request: Request, bundle: ModelBundle) -> Options:
    batch_size = DEFAULT_BATCH_SIZE if request.batch_size is None else request.batch_size
    chunk_size = batch_size if request.chunk_size is None else request.chunk_size
    for name, size in {"batch size": batch_size, "chunk size": chunk_size}.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1; got {size}")
    default_threshold = bundle.manifest.threshold if len(bundle.labels) == 2 else None
    return Options(
        backend=request.backend or DEFAULT_BACKEND,
        shots=request.shots,
        seed=_default_seed(request) if request.seed is None else request.seed,
        batch_size=batch_size,
        chunk_size=chunk_size,
        threshold=default_threshold if request.threshold is None else request.threshold,
        max_shots=request.max_shots,
        backend_options=request.backend_options or {},
    )


def open_engine(options: Options, limits: Limits | None, scope: str) -> Backend:
    """The backend of a run.

    Args:
        options: Of the run.
        limits: What may be spent on a paid backend.
        scope: What its executions belong to.

    Raises:
        ConfigError: An option that the backend does not know, or out of range; a paid backend without limits.
        BackendError: There is no such backend, or it cannot do what the options ask.
    """
    backend = open_backend(
        options.backend,
        shots=options.shots,
        seed=options.seed,
        seed_needed=True,
        options=options.backend_options,
        limits=limits,
        scope=scope,
    )
    if options.max_shots is not None:
        try:
            ShotPlan.of(backend, options.max_shots)
        except HqtlError:
            backend.close()
            raise
    return backend


def _default_seed(request: Request) -> int | None:
    """0, or None for a backend that takes no seed."""
    name = request.backend or DEFAULT_BACKEND
    if backend_capabilities(name).paid:
        return 0
    backend = open_backend(name, shots=request.shots, seed=0, options=request.backend_options)
    backend.close()
    return None if backend.shots is not None and backend.seed is None else 0


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
