"""What the operator of the service decides, read once from the environment.

Every variable is ``HQTL_`` and the field's name in capitals; a wrong value stops the service before it listens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from hqtl_common.backends.registry import backend_names, family_of
from hqtl_common.errors import ConfigError, UnknownBackendError
from hqtl_common.providers import CPU, PROVIDERS, check_provider_names

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
                family_of(name)
            except UnknownBackendError as error:
                raise ValueError(str(error)) from error
        if len(set(names)) != len(names):
            raise ValueError("a backend is named twice")
    return names


def _providers(value: object) -> object:
    names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
    if isinstance(names, tuple):
        try:
            check_provider_names(names)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    return names


def _hosts(value: object) -> object:
    return tuple(host.strip().lower() for host in value.split(",")) if isinstance(value, str) else value


def _path(value: object) -> object:
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
        providers: Where the backbone computes, the preferred one first.
        preload: Backends whose packages are loaded at the start; the others are when a request first needs them.
        decoders: Processes that decode images, None for the cores of the machine.
        decode_timeout_s: Seconds for decoding one image.
        deadline_s: Seconds for one request, upload included.
        keys: File of the API keys, made by hqtl-keys; None for :func:`serving.keys.default_path`.
        insecure_no_auth: Serve without any key, and this machine only.
        model_name: Of the bundle, for clients of the Open Inference Protocol.
        ui: Show the page /ui.
        jobs: File of the jobs and of what they have spent; None: there are no jobs, and no paid backend.
        jobs_keep_days: Finished jobs are kept so long.
        jobs_poll_s: First pause between two looks at a paid job; it grows to a minute.
        jobs_settle_s: How long a paid job may be accepted and not yet listed.
        max_waiting_jobs: Unfinished jobs at once.
        max_running_jobs: Paid jobs that are followed at once.
        max_qpu_seconds_per_day: What all keys together may spend on paid backends, per day (UTC); None = without limit.
        max_paid_jobs_per_day: Jobs of providers that all keys together may submit, per day (UTC); None = without limit.
        webhook_hosts: Hosts (``name`` or ``name:port``) that may be told of a finished job; empty: none.
        webhook_secret: Signs what they are told.
        webhook_private: Allow private addresses and plain HTTP among them.
        webhook_ca: File of certificates (PEM) that are trusted in place of the system's.
        header_timeout_s: Seconds in which the head of a request must arrive.
        max_inspect_bytes: Largest encoded image to be inspected.
        max_inspect_pixels: Largest width × height of it.
        max_tiles: Tiles of one inspection.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bundle: Annotated[Path, BeforeValidator(_path), Field(description="the folder of a bundle made by hqtl-train export")]
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
    providers: Annotated[
        tuple[str, ...], BeforeValidator(_providers), Field(description=f"a comma-separated list from {', '.join(PROVIDERS)}")
    ] = CPU
    preload: Annotated[
        tuple[str, ...], BeforeValidator(_backends), Field(description="a comma-separated list of backends that HQTL_BACKENDS offers")
    ] = ()
    decoders: Annotated[int | None, Field(ge=1, le=256, description="a whole number of processes from 1 to 256")] = None
    decode_timeout_s: Annotated[
        float, Field(gt=0, le=MAX_DEADLINE_S, description=f"a number of seconds above 0, at most {MAX_DEADLINE_S:g}")
    ] = 10.0
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, description=f"a number of seconds above 0, at most {MAX_DEADLINE_S:g}")] = (
        50.0
    )
    keys: Annotated[Path | None, BeforeValidator(_path), Field(description="a file of keys made by hqtl-keys add")] = None
    insecure_no_auth: Annotated[bool, Field(description="1 (no keys; this machine only) or 0")] = False
    ui: Annotated[bool, Field(description="1 (the page /ui is there) or 0")] = False
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$", description="up to 100 letters, digits, dots, _ and -")] = "hqtl"
    jobs: Annotated[Path | None, BeforeValidator(_path), Field(description="a file for the jobs, made if missing")] = None
    jobs_keep_days: Annotated[float, Field(ge=1, le=3650, description="a number of days from 1 to 3650")] = 30.0
    jobs_poll_s: Annotated[float, Field(gt=0, le=60, description="a number of seconds above 0, at most 60")] = 5.0
    jobs_settle_s: Annotated[float, Field(gt=0, le=600, description="a number of seconds above 0, at most 600")] = 60.0
    max_waiting_jobs: Annotated[int, Field(ge=1, description="a whole number of jobs, at least 1")] = 1000
    max_running_jobs: Annotated[int, Field(ge=1, le=256, description="a whole number of jobs from 1 to 256")] = 16
    max_qpu_seconds_per_day: Annotated[float | None, Field(ge=0, description="a number of seconds, at least 0")] = None
    max_paid_jobs_per_day: Annotated[int | None, Field(ge=0, description="a whole number of jobs, at least 0")] = None
    webhook_hosts: Annotated[tuple[str, ...], BeforeValidator(_hosts), Field(description="a comma-separated list of hosts")] = ()
    webhook_secret: Annotated[SecretStr | None, Field(description="a text of at least 16 characters")] = None
    webhook_private: Annotated[bool, Field(description="1 (private addresses and plain HTTP) or 0")] = False
    webhook_ca: Annotated[Path | None, BeforeValidator(_path), Field(description="a file of certificates in PEM form")] = None
    header_timeout_s: Annotated[float, Field(gt=0, le=600, description="a number of seconds above 0, at most 600")] = 10.0
    max_inspect_bytes: Annotated[int, Field(ge=1, description="a whole number of bytes per inspected image, at least 1")] = 64 * 2**20
    max_inspect_pixels: Annotated[int, Field(ge=1, le=2**28, description="a whole number of pixels from 1 to 2^28")] = 100_000_000
    max_tiles: Annotated[int, Field(ge=1, le=100_000, description="a whole number of tiles from 1 to 100,000")] = 4096

    @model_validator(mode="after")
    def _one_door(self) -> Self:
        if self.insecure_no_auth and self.keys is not None:
            raise ValueError("HQTL_KEYS and HQTL_INSECURE_NO_AUTH exclude each other: unset one of them")
        return self

    @model_validator(mode="after")
    def _only_what_is_offered_is_loaded(self) -> Self:
        if missing := [name for name in self.preload if name not in self.backends]:
            raise ValueError(f"HQTL_PRELOAD names {missing[0]}, which HQTL_BACKENDS does not offer")
        return self

    @model_validator(mode="after")
    def _what_is_paid_is_kept(self) -> Self:
        paid = next((name for name in self.backends if family_of(name).capabilities.paid), None)
        if paid is not None and (self.jobs is None or self.insecure_no_auth):
            raise ValueError(
                f"{paid} of HQTL_BACKENDS is paid: it needs HQTL_JOBS, a file that keeps what was spent, and keys with limits "
                "(hqtl-keys add NAME --qpu-seconds-per-day S --jobs-per-day N)"
            )
        return self

    @model_validator(mode="after")
    def _hooks_are_signed(self) -> Self:
        secret = self.webhook_secret.get_secret_value() if self.webhook_secret else ""
        if self.webhook_hosts and (self.jobs is None or len(secret) < 16):
            raise ValueError("HQTL_WEBHOOK_HOSTS needs HQTL_JOBS, and HQTL_WEBHOOK_SECRET with at least 16 characters")
        if not all(re.fullmatch(r"[a-z0-9.-]+(:[0-9]{1,5})?", host) for host in self.webhook_hosts):
            raise ValueError("HQTL_WEBHOOK_HOSTS must be host names, each with a port or without, for example hooks.example.org:8443")
        return self

    @property
    def limits(self) -> dict[str, Any]:
        """What requests must stay within."""
        names = {name for name in type(self).model_fields if name.startswith("max_")} | {"deadline_s"}
        return self.model_dump(include=names, exclude_none=True)

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
    if not problem["loc"]:  # about several variables together
        return str(problem["ctx"]["error"])
    field = str(problem["loc"][0])
    because = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{PREFIX}{field.upper()} must be {model.model_fields[field].description}; got {problem['input']!r}{because}"
