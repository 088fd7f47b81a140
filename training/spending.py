"""Limits on paid work, and the options by which a paid backend gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import backend_capabilities, get_backend
from hqtl_common.errors import ConfigError

__all__ = ["Limits", "check_limits", "open_backend"]

_OWN_OPTIONS = frozenset({"shots", "seed", "scope", "max_jobs", "max_qpu_seconds", "yes"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent: jobs, QPU seconds; ``yes`` lets a paid backend run without a limit."""

    max_jobs: int | None = None
    max_qpu_seconds: float | None = None
    yes: bool = False


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
    name: str, *, shots: int | None, seed: int, options: Mapping[str, Any] | None = None, limits: Limits | None = None, scope: str = ""
) -> Backend:
    """A backend with a seed (or without one where its device takes none: its draws do not repeat then) and, if paid, with limits.

    Args:
        name: Of the backend.
        shots: Repetitions, None = exact where it can.
        seed: Seed of the sampling.
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
        paid = {"max_jobs": limits.max_jobs, "max_qpu_seconds": limits.max_qpu_seconds, "yes": limits.yes, "scope": scope}
        return get_backend(name, shots=shots, seed=seed, **extra, **paid)
    try:
        return get_backend(name, shots=shots, seed=seed, **extra)
    except ConfigError:
        backend = get_backend(name, shots=shots, **extra)  # raises again whatever is not about the seed
        if backend.seed is not None:  # it takes seeds, but not this one
            raise
        return backend
