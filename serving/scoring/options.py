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
from hqtl_common.classifier import applied_calibration
from hqtl_common.errors import ConfigError, HqtlError
from hqtl_common.frame_choice import Every
from serving.scoring.listing import Selection

__all__ = ["DEFAULT_BACKEND", "DEFAULT_BATCH_SIZE", "Options", "Request", "open_engine", "open_refiner", "resolve"]

DEFAULT_BACKEND = "statevector"
DEFAULT_BATCH_SIZE = 32

_ALWAYS = frozenset({"backend", "shots", "seed", "batch_size", "chunk_size", "threshold"})
_UNUSED: tuple[Any, ...] = (None, {}, (), [])


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
        threshold: Probability from which the positive label is given (default: the bundle's for the backend).
        max_shots: Sample images in doubt again, with at most so many shots each (default: ``shots`` for every image).
        backend_options: Options of the backend by its own names.
        tiles: Edge length in pixels of the tiles that images are cut into; 0 = the model's input (default: images are scored whole).
        overlap: Pixels that neighbouring tiles share (default: a quarter of a tile).
        tile_quantile: Which tile decides about an image (default: 1, the one that is most probably positive); see
            :func:`serving.scoring.tiled.deciding_tile`.
        refine_with: A backend that finds answers in doubt again.
        refine_shots: Its repetitions (default: its own).
        refine_options: Options of that backend by its own names.
        every: Which frames of videos are looked at, every n-th (``10``) or one per span of time (``2s``) (default: one per second).
        exclude: Patterns of relative paths that are left out.
        shard: ``i/n``: only the i-th of n parts of the images.
    """

    backend: str | None = None
    shots: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    chunk_size: int | None = None
    threshold: float | None = None
    max_shots: int | None = None
    backend_options: dict[str, Any] | None = None
    tiles: int | None = None
    overlap: int | None = None
    tile_quantile: float | None = None
    refine_with: str | None = None
    refine_shots: int | None = None
    refine_options: dict[str, Any] | None = None
    every: str | None = None
    exclude: tuple[str, ...] | None = None
    shard: str | None = None


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
    tiles: Annotated[int | None, Field(ge=1)] = None
    overlap: Annotated[int | None, Field(ge=0)] = None
    tile_quantile: Annotated[float | None, Field(gt=0, le=1)] = None
    refine_with: str | None = None
    refine_shots: Annotated[int | None, Field(ge=1)] = None
    refine_options: dict[str, Any] = {}
    refine_threshold: float | None = None
    every: str | None = None
    exclude: tuple[str, ...] = ()
    shard: str | None = None

    @property
    def stride(self) -> int:
        """Distance between neighbouring tiles in pixels; 0 where images are scored whole."""
        return (self.tiles or 0) - (self.overlap or 0)

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Options that are not used are not recorded."""
        return {name: value for name, value in serialize(self).items() if value not in _UNUSED or name in _ALWAYS}


def resolve(request: Request, bundle: ModelBundle, recorded: Options | None) -> Options:
    """Fill in what was not given: from the record of a run that is resumed, else from the defaults.

    Raises:
        ConfigError: A size below 1, or an option that differs from the recorded one.
        BackendError: There is no such backend, or it cannot do what the options ask.
    """
    if request.tiles == 0:
        request = dataclasses.replace(request, tiles=bundle.preprocess.size)
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
    whole = request.tiles is None
    chunk_size = (batch_size if whole else 1) if request.chunk_size is None else request.chunk_size
    for name, size in {"batch size": batch_size, "chunk size": chunk_size}.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1; got {size}")
    _check_tiles(request, bundle)
    Every.parse(request.every)
    if request.every is not None and bundle.preprocess.depth is not None:
        raise ConfigError("frames are chosen of videos; the bundle reads volumes: leave out --every")
    Selection(request.exclude or (), request.shard)
    return Options(
        backend=request.backend or DEFAULT_BACKEND,
        shots=request.shots,
        seed=_default_seed(request) if request.seed is None else request.seed,
        batch_size=batch_size,
        chunk_size=chunk_size,
        threshold=_default_threshold(request, bundle) if request.threshold is None else request.threshold,
        max_shots=request.max_shots,
        backend_options=request.backend_options or {},
        tiles=request.tiles,
        overlap=None if request.tiles is None else request.tiles // 4 if request.overlap is None else request.overlap,
        tile_quantile=None if whole else 1.0 if request.tile_quantile is None else request.tile_quantile,
        refine_with=request.refine_with,
        refine_shots=request.refine_shots,
        refine_options=request.refine_options or {},
        refine_threshold=_refine_threshold(request, bundle),
        every=request.every,
        exclude=request.exclude or (),
        shard=request.shard,
    )


def open_refiner(options: Options, limits: Limits | None, scope: str) -> Backend | None:
    """The backend that finds answers in doubt again, None without one; it has the seed of the first.

    Raises:
        ConfigError: See :func:`open_engine`.
        BackendError: See :func:`open_engine`.
    """
    if options.refine_with is None:
        return None
    return open_backend(
        options.refine_with,
        shots=options.refine_shots,
        seed=options.seed or 0,
        options=options.refine_options,
        limits=limits,
        scope=f"{scope}-refined",
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


def _check_tiles(request: Request, bundle: ModelBundle) -> None:
    if request.tiles is None:
        if request.overlap is not None or request.tile_quantile is not None:
            raise ConfigError("an overlap or a quantile of tiles needs --tiles")
        return
    if bundle.preprocess.depth is not None:
        raise ConfigError("tiles are cut from images; the bundle reads volumes: leave out --tiles")
    if request.overlap is not None and not 0 <= request.overlap < request.tiles:
        raise ConfigError(f"the overlap must be 0 to less than the size of a tile, {request.tiles}; got {request.overlap}")


def _refine_threshold(request: Request, bundle: ModelBundle) -> float | None:
    if request.refine_with is None:
        if request.refine_shots is not None or request.refine_options:
            raise ConfigError("--refine-shots and --refine-option need --refine-with")
        return None
    if backend_capabilities(request.backend or DEFAULT_BACKEND).paid:
        raise ConfigError(f"--refine-with comes after a free backend; {request.backend!r} costs money or queues for every answer already")
    again = dataclasses.replace(request, backend=request.refine_with, shots=request.refine_shots, backend_options=request.refine_options)
    return _default_threshold(again, bundle) if request.threshold is None else request.threshold


def _default_seed(request: Request) -> int | None:
    """0, or None for a backend that takes no seed."""
    name = request.backend or DEFAULT_BACKEND
    if backend_capabilities(name).paid:
        return 0
    backend = open_backend(name, shots=request.shots, seed=0, options=request.backend_options)
    backend.close()
    return None if backend.shots is not None and backend.seed is None else 0


def _default_threshold(request: Request, bundle: ModelBundle) -> float | None:
    """The bundle's for the backend and its shots, also where those are the backend's own default."""
    name, shots = request.backend or DEFAULT_BACKEND, request.shots
    can = backend_capabilities(name)
    if shots is None and not can.exact and not can.paid:
        backend = open_backend(name, shots=None, seed=None, options=request.backend_options)
        shots = backend.shots
        backend.close()
    return applied_calibration(bundle.manifest, name, shots).threshold


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
