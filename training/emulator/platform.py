"""The emulated platform: instances, machines, jobs, sessions and accounts. Pure Python; HTTP is in ``server``.

Limits and prices are those that IBM published in November 2026: at most 10 million executions a job, three hours of QPU time a
job, five submits a minute, on the Open plan 600 QPU seconds in 28 days and no sessions; a job takes 2 s + (250 µs + circuit) per
execution (https://quantum.cloud.ibm.com/docs/guides/job-limits, .../guides/max-execution-time, .../guides/plans-overview).
"""

from __future__ import annotations

import logging
import random
import secrets
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.emulator.devices import Device
from training.emulator.faults import Fault
from training.emulator.jobs import Job, JobBook, Session
from training.emulator.options import INSTANCES, EmulatorOptions, Instance
from training.emulator.runner import WorkError, decode, encode, simulate
from training.emulator.tokens import TokenIssuer

__all__ = ["Platform", "PlatformError", "Submission"]

LOGGER = logging.getLogger("training.emulator")

_RAN_TOO_LONG = 1305


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a job as it arrives; ``parameters`` is JSON text."""

    program: str
    backend: str
    parameters: str
    tags: tuple[str, ...] = ()
    session_id: str | None = None
    max_seconds: float | None = None
    private: bool = False


class PlatformError(Exception):
    """A refusal as the platform words it.

    Args:
        status: Of HTTP.
        code: IBM's number, 0 where it is not published.
        message: What is wrong.
        solution: What to do.
        retry_after: Seconds to wait, None where waiting does not help.
    """

    def __init__(self, status: int, code: int, message: str, solution: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.solution, self.retry_after = status, code, solution, retry_after


class Platform:
    """The state behind the endpoints.

    Args:
        options: How it behaves.

    Raises:
        UnknownBackendError: A name without a snapshot.
    """

    def __init__(self, options: EmulatorOptions) -> None:
        self.options = options
        self.devices = {device.name: device for device in map(Device, options.backends)}
        self.tokens = TokenIssuer(options.token_lifetime)
        self.book = JobBook()
        self._folder = tempfile.TemporaryDirectory(prefix="hqtl-emulator-")
        self._submits: deque[float] = deque()
        self._lock = threading.Lock()
        self._workers = [threading.Thread(target=self._work, args=(name,), name=f"emulated {name}", daemon=True) for name in self.devices]
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Stop the machines and delete all jobs."""
        self.book.stop()
        for worker in self._workers:
            worker.join()
        self._folder.cleanup()

    def instance(self, crn: str) -> Instance:
        """The instance of a CRN.

        Raises:
            PlatformError: There is none.
        """
        for instance in INSTANCES:
            if instance.crn == crn:
                return instance
        raise PlatformError(403, 1200, "You are not authorized to perform this action.", "Check the instance.")

    def device(self, name: str) -> Device:
        """The machine of a name.

        Raises:
            PlatformError: There is none.
        """
        if name not in self.devices:
            raise PlatformError(404, 1007, f"Backend not found: {name}.", "Verify that the correct backend name was specified.")
        return self.devices[name]

    def submit(self, instance: Instance, request: Submission, faults: Mapping[str, Fault]) -> Job:
        """Accept a job.

        Raises:
            PlatformError: It is refused.
        """
        self._limit_rate()
        device = self.device(request.backend)
        session = self.session(request.session_id, instance) if request.session_id else None
        if session is not None and not session.accepting_jobs:
            raise PlatformError(400, 0, "Session has been closed.", "Open a new session.")
        if request.program != "sampler":
            raise PlatformError(404, 0, f"Program not found: {request.program}. Only the Sampler is emulated.")
        job = self._new_job(instance, request, session)
        job.parameters_file.write_text(request.parameters, "utf-8")
        self._admit(job, device, request, faults)
        self.book.add(job)
        return job

    def session(self, session_id: str, instance: Instance) -> Session:
        """A session or batch of an instance.

        Raises:
            PlatformError: There is none.
        """
        session = self.book.session(session_id, instance.crn)
        if session is None:
            raise PlatformError(404, 0, "Session not found.", "Check the session ID.")
        return session

    def open_session(self, instance: Instance, backend: str, mode: str, max_ttl: int) -> Session:
        """A new session or batch.

        Raises:
            PlatformError: The plan has none, or the machine does not exist.
        """
        if mode == "dedicated" and not instance.sessions:
            raise PlatformError(
                400,
                1352,
                "You are not authorized to run a session when using the open plan.",
                "Create an instance of a different plan type or use a different execution mode.",
            )
        return self.book.open_session(instance.crn, self.device(backend).name, mode, max_ttl)

    def limit_seconds(self, instance: Instance) -> float | None:
        """QPU seconds that an instance may use."""
        return None if instance.limit_seconds is None else self.options.open_seconds

    def consumed_seconds(self, instance: Instance) -> float:
        """QPU seconds that an instance has used; a session is charged from its first job to its end."""
        jobs = self.book.select(lambda job: job.instance == instance.crn)
        dedicated = {session.id: session for session in self.book.sessions_of(instance.crn) if session.mode == "dedicated"}
        outside = sum(job.charged for job in jobs if job.session_id not in dedicated)
        return outside + sum(self.session_seconds(session) for session in dedicated.values())

    def session_seconds(self, session: Session) -> float:
        """QPU seconds of a batch: those of its jobs; of a session: the time that the machine was held as well."""
        used = sum(job.charged for job in self.book.jobs_of(session))
        if session.mode != "dedicated" or session.activated is None or not self.options.time_factor:
            return used
        self.book.state_of(session)
        return max(used, ((session.closed or time.time()) - session.activated) / self.options.time_factor)

    def _limit_rate(self) -> None:
        limit, window = self.options.submits_per_minute, 60.0 * self.options.time_factor
        if limit is None or not window:
            return
        with self._lock:
            now = time.monotonic()
            while self._submits and self._submits[0] <= now - window:
                self._submits.popleft()
            if len(self._submits) >= limit:
                wait = self._submits[0] + window - now
                raise PlatformError(429, 1202, f"Too many requests: the limit is {limit} per minute.", "Wait.", retry_after=wait)
            self._submits.append(now)

    def _new_job(self, instance: Instance, request: Submission, session: Session | None) -> Job:
        now = time.monotonic()
        return Job(
            id=f"emulated{secrets.token_hex(6)}",
            instance=instance.crn,
            backend=request.backend,
            tags=list(request.tags),
            session_id=request.session_id,
            folder=Path(self._folder.name),
            max_seconds=min(request.max_seconds or self.options.max_job_seconds, self.options.max_job_seconds),
            ready_at=now,
            hidden_until=now + self.options.listing_lag,
            program=request.program,
            private=request.private,
        )

    def _admit(self, job: Job, device: Device, request: Submission, faults: Mapping[str, Fault]) -> None:
        """Validate and queue; a job whose validation fails is accepted and has failed."""
        if lag := faults.get("listing_lag"):
            job.hidden_until += lag.seconds
        for kind in ("ran_too_long", "fail"):
            if kind in faults:
                job.verdict, job.detail = kind, faults[kind].detail
        try:
            work = decode(device, request.parameters)
            if work.executions > self.options.max_executions:
                raise WorkError(f"{work.executions} executions are more than the {self.options.max_executions} of one job")
        except WorkError as error:
            self.book.finish(job, "Failed", reason=str(error), code=1002)
            return
        job.work, job.seconds = work, work.seconds
        held = job.session_id and self.book.session(job.session_id, job.instance)
        if not held or held.activated is None:
            delay = random.Random(f"{self.options.seed}/{work.key}").uniform(*self.options.queue_seconds)
            job.ready_at += delay * self.options.time_factor

    def _work(self, backend: str) -> None:
        """The life of one machine: a job at a time."""
        while job := self.book.take(backend, self._has_time_left):
            try:
                self._execute(job)
            except Exception as error:
                LOGGER.exception("job %s failed", job.id)
                self.book.finish(job, "Failed", reason=f"Internal error: {type(error).__name__}", code=1010)

    def _has_time_left(self, job: Job) -> bool:
        instance = self.instance(job.instance)
        limit = self.limit_seconds(instance)
        return limit is None or self.consumed_seconds(instance) < limit

    def _execute(self, job: Job) -> None:
        started = time.monotonic()
        if job.verdict == "fail":
            self.book.finish(job, "Failed", reason=job.detail or "Internal error", code=1010)
            return
        seconds = min(job.seconds, job.max_seconds)
        too_long = job.verdict == "ran_too_long" or job.seconds > job.max_seconds
        if not too_long:
            result = simulate(job.work, self.options.seed)
            job.result_file.write_text(encode(result), "utf-8")
        self.book.wait(job, started + seconds * self.options.time_factor - time.monotonic())
        if not too_long:
            self.book.finish(job, "Completed", charged=seconds)
        elif job.detail == "status":
            self.book.finish(job, "Cancelled - Ran too long", reason="Ran too long", charged=seconds)
        else:
            self.book.finish(job, "Cancelled", reason="Ran too long", code=_RAN_TOO_LONG, charged=seconds)
