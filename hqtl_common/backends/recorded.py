"""Run a request at a provider so that it is paid once, whatever breaks: the ledger's protocol, step by step.

A provider is anything with jobs and tags. This module knows neither HTTP nor any SDK.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import BackendError, BackendTimeoutError, BackendUnavailableError, BudgetExceededError, JobFailedError
from hqtl_common.ledger import Entry, Ledger

__all__ = ["Budget", "JobStatus", "Provider", "RecordedExecutor", "Request", "Timing", "UncertainSubmitError"]

_MAX_SUBMITS = 5
_MAX_FETCHES = 5


class UncertainSubmitError(BackendUnavailableError):
    """A submit ended without an answer, so the job may exist or not."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run.

    Args:
        key: See :func:`hqtl_common.ledger.request_key`.
        num_rows: Parameter sets.
        shots: Repetitions per set.
        qpu_seconds: Estimate.
        payload: What the provider needs to submit it.
        facts: JSON-ready facts about the execution, asked for only when it is about to be submitted.
    """

    key: str
    num_rows: int
    shots: int
    qpu_seconds: float
    payload: Any
    facts: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands; ``unknown`` when the provider gave no usable answer."""

    state: Literal["queued", "running", "done", "failed", "unknown"]
    reason: str = ""


class Provider(Protocol):
    """Jobs of one account on one machine."""

    name: str

    def submit(self, payload: Any, tag: str) -> str:
        """Submit one job and return its identifier.

        Raises:
            UncertainSubmitError: No answer came; the job may have been accepted.
            BackendError: The provider refused it for certain.
        """
        ...

    def find(self, tag: str) -> str | None:
        """The identifier of the job that carries a tag, or None where none is listed.

        Raises:
            BackendUnavailableError: The provider cannot be asked now.
        """
        ...

    def status(self, job_id: str) -> JobStatus:
        """Where a job stands; never raises for a provider that cannot be reached."""
        ...

    def fetch(self, job_id: str, request: Request) -> tuple[NDArray[np.int64], float, dict[str, Any]]:
        """Counts of a finished job, billed seconds and JSON-ready facts.

        The counts are (R, 2^n); where the payload has further circuits, theirs stand below.

        Raises:
            BackendUnavailableError: The answer did not come, or is not what was asked for; asking again may help.
        """
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a scope, checked before every submit; None is no limit."""

    max_jobs: int | None = None
    max_qpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    Args:
        settle: How long a job may be accepted and not yet listed, the submit's own timeout included; only after this is a
            request without a job sent again.
        poll_first: First pause between two looks at a job; it grows by half each time.
        poll_longest: The longest.
        deadline: Give up waiting after this, None never; the job goes on and is adopted later.
    """

    settle: float = 60.0
    poll_first: float = 5.0
    poll_longest: float = 60.0
    deadline: float | None = None


@dataclass(slots=True)
class RecordedExecutor:
    """Runs requests of one scope.

    Args:
        ledger: Where everything is recorded.
        provider: Where jobs run.
        scope: What the requests belong to.
        budget: Limits of the scope.
        timing: Pauses.
        on_status: Called with the job's identifier and status whenever it changes.
        sleep: Replaceable for tests.
    """

    ledger: Ledger
    provider: Provider
    scope: str
    budget: Budget = field(default_factory=Budget)
    timing: Timing = field(default_factory=Timing)
    on_status: Callable[[str, JobStatus], None] | None = None
    sleep: Callable[[float], None] = time.sleep

    def run(self, request: Request) -> Entry:
        """The finished row of a request: replayed, adopted or newly run.

        Raises:
            BudgetExceededError: A limit would be passed; nothing was submitted.
            JobFailedError: The job ended without a result; asking again submits a new one.
            BackendTimeoutError: The deadline passed; asking again goes on waiting for the same job.
            BackendError: The provider refused the job, or cannot be reached.
        """
        key, entry = self._current(request.key)
        if entry is None:
            self._check_budget(request)
            if self._intend(key, request):
                self._submit(key, request)
            entry = self._entry(key)
        if entry.state == "intent":
            entry = self._settle(key, request)
        if entry.state == "submitted":
            entry = self._wait(key, request)
        return entry

    def _current(self, key: str) -> tuple[str, Entry | None]:
        """The attempt that counts: the first one that has not failed."""
        attempt = key
        number = 0
        while (entry := self.ledger.get(attempt)) is not None and entry.state == "failed":
            number += 1
            attempt = f"{key[:32]}-{number}-{key[32:]}"
        return attempt, entry

    def _intend(self, key: str, request: Request) -> bool:
        return self.ledger.intend(
            key,
            scope=self.scope,
            backend=self.provider.name,
            num_rows=request.num_rows,
            shots=request.shots,
            qpu_seconds=request.qpu_seconds,
            details=request.facts(),
        )

    def _entry(self, key: str) -> Entry:
        entry = self.ledger.get(key)
        if entry is None:
            raise BackendError(f"another process withdrew the request {key[:12]}; run the command again")
        return entry

    def _check_budget(self, request: Request) -> None:
        spent, budget = self.ledger.usage(self.scope), self.budget
        if budget.max_jobs is not None and spent.num_jobs + 1 > budget.max_jobs:
            raise BudgetExceededError(f"{spent.num_jobs} jobs are spent and at most {budget.max_jobs} allowed; raise --max-jobs and resume")
        total = spent.qpu_seconds + request.qpu_seconds
        if budget.max_qpu_seconds is not None and total > budget.max_qpu_seconds:
            raise BudgetExceededError(
                f"{spent.qpu_seconds:.1f} QPU seconds are spent, the next job needs about {request.qpu_seconds:.1f}, and at most "
                f"{budget.max_qpu_seconds:g} are allowed; raise --max-qpu-seconds and resume"
            )

    def _submit(self, key: str, request: Request) -> None:
        """Submit the intent of this process, looking for the job whenever no answer came."""
        entry, reason = self._entry(key), ""
        mine = entry.created
        for _ in range(_MAX_SUBMITS):
            taken = self.ledger.take_over(key, mine)  # whoever finds this intent after a crash waits from now on
            if taken is None:  # somebody has found it, and submits it
                return
            mine = taken
            try:
                job_id: str | None = self.provider.submit(request.payload, entry.tag)
            except UncertainSubmitError as error:
                reason = str(error)
                job_id = self._look_for(key, time.monotonic() + self.timing.settle)
            except BackendError:
                self.ledger.withdraw(key, mine)
                raise
            if job_id is not None:
                self.ledger.submitted(key, job_id)
                return
        self.ledger.withdraw(key, mine)
        raise BackendUnavailableError(f"{self.provider.name} accepted no job in {_MAX_SUBMITS} attempts ({reason}); try again later")

    def _settle(self, key: str, request: Request) -> Entry:
        """An intent without a job: of a process that died, or of one that is submitting right now."""
        entry = self._entry(key)
        left = entry.created + self.timing.settle - time.time()
        job_id = self._look_for(key, time.monotonic() + min(max(left, 0.0), self.timing.settle))
        current = self._entry(key)
        if current.state != "intent":
            return current
        if job_id is not None:
            self.ledger.submitted(key, job_id)
        elif self.ledger.take_over(key, entry.created):
            self._submit(key, request)
        return self._settle(key, request) if self._entry(key).state == "intent" else self._entry(key)

    def _look_for(self, key: str, until: float) -> str | None:
        """Look for the job by its tag until it is listed or ``until`` (monotonic) has passed; at least once."""
        pause = min(self.timing.poll_first, self.timing.settle / 10)
        entry = self._entry(key)
        while entry.state == "intent":
            last_look = time.monotonic() >= until
            job_id = self._find(entry.tag)
            if job_id is not None or last_look:
                return job_id
            self.sleep(pause)
            entry = self._entry(key)
        return entry.job_id

    def _find(self, tag: str) -> str | None:
        for attempt in range(_MAX_FETCHES):
            try:
                return self.provider.find(tag)
            except BackendUnavailableError:
                if attempt == _MAX_FETCHES - 1:
                    raise  # without a listing nothing may be submitted again
                self.sleep(self._pause(attempt))
        raise AssertionError("unreachable")

    def _wait(self, key: str, request: Request) -> Entry:
        job_id = self._entry(key).job_id
        assert job_id is not None
        started, looks, before = time.monotonic(), 0, JobStatus("unknown")
        while (status := self.provider.status(job_id)).state != "done":
            if status != before and self.on_status:
                self.on_status(job_id, status)
            before = status
            if status.state == "failed":
                self.ledger.fail(key, status.reason)
                raise JobFailedError(
                    f"job {job_id} ended without a result: {status.reason}; running the command again submits it anew", job_id
                )
            if self.timing.deadline is not None and time.monotonic() - started > self.timing.deadline:
                raise BackendTimeoutError(f"job {job_id} is {status.state} after {self.timing.deadline:g} s; run again to go on waiting")
            self.sleep(self._pause(looks))
            looks += 1
        counts, qpu_seconds, details = self._fetch(job_id, request)
        self.ledger.finish(key, counts, qpu_seconds, details)
        return self._entry(key)

    def _fetch(self, job_id: str, request: Request) -> tuple[NDArray[np.int64], float, dict[str, Any]]:
        for attempt in range(_MAX_FETCHES):
            try:
                return self.provider.fetch(job_id, request)
            except BackendUnavailableError:
                if attempt == _MAX_FETCHES - 1:
                    raise  # the job stays recorded as submitted; the next run fetches it
                self.sleep(self._pause(attempt))
        raise AssertionError("unreachable")

    def _pause(self, looks: int) -> float:
        pause = min(self.timing.poll_first * 1.5 ** min(looks, 100), self.timing.poll_longest)  # days in a queue are many looks
        return pause * random.uniform(0.8, 1.2)
