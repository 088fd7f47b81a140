"""What the routes of jobs give, as schemas and as values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from hqtl_common.ledger import Entry
from serving.jobs.records import FINISHED, HookState, Job, State
from serving.openapi import PredictAnswer

__all__ = ["EstimateAnswer", "FallbackAnswer", "JobAnswer", "JobsAnswer", "job_answer"]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Needs(_Exact):
    jobs: Annotated[int, Field(ge=0, description="Of the provider")]
    executions: Annotated[int, Field(ge=0, description="Images × shots, mitigation included")]
    qpu_seconds: Annotated[float, Field(ge=0, description="Billed seconds, about")]


class EstimateAnswer(_Exact):
    """What a request would need, and what the key and the service have left of the day; null is without limit."""

    backend: str
    images: int
    shots: int | None
    needs: _Needs
    qpu_seconds_left: float | None
    jobs_left: int | None
    service_qpu_seconds_left: Annotated[float | None, Field(description="Of all keys together")]
    service_jobs_left: Annotated[int | None, Field(description="Of all keys together")]
    allowed: Annotated[bool, Field(description="The key may submit it now")]


class _Problem(_Exact):
    code: str
    message: str


class _Hook(_Exact):
    url: str
    state: HookState
    tries: int


class JobAnswer(_Exact):
    """A job."""

    id: str
    state: State
    backend_requested: str
    backend_used: Annotated[str | None, Field(description="Null until it is done")]
    reason: Annotated[str | None, Field(description="Why it is a job, or what it waits for")]
    images: int
    options: dict[str, Any]
    estimate: _Needs
    qpu_seconds: Annotated[float, Field(description="The estimate until it is done, then what was billed")]
    job_ids: Annotated[list[str], Field(description="The provider's identifiers")]
    position: Annotated[int | None, Field(description="Unfinished jobs of this service before it on the same backend; null when finished")]
    created: AwareDatetime
    started: AwareDatetime | None
    submitted: Annotated[AwareDatetime | None, Field(description="To the provider")]
    finished: AwareDatetime | None
    cancelling: Annotated[bool, Field(description="The provider is being asked to cancel it")]
    answer: PredictAnswer | None
    fallback: Annotated[PredictAnswer | None, Field(description="What was answered at once")]
    error: Annotated[_Problem | None, Field(description="Why it failed; of an unfinished job, why it is tried again")]
    webhook: _Hook | None


class JobsAnswer(_Exact):
    """Jobs of the key, the latest first, without their answers."""

    jobs: list[JobAnswer]
    next: Annotated[str | None, Field(description="Give it as 'before' for the jobs before these; null at the end")]


class FallbackAnswer(PredictAnswer):
    """The exact answer now; that of the backend that was asked for follows as a job."""

    job_id: str


def job_answer(job: Job, entries: Sequence[Entry], position: int, bundle: str, *, short: bool = False) -> dict[str, Any]:
    """A job as :class:`JobAnswer`, JSON-ready.

    Args:
        job: The job.
        entries: Its executions.
        position: See :meth:`serving.jobs.store.JobStore.position`.
        bundle: Hash of the bundle that is served.
        short: Leave the answers out.
    """
    wanted, finished = job.submission, job.state in FINISHED
    waits = f"it waits for the bundle {wanted.bundle[:12]}; another one is served now"
    return {
        "id": job.id,
        "state": job.state,
        "backend_requested": wanted.backend,
        "backend_used": job.answer and job.answer["execution"]["backend_used"],
        "reason": wanted.reason if finished or bundle == wanted.bundle else waits,
        "images": len(wanted.filenames),
        "options": wanted.options,
        "estimate": {name: getattr(wanted.estimate, name) for name in ("jobs", "executions", "qpu_seconds")},
        "qpu_seconds": job.qpu_seconds,
        "job_ids": [entry.job_id for entry in entries if entry.job_id is not None],
        "position": None if finished else position,
        "created": _time(job.created),
        "started": _time(job.started),
        "submitted": _time(entries[0].created if entries and entries[0].job_id else None),
        "finished": _time(job.finished),
        "cancelling": job.cancel and not finished,
        "answer": None if short else job.answer,
        "fallback": None if short else wanted.fallback,
        "error": job.error,
        "webhook": wanted.webhook and {"url": wanted.webhook, "state": job.hook, "tries": job.hook_tries},
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
