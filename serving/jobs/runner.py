"""The one that takes jobs up. Of several workers the one that holds the lock does; when it dies another takes over at once.

Threads are daemons on purpose: a paid job may queue for days, and a service that ends leaves it to the ledger and the next start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hqtl_common.errors import BackendAuthError, BackendTimeoutError, BackendUnavailableError, HqtlError, JobFailedError
from serving.errors import NotReadyError
from serving.http_errors import code_of
from serving.jobs.records import Job
from serving.jobs.store import JobStore
from serving.jobs.work import Cancelling
from serving.metrics import Metrics

__all__ = ["Hook", "Runner", "Worker"]

logger = logging.getLogger("hqtl.jobs")

# A login fails as well while the platform is down; a ledger that was locked knows what was paid.
_MAY_PASS = (BackendUnavailableError, BackendTimeoutError, BackendAuthError, NotReadyError)
_TICK_S = 0.5
_FREE_AT_ONCE = 4  # they wait in the lanes of their backends
_MAX_TRIES = 40
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 900.0
_HOUSEKEEPING_S = 600.0
_HOOK_TRIES = 8
_MAX_MESSAGE = 2000
_END_S = 5.0  # for those who follow, cancel or tell of a job to see that the service ends; one on the network may take longer, and is left


class Worker(Protocol):
    """See :class:`serving.jobs.work.Work`."""

    @property
    def bundle(self) -> str:
        """Hash of the bundle whose jobs can be done."""
        ...

    def run(self, job: Job) -> dict[str, Any]:
        """The answer of a job."""
        ...

    def cancel(self, job: Job, *, in_work: bool) -> Cancelling:
        """Cancel a paid job at its provider."""
        ...

    def close(self) -> None:
        """End the waiting of every :meth:`run`, which raises."""
        ...


Hook = Callable[[Job], None]  # tells of a finished job, or raises


class Runner:
    """Takes up what waits in the store.

    Args:
        store: The jobs.
        work: Does them.
        metrics: Where the figures go.
        max_paid: Paid jobs at once.
        keep_s: Seconds that finished jobs are kept.
        hook: Tells of finished jobs, None for never.
    """

    def __init__(self, store: JobStore, work: Worker, metrics: Metrics, max_paid: int, keep_s: float, hook: Hook | None = None) -> None:
        self._store, self._work, self._metrics, self._hook = store, work, metrics, hook
        self._most = {True: max_paid, False: _FREE_AT_ONCE}
        self._keep_s = keep_s
        self._lock_file: int | None = None
        self._in_work: dict[str, bool] = {}  # identifiers; whether paid
        self._followers: set[threading.Thread] = set()
        self._busy: set[str] = set()  # cancelling or telling
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._kept_house = 0.0
        self.is_stuck = False  # the last look at the store has failed
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    @property
    def is_owner(self) -> bool:
        """True if this process takes jobs up."""
        return self._lock_file is not None

    def start(self) -> None:
        """Begin; from now on jobs are taken up as they come."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the store now."""
        self._wake.set()

    def close(self) -> None:
        """Take nothing more up; what runs stays in the store as running, and the next start goes on with it."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._work.close()
        until = time.monotonic() + _END_S
        for thread in tuple(self._followers):
            thread.join(max(until - time.monotonic(), 0.0))
        if self._lock_file is not None:
            os.close(self._lock_file)

    def adopt(self, job: Job, run: Callable[[Job], dict[str, Any]]) -> None:
        """Follow a job that runs in this process already; ``run`` waits for its answer."""
        self._take_up(job, run, paid=False)

    def _loop(self) -> None:
        while not self._closed:
            try:
                if self._own():
                    self._step()
                else:
                    self._store.counts()
                self.is_stuck = False
            except Exception:  # a full disk, a file that is locked for long: try again
                if not self.is_stuck:  # once is enough
                    logger.exception("the jobs cannot be looked at")
                self.is_stuck = True
            self._wake.wait(_TICK_S)
            self._wake.clear()

    def _own(self) -> bool:
        if self._lock_file is None:
            lock = _lock(self._store.path.with_name(f"{self._store.path.name}.lock"))
            if lock is not None:
                try:
                    self._store.take_back()
                except BaseException:
                    os.close(lock)  # else nobody could take it, not even we
                    raise
            self._lock_file = lock
        return self._lock_file is not None

    def _step(self) -> None:
        for job in self._store.to_cancel():
            self._once(job, self._cancel)
        for paid in (True, False):
            while list(self._in_work.values()).count(paid) < self._most[paid]:
                taken = self._store.take(self._work.bundle, paid)
                if taken is None:
                    break
                self._begin(taken)
        for job in self._store.to_tell() if self._hook else ():
            self._once(job, self._tell)
        self._metrics.set_jobs(self._store.counts())
        if time.monotonic() - self._kept_house > _HOUSEKEEPING_S or not self._kept_house:
            self._kept_house = time.monotonic()
            self._store.take_back(tuple(self._in_work))  # answers that could not be written
            self._store.forget(time.time() - self._keep_s)

    def _begin(self, job: Job) -> None:
        if job.tries == 1 and job.started:
            self._metrics.waited("job", job.started - job.created)
        self._take_up(job, self._work.run, paid=job.submission.paid)

    def _take_up(self, job: Job, run: Callable[[Job], dict[str, Any]], *, paid: bool) -> None:
        thread = threading.Thread(target=self._follow, args=(job, run), name=f"job-{job.id[:8]}", daemon=True)
        with self._guard:
            self._in_work[job.id] = paid
            self._followers.add(thread)
        thread.start()

    def _follow(self, job: Job, run: Callable[[Job], dict[str, Any]]) -> None:
        try:
            self._note(job, run)
        except HqtlError:  # it is run again, and its executions are replayed
            logger.exception("what came of job %s could not be written", job.id)
            self._kept_house = 0.0
        finally:
            with self._guard:
                self._in_work.pop(job.id, None)
                self._followers.discard(threading.current_thread())
            self._wake.set()

    def _note(self, job: Job, run: Callable[[Job], dict[str, Any]]) -> None:
        try:
            answer = run(job)
        except Exception as error:
            if not self._closed:  # of the end of the service, not of the job
                self._ended(job, error)
        else:
            self._store.finish(job.id, answer)

    def _ended(self, job: Job, error: Exception) -> None:
        code, message = code_of(error), str(error)[:_MAX_MESSAGE]
        if isinstance(error, JobFailedError) and self._store.get(job.id).cancel and "cancelled" in message.lower():
            self._store.cancelled(job.id, spent=True)  # seen by the poll before the one who asked for it could write it down
            return
        if isinstance(error, _MAY_PASS) and job.tries < _MAX_TRIES:
            pause = min(_FIRST_PAUSE_S * 1.5 ** (job.tries - 1), _LONGEST_PAUSE_S)
            logger.warning("job %s is tried again in %.0f s: %s", job.id, pause, message)
            self._store.retry(job.id, pause, code, message)
            return
        if not isinstance(error, HqtlError):
            logger.error("unexpected error in job %s", job.id, exc_info=error)
            code, message = "internal", "an error of the service, not of the request; its log has the id of the job"
        self._store.fail(job.id, code, message)

    def _once(self, job: Job, do: Callable[[Job], None]) -> None:
        """Do something slow with a job in a thread, unless it is being done."""
        with self._guard:
            if job.id in self._busy:
                return
            self._busy.add(job.id)

        def run() -> None:
            try:
                do(job)
            except HqtlError as error:  # the next look at the store does it again
                logger.warning("job %s is looked at again: %s", job.id, error)
            finally:
                with self._guard:
                    self._busy.discard(job.id)
                    self._followers.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"{do.__name__}-{job.id[:8]}", daemon=True)
        with self._guard:
            self._followers.add(thread)
        thread.start()

    def _cancel(self, job: Job) -> None:
        found = self._work.cancel(job, in_work=job.id in self._in_work)
        if found == "too late":
            self._store.keep(job.id)
        elif found == "later":
            time.sleep(_TICK_S)  # the platform is not asked at every tick
        else:
            self._store.cancelled(job.id, spent=found == "spent")

    def _tell(self, job: Job) -> None:
        assert self._hook is not None
        try:
            self._hook(job)
        except Exception as error:
            tries = job.hook_tries + 1
            logger.warning("the web-hook of job %s was not told (%d of %d): %s", job.id, tries, _HOOK_TRIES, error)
            self._store.told(job.id, delivered=False, again_in=_FIRST_PAUSE_S * 2**job.hook_tries if tries < _HOOK_TRIES else None)
        else:
            self._store.told(job.id, delivered=True)


def _lock(path: Path) -> int | None:
    """The lock as an open file, kept as long as this process lives; None where another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
