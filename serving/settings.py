"""What the operator of the service decides, read once from the environment.

Every variable is ``HQTL_`` and the field's name in capitals; a wrong value stops the service before it listens.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hqtl_common.backends.registry import backend_names, family_of
from hqtl_common.errors import ConfigError, UnknownBackendError

__all__ = ["DEFAULT_BACKENDS", "MAX_DEADLINE_S", "ServiceSettings"]

PREFIX = "HQTL_"
DEFAULT_BACKENDS = ("statevector", "pennylane:default.qubit", "aer")
MAX_DEADLINE_S = 55.0  # BentoML's own limit is 60 s and its answer is not ours
_TYPO_SIMILARITY = 0.9


def _backends(value: object) -> object:
    names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
    if isinstance(names, tuple):
        for name in names:
            try:
                family = family_of(name)
            except UnknownBackendError as error:
                raise ValueError(str(error)) from error
            if family.capabilities.paid:
                raise ValueError(f"{name} is paid, and the service has no budget: train, evaluate or score with it instead")
        if len(set(names)) != len(names):
            raise ValueError("a backend is named twice")
    return names


def _folder(value: object) -> object:
    if value == "":
        raise ValueError("it is empty")
    return value


class ServiceSettings(BaseModel):
    """The settings of one service; frozen.

    Args:
        bundle: Folder of the exported model.
        backends: Names that requests may choose; the default of a request is ``statevector`` if allowed, else the first.
        max_bytes: Largest encoded image.
        max_pixels: Largest width × height of an image, checked before it is decoded.
        max_images: Images of one request.
        max_body_bytes: Largest body of a request.
        max_shots: Shots per image.
        max_total_shots: Shots × images of one request; bounds memory and time of the samplers.
        max_requests: Predictions in work at once; further ones are answered 429.
        max_batch: Images that the backbone takes in one call.
        threads: Threads of the backbone, None for the cores of the machine.
        deadline_s: Seconds for one request, upload included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bundle: Annotated[Path, BeforeValidator(_folder), Field(description="the folder of a bundle made by hqtl-train export")]
    backends: Annotated[
        tuple[str, ...],
        BeforeValidator(_backends),
        Field(min_length=1, description=f"a comma-separated list of backends from {', '.join(backend_names())}"),
    ] = DEFAULT_BACKENDS
    max_bytes: Annotated[int, Field(ge=1, description="a whole number of bytes per image, at least 1")] = 16 * 2**20
    max_pixels: Annotated[int, Field(ge=1, description="a whole number of pixels per image, at least 1")] = 25_000_000
    max_images: Annotated[int, Field(ge=1, le=10_000, description="a whole number of images per request from 1 to 10,000")] = 64
    max_body_bytes: Annotated[int, Field(ge=1, description="a whole number of bytes per request, at least 1")] = 256 * 2**20
    max_shots: Annotated[int, Field(ge=1, le=10_000_000, description="a whole number of shots per image from 1 to 10,000,000")] = 1_000_000
    max_total_shots: Annotated[int, Field(ge=1, description="a whole number of shots times images per request, at least 1")] = 10_000_000
    max_requests: Annotated[int, Field(ge=1, le=10_000, description="a whole number of requests at once from 1 to 10,000")] = 32
    max_batch: Annotated[int, Field(ge=1, le=1024, description="a whole number of images per batch from 1 to 1024")] = 16
    threads: Annotated[int | None, Field(ge=1, le=1024, description="a whole number of threads from 1 to 1024")] = None
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, description=f"a number of seconds above 0, at most {MAX_DEADLINE_S:g}")] = (
        50.0
    )

    @property
    def default_backend(self) -> str:
        """The backend of a request that names none."""
        return DEFAULT_BACKENDS[0] if DEFAULT_BACKENDS[0] in self.backends else self.backends[0]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ServiceSettings:
        """Read the variables.

        Raises:
            ConfigError: ``HQTL_BUNDLE`` is not set, a value cannot be used, or a name looks like a misspelt variable.
        """
        variables = {PREFIX + name.upper(): name for name in cls.model_fields}
        _refuse_typos(environ, variables)
        if "HQTL_BUNDLE" not in environ:
            raise ConfigError(
                "HQTL_BUNDLE is not set; set it to the folder of a bundle made by hqtl-train export: HQTL_BUNDLE=BUNDLE bentoml serve"
            )
        try:
            return cls.model_validate({name: environ[variable] for variable, name in variables.items() if variable in environ})
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(cls, problem) for problem in error.errors())) from error


def _refuse_typos(environ: Mapping[str, str], variables: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in variables:
            near = difflib.get_close_matches(name, variables, n=1, cutoff=_TYPO_SIMILARITY)
            if near:
                raise ConfigError(f"{name} is not a setting of the service; {near[0]} is: rename it, or unset it")


def _explain(model: type[BaseModel], problem: Any) -> str:
    field = str(problem["loc"][0])
    because = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{PREFIX}{field.upper()} must be {model.model_fields[field].description}; got {problem['input']!r}{because}"
