"""Jobs and sessions of the emulated platform, and the book that keeps them; nothing here knows HTTP or Aer."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["Job", "JobBook", "Session", "timestamp"]

FINAL = frozenset({"Completed", "Failed", "Cancelled", "Cancelled - Ran too long"})


def timestamp(seconds: float | None) -> str | None:
    """Seconds since 1970 as the platform writes them."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Session:
    """A session or a batch.

    Args:
        id: Its identifier.
        instance: CRN of the instance.
        backend: Name of the machine.
        mode: ``dedicated`` (a session) or ``batch``.
        max_ttl: Its longest life, seconds.
        created: Seconds since 1970; so are the other times.
    """

    id: str
    instance: str
    backend: str
    mode: str
    max_ttl: int
    created: float = field(default_factory=time.time)
    accepting_jobs: bool = True
    activated: float | None = None
    closed: float | None = None


@dataclass
class Job:
    """A job.

    Args:
        id: Its identifier.
        instance: CRN of the instance that it belongs to.
        backend: Name of the machine.
        tags: As submitted.
        session_id: Of the session or batch, or None.
        folder: Where its parameters and its result are kept.
        max_seconds: QPU seconds after which it is cancelled.
        ready_at: ``time.monotonic()`` before which it waits in the queue.
        hidden_until: ``time.monotonic()`` before which no listing shows it.
        work: What to run, None as soon as it cannot run any more.
        seconds: QPU seconds that it is estimated to take.
        status: As the platform spells it.
        created: Seconds since 1970; so are ``running`` and ``finished``.
        charged: QPU seconds charged.
        executed: True if it used the machine.
        deleted: True if only the accounts know of it.
    """

    id: str
    instance: str
    backend: str
    tags: list[str]
    session_id: str | None
    folder: Path
    max_seconds: float
    ready_at: float
    hidden_until: float
    work: Any = None
    seconds: float = 0.0
    program: str = "sampler"
    private: bool = False
    verdict: str | None = None
    detail: str = ""
    status: str = "Queued"
    reason: str | None = None
    reason_code: int | None = None
    created: float = field(default_factory=time.time)
    running: float | None = None
    finished: float | None = None
    charged: float = 0.0
    executed: bool = False
    deleted: bool = False

    @property
    def final(self) -> bool:
        """True if nothing more will happen to it."""
        return self.status in FINAL

    @property
    def parameters_file(self) -> Path:
        """JSON as submitted."""
        return self.folder / f"{self.id}.params.json"

    @property
    def result_file(self) -> Path:
        """JSON as the platform sends it; exists once the job is completed."""
        return self.folder / f"{self.id}.result.json"


class JobBook:
    """All jobs and sessions. Every method takes the book's own lock."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._sessions: dict[str, Session] = {}
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False

    def add(self, job: Job) -> None:
        """A new job in the queue."""
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()

    def get(self, job_id: str, instance: str) -> Job | None:
        """A job of an instance."""
        job = self._jobs.get(job_id)
        return job if job and job.instance == instance and not job.deleted else None

    def remove(self, job: Job) -> None:
        """Delete a job and its files; what it used stays charged."""
        job.deleted = True
        for path in (job.parameters_file, job.result_file):
            path.unlink(missing_ok=True)

    def select(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """The jobs that fulfil a condition, deleted ones too, oldest first."""
        with self._changed:
            return [job for job in self._jobs.values() if wanted(job)]

    def pending(self, backend: str) -> int:
        """Jobs that wait for a machine or run on it."""
        return len(self.select(lambda job: job.backend == backend and not job.final))

    def take(self, backend: str, allowed: Callable[[Job], bool]) -> Job | None:
        """Wait for the next job of a machine and set it running; None when the book is closed."""
        with self._changed:
            while not self._stopped:
                waiting = [job for job in self._jobs.values() if job.backend == backend and job.status == "Queued" and allowed(job)]
                job = min(waiting, key=lambda job: job.ready_at, default=None)
                remaining = None if job is None else job.ready_at - time.monotonic()
                if job is not None and remaining is not None and remaining <= 0:
                    job.status, job.running = "Running", time.time()
                    self._activate(job)
                    return job
                self._changed.wait(remaining)
        return None

    def finish(self, job: Job, status: str, *, reason: str | None = None, code: int | None = None, charged: float = 0.0) -> None:
        """Set a job's final state, unless it has one; what it used of the machine is charged all the same."""
        with self._changed:
            job.charged, job.executed, job.work = charged, charged > 0, None
            if not job.final:
                job.status, job.reason, job.reason_code, job.finished = status, reason, code, time.time()
            self._changed.notify_all()

    def cancel(self, job: Job) -> bool:
        """Cancel a job; False if it is final already."""
        with self._changed:
            if job.final:
                return False
            queued = job.status == "Queued"
            job.status, job.finished = "Cancelled", time.time()
            if queued:
                job.work = None
            self._changed.notify_all()
            return True

    def wait(self, job: Job, seconds: float) -> None:
        """Let a running job take its time, unless it is cancelled or the book closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or job.final, seconds)

    def open_session(self, instance: str, backend: str, mode: str, max_ttl: int) -> Session:
        """A new session or batch."""
        session = Session(f"session-{secrets.token_hex(8)}", instance, backend, mode, max_ttl)
        with self._changed:
            self._sessions[session.id] = session
        return session

    def session(self, session_id: str, instance: str) -> Session | None:
        """A session of an instance."""
        session = self._sessions.get(session_id)
        return session if session and session.instance == instance else None

    def close_session(self, session: Session, *, cancel: bool) -> None:
        """No more jobs; with ``cancel`` those that have not ended are cancelled."""
        with self._changed:
            session.accepting_jobs = False
            if cancel:
                for job in self.jobs_of(session):
                    self.cancel(job)
            self.state_of(session)

    def state_of(self, session: Session) -> str:
        """``open`` before its first job, then ``active``, at the end ``closed``."""
        with self._changed:
            if session.closed is None and not session.accepting_jobs and all(job.final for job in self.jobs_of(session)):
                session.closed = time.time()
        if session.closed is not None:
            return "closed"
        return "open" if session.activated is None else "active"

    def jobs_of(self, session: Session) -> list[Job]:
        """The jobs of a session or batch."""
        return self.select(lambda job: job.session_id == session.id)

    def sessions_of(self, instance: str) -> list[Session]:
        """All sessions and batches of an instance."""
        with self._changed:
            return [session for session in self._sessions.values() if session.instance == instance]

    def stop(self) -> None:
        """Wake everyone up for the end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _activate(self, job: Job) -> None:
        session = self._sessions.get(job.session_id or "")
        if session is not None and session.activated is None:
            session.activated = job.running
