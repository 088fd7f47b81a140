"""A job as it is kept: what was asked, what was promised, where it stands and what came of it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.records import InferenceBatch

__all__ = ["FINISHED", "STATES", "Estimate", "Job", "Spent", "Submission", "pack_inputs", "unpack_inputs"]

State = Literal["queued", "running", "done", "failed", "cancelled"]
HookState = Literal["pending", "delivered", "failed"]

STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request needs at the provider; nothing where it is free.

    Args:
        jobs: Jobs of the provider.
        executions: Parameter sets × shots, mitigation included.
        qpu_seconds: Billed seconds, about.
    """

    jobs: int = 0
    executions: int = 0
    qpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What was promised or spent since a day began.

    Args:
        jobs: Of providers.
        qpu_seconds: Estimated for what is not done, billed for the rest.
    """

    jobs: int
    qpu_seconds: float


@dataclass(frozen=True, slots=True)
class Submission:
    """A job before it is kept.

    Args:
        owner: Identifier of the key that it belongs to.
        backend: Where it will run.
        paid: Whether that costs.
        bundle: Hash of the manifest; only a service with the same bundle runs it.
        content: Hash of the request.
        inputs: See :func:`pack_inputs`.
        filenames: As the client gave them.
        options: Those of :class:`serving.forms.PredictOptions`, as far as they decide the answer.
        estimate: What it will need.
        idempotency_key: The client's own name for the request, None without.
        webhook: Address to tell when it is finished, None for none.
        reason: Why it is a job, None where that was asked for.
        fallback: The answer that was given at once, None without.
        running: It runs in this process already.
    """

    owner: str
    backend: str
    paid: bool
    bundle: str
    content: str
    inputs: bytes
    filenames: tuple[str, ...]
    options: dict[str, Any]
    estimate: Estimate = field(default_factory=Estimate)
    idempotency_key: str | None = None
    webhook: str | None = None
    reason: str | None = None
    fallback: dict[str, Any] | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is kept.

    Args:
        number: Ascending in the order of arrival.
        id: Public identifier, and the scope of its executions in the ledger.
        state: Where it stands.
        created: Unix time; the next two as well, None until then.
        started: When it was first taken up.
        finished: When it ended.
        tries: How often it was taken up.
        cancel: Whether its owner wants it cancelled.
        submission: What was asked.
        qpu_seconds: The estimate until it is done, then what was billed.
        answer: ``predictions`` and ``execution``, None until done.
        error: ``code`` and ``message``, of the last try where it is not finished.
        hook: Whether the web-hook was told, None without one.
        hook_tries: How often it was tried.
    """

    number: int
    id: str
    state: State
    created: float
    started: float | None
    finished: float | None
    tries: int
    cancel: bool
    submission: Submission
    qpu_seconds: float
    answer: dict[str, Any] | None
    error: dict[str, str] | None
    hook: HookState | None
    hook_tries: int


def pack_inputs(batch: InferenceBatch) -> bytes:
    """Angles (B, E) and, where the bundle knows it, familiarity (B,) as bytes: all that a job needs of its images."""
    arrays = {"angles": batch.angles, "familiarity": batch.familiarity}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def unpack_inputs(data: bytes) -> InferenceBatch:
    """The reverse of :func:`pack_inputs`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        arrays: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}
    return InferenceBatch(angles=arrays["angles"], familiarity=arrays.get("familiarity"))
