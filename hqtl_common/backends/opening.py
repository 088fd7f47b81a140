"""Open a backend as a command does: options from text, limits on what may be spent, a seed where the backend takes one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import backend_capabilities, get_backend
from hqtl_common.errors import ConfigError

__all__ = ["Limits", "check_limits", "open_backend", "parse_options"]

_OWN_OPTIONS = frozenset({"shots", "seed", "scope", "max_jobs", "max_qpu_seconds", "yes"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent: jobs, QPU seconds; ``yes`` lets a paid backend run without a limit.

    ``scope`` names what the limits hold for where that is wider than the work at hand, for example all runs of a comparison.
    """

    max_jobs: int | None = None
    max_qpu_seconds: float | None = None
    yes: bool = False
    scope: str | None = None


def check_limits(name: str, limits: Limits | None) -> None:
    """Refuse a paid backend without a limit, before anything is read or written.

    Raises:
        ConfigError: No limit and no ``yes``.
        UnknownBackendError: No such backend.
    """
    limits = limits or Limits()
    if backend_capabilities(name).paid and not limits.yes and limits.max_jobs is None and limits.max_qpu_seconds is None:
        raise ConfigError(f"{name!r} costs money or queues: set --max-jobs or --max-qpu-seconds, or say --yes to run without a limit")


def open_backend(
    name: str,
    *,
    shots: int | None,
    seed: int | None,
    seed_needed: bool = False,
    options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    scope: str = "",
) -> Backend:
    """A backend with a seed where it takes one and, if it is paid, with limits.

    Args:
        name: Of the backend.
        shots: Repetitions, None = exact where it can.
        seed: Seed of the sampling; None draws one where the backend takes seeds.
        seed_needed: Refuse a device that takes no seed; otherwise it goes without, and its draws do not repeat.
        options: Options of the backend by its own names.
        limits: What may be spent.
        scope: What the executions belong to; the same scope replays what it has paid.

    Raises:
        BackendError: See :func:`hqtl_common.backends.registry.get_backend`.
        ConfigError: An option that the backend does not know or that is out of range; a paid backend without limits.
    """
    extra = dict(options or {})
    if taken := sorted(_OWN_OPTIONS & extra.keys()):
        raise ConfigError(f"{', '.join(taken)} cannot be given as a backend option; use the option of that name")
    if backend_capabilities(name).paid:
        limits = limits or Limits()
        extra |= {"max_jobs": limits.max_jobs, "max_qpu_seconds": limits.max_qpu_seconds, "yes": limits.yes, "scope": limits.scope or scope}
        seed_needed = True
    if seed is None:
        return get_backend(name, shots=shots, **extra)
    try:
        return get_backend(name, shots=shots, seed=seed, **extra)
    except ConfigError:
        if seed_needed:
            raise
        backend = get_backend(name, shots=shots, **extra)  # raises again whatever is not about the seed
        if backend.seed is not None:  # it takes seeds, but not this one
            raise
        return backend


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a dict; a value that is JSON (3, true, [1,2]) is read as such, anything else is text.

    Raises:
        ConfigError: A text of another form.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"an option of a backend is KEY=VALUE; got {pair!r}")
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = value
    return parsed
