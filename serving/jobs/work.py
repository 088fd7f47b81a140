"""Doing a job: run the head in the job's own scope of the ledger, so that a restart takes up what was submitted; or cancel it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from hqtl_common.backends.base import Backend
from hqtl_common.errors import HqtlError, JobFailedError
from hqtl_common.ledger import Entry, Ledger
from serving.errors import NotReadyError
from serving.forms import PredictOptions
from serving.jobs.records import Job, unpack_inputs
from serving.jobs.store import readable
from serving.predictor import Predictor

__all__ = ["Cancelling", "Work"]

logger = logging.getLogger("hqtl.jobs")

Cancelling = Literal["unspent", "spent", "later", "too late"]


class Work:
    """What the runner does with one job.

    Args:
        predictor: Runs the heads.
        ledger: Of the executions; in the file of the jobs.
    """

    def __init__(self, predictor: Predictor, ledger: Ledger) -> None:
        self._predictor = predictor
        self._ledger = ledger
        self._open: set[Backend] = set()
        self._guard = threading.Lock()
        self._closed = False

    @property
    def bundle(self) -> str:
        """Hash of the bundle whose jobs can be done."""
        return self._predictor.bundle_hash

    def close(self) -> None:
        """End the waiting of every :meth:`run`, which raises; what is submitted goes on at its provider."""
        with self._guard:
            self._closed = True
            for backend in self._open:
                backend.close()

    def run(self, job: Job) -> dict[str, Any]:
        """The answer of a job, waiting as long as it takes; a second call goes on where the first one was killed.

        Raises:
            JobFailedError: The provider's job has ended without a result, now or before.
            NotReadyError: The ledger cannot be used now, or this is closed.
            HqtlError: See :meth:`serving.predictor.Predictor.open_backend` and :meth:`serving.predictor.Predictor.run_on`.
        """
        with readable():
            return self._run(job)

    def _run(self, job: Job) -> dict[str, Any]:
        wanted, options = job.submission, PredictOptions(**job.submission.options)
        batch = unpack_inputs(wanted.inputs)
        if not wanted.paid:
            return self._predictor.answer(wanted.filenames, self._predictor.start(batch, options).result())
        for entry in self._ledger.find(scope=job.id, state="failed"):
            reason = entry.details.get("error", "no reason was given")
            raise JobFailedError(f"job {entry.job_id} ended without a result: {reason}", entry.job_id or "")
        settings = self._predictor.settings
        limits = {"scope": job.id, "ledger": self._ledger.path, "max_jobs": wanted.estimate.jobs}
        pauses = {"settle_s": settings.jobs_settle_s, "poll_s": settings.jobs_poll_s}
        with self._held(self._predictor.open_backend(options, **limits, **pauses)) as backend:
            done = self._predictor.run_on(backend, batch, options)
        return self._predictor.answer(wanted.filenames, done)

    @contextmanager
    def _held(self, backend: Backend) -> Iterator[Backend]:
        with self._guard:
            self._open.add(backend)
            closed = self._closed
        try:
            if closed:
                raise NotReadyError("the service is ending")
            yield backend
        finally:
            with self._guard:
                self._open.remove(backend)
            backend.close()

    def cancel(self, job: Job, *, in_work: bool) -> Cancelling:
        """Cancel a paid job at its provider.

        Args:
            job: The job.
            in_work: :meth:`run` has not returned.

        Returns:
            ``unspent``: nothing had been submitted. ``spent``: the provider has cancelled it. ``later``: it may be on its way, or the
            provider cannot be asked; try again. ``too late``: its result is there.

        Raises:
            NotReadyError: The ledger cannot be used now.
        """
        with readable():
            return self._cancel_all(job, in_work=in_work)

    def _cancel_all(self, job: Job, *, in_work: bool) -> Cancelling:
        entries = self._ledger.find(scope=job.id)
        unfinished = [entry for entry in entries if entry.state in ("intent", "submitted")]
        if not unfinished and in_work:
            return "later"
        if not unfinished:
            return "too late" if any(entry.state == "done" for entry in entries) else "spent" if entries else "unspent"
        try:
            cancelled = [self._cancel(entry) for entry in unfinished]
        except HqtlError as error:
            logger.warning("job %s is not cancelled yet: %s", job.id, error)
            return "later"
        return "spent" if all(cancelled) else "later"

    def executions(self, job: Job) -> list[Entry]:
        """What the ledger has of a job.

        Raises:
            NotReadyError: It cannot be used now.
        """
        with readable():
            return self._ledger.find(scope=job.id) if job.submission.paid else []

    def _cancel(self, entry: Entry) -> bool:
        """True once the job is cancelled; False while it may be on its way to the provider.

        Raises:
            BackendError: The platform did not take it.
        """
        self._predictor.load(entry.backend)
        from hqtl_common.backends.ibm import open_provider

        provider = open_provider(entry.backend, mode="job", dynamical_decoupling=None, twirling=False, rep_delay=None)
        try:
            job_id = entry.job_id or provider.find(entry.tag)
            if job_id is None:
                return False
            provider.cancel(job_id)
        finally:
            provider.close()
        self._ledger.fail(entry.key, "cancelled by the user")
        return True
