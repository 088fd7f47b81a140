"""The office of the jobs: takes them in for a key, shows and cancels them; owns the store and what takes them up."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from concurrent.futures import Future
from functools import partial
from typing import Any

from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.errors import ConfigError, HqtlError
from hqtl_common.records import InferenceBatch
from serving import limits
from serving.errors import FieldError, ForbiddenBackendError, NotReadyError
from serving.forms import PredictOptions
from serving.intake import PredictRequest
from serving.jobs.answers import job_answer
from serving.jobs.budget import Budget
from serving.jobs.estimate import estimate_of
from serving.jobs.records import Estimate, Job, Spent, State, Submission, pack_inputs
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.jobs.webhook import WebHook
from serving.jobs.work import Work
from serving.keys import Key
from serving.predictor import Predictor
from serving.settings import ServiceSettings

__all__ = ["JobOffice", "open_office", "open_parts"]

_KEPT = {"shots", "max_shots", "seed", "threshold", "mitigation"}
_DAY_S = 86400
_EXACT = "statevector"


def open_office(predictor: Predictor) -> JobOffice | None:
    """The office of a service, already at work; None where the operator has none.

    Raises:
        ConfigError: The file of the jobs cannot be used.
    """
    parts = open_parts(predictor.settings)
    return None if parts is None else JobOffice(predictor, *parts)


def open_parts(settings: ServiceSettings) -> tuple[JobStore, WebHook | None] | None:
    """The file of the jobs, and what tells of finished ones; None where the operator has no jobs.

    Raises:
        ConfigError: The file of the jobs, or that of the certificates, cannot be used.
    """
    if settings.jobs is None:
        return None
    try:
        store = JobStore(settings.jobs, settings.max_waiting_jobs)
    except (OSError, NotReadyError) as error:
        raise ConfigError(f"the file of the jobs {str(settings.jobs)!r} cannot be used: {error}") from error
    secret, hook = settings.webhook_secret, None
    if secret is not None:
        private, trusted = settings.webhook_private, settings.webhook_ca
        hook = WebHook(settings.webhook_hosts, secret.get_secret_value(), private=private, trusted=trusted)
    return store, hook


class JobOffice:
    """See the module.

    Args:
        predictor: Makes angles of images, and runs the heads.
        store: Where jobs are kept.
        hook: Tells of finished jobs, None for never.
    """

    def __init__(self, predictor: Predictor, store: JobStore, hook: WebHook | None) -> None:
        settings = predictor.settings
        self._predictor, self._store, self._hook = predictor, store, hook
        self._work = Work(predictor, store.ledger)
        self._budget = Budget(settings)
        tell = self._tell if hook and settings.webhook_hosts else None
        self._runner = Runner(store, self._work, predictor.metrics, settings.max_running_jobs, settings.jobs_keep_days * _DAY_S, tell)
        self._runner.start()

    def close(self) -> None:
        """Take nothing more up; what is unfinished goes on at the next start."""
        self._runner.close()

    def check_ready(self) -> None:
        """Say whether jobs can be kept.

        Raises:
            NotReadyError: Their file cannot be used now.
        """
        if self._runner.is_stuck:
            raise NotReadyError("the file of the jobs cannot be used now; the log of the service says why")

    def check(self, key: Key, options: PredictOptions, num_images: int) -> None:
        """Refuse what cannot become a job; called for every request, before it is worked on.

        Raises:
            FieldError: A web-hook that may not be told, or options that no job can have.
            ForbiddenBackendError: The fallback is not offered, or not granted.
            ConfigError: Mitigation that does not fit the shots.
        """
        if options.webhook is not None:
            (self._hook or WebHook((), "")).check(options.webhook)
        if options.fallback and not (_EXACT in self._predictor.settings.backends and limits.may_use(key, _EXACT)):
            raise ForbiddenBackendError(f"the fallback {_EXACT!r} is not offered here, or not granted to the key {key.id}")
        estimate_of(self._predictor.backend_of(options), options, num_images)

    def is_paid(self, options: PredictOptions) -> bool:
        """True for a request that can only be a job."""
        return backend_capabilities(self._predictor.backend_of(options)).paid

    async def accept(
        self,
        key: Key,
        asked: PredictRequest,
        batch: InferenceBatch,
        name: str | None,
        *,
        reason: str | None = None,
        running: Future[InferenceBatch] | None = None,
    ) -> Job:
        """Keep a request as a job, or find the one that was asked for by the same idempotency key before.

        Args:
            key: Whose job it is.
            asked: What is asked.
            batch: Features of its images.
            name: The idempotency key.
            reason: Why it becomes a job, None where that was asked for.
            running: The head's answer, where it is on the way already.

        Raises:
            FieldError: An explanation is wanted, and nothing is answered now.
            ConfigError: A threshold, and the bundle has more than two classes.
            ConflictError: The idempotency key was used for another request.
            OverloadedError: Too many jobs are unfinished.
            QuotaError: The day of the key, or of the service, is used up.
        """
        options = asked.options
        if options.explain and not options.fallback:
            raise FieldError("explain", f"is for answers that come at once: leave it out, or add fallback={_EXACT}")
        exact = self._predictor.run_exact(batch, options)  # also checks what would else fail after it was paid
        fallback = self._fallback(asked, exact) if options.fallback else None
        wanted = self._submission(key, asked, exact, name, reason, fallback)
        if running is not None and self._runner.is_owner:
            wanted = dataclasses.replace(wanted, running=True)
        check = partial(self._budget.check, key, wanted.estimate)
        job, is_new = await asyncio.to_thread(self._store.add, wanted, check, limits.day_start().timestamp())
        if running is not None:
            self._follow(job, running, goes_on=is_new and wanted.running)
        if fallback and is_new:
            self._predictor.metrics.answered(fallback, self._predictor.bundle.manifest.positive_label)
        self._runner.wake()
        return job

    async def estimate(self, key: Key, options: PredictOptions, num_images: int) -> dict[str, Any]:
        """What a request would need, and what the key and the service have left, JSON-ready.

        Raises:
            HqtlError: See :meth:`check` and :meth:`serving.predictor.Predictor.check`.
        """
        self._predictor.check(options, num_images)
        backend = self._predictor.backend_of(options)
        needs, since = estimate_of(backend, options, num_images), limits.day_start().timestamp()
        mine, everybody = await asyncio.gather(*(asyncio.to_thread(self._store.spent, owner, since) for owner in (key.id, None)))
        return {
            "backend": backend,
            "images": num_images,
            "shots": options.shots,
            "needs": dataclasses.asdict(needs),
            **self._budget.left(key, mine, everybody),
            "allowed": self._may(key, backend, options.shots, needs, mine, everybody),
        }

    async def show(self, job: Job, *, short: bool = False) -> dict[str, Any]:
        """A job as the client sees it."""
        return await asyncio.to_thread(self._show, job, short)

    async def find(self, key: Key, identifier: str) -> dict[str, Any]:
        """A job of a key.

        Raises:
            NotFoundError: There is none, or it is another's.
        """
        return await self.show(await asyncio.to_thread(self._store.get, identifier, key.id))

    async def listing(self, key: Key, state: State | None, before: str | None, limit: int) -> dict[str, Any]:
        """The latest jobs of a key.

        Raises:
            NotFoundError: There is no job ``before``.
        """
        number = None if before is None else (await asyncio.to_thread(self._store.get, before, key.id)).number
        found = await asyncio.to_thread(partial(self._store.of, key.id, state=state, before=number, limit=limit + 1))
        shown = [await self.show(job, short=True) for job in found[:limit]]
        return {"jobs": shown, "next": shown[-1]["id"] if len(found) > limit else None}

    async def cancel(self, key: Key, identifier: str) -> dict[str, Any]:
        """Cancel a job of a key, at its provider as well.

        Raises:
            NotFoundError: There is none, or it is another's.
            ConflictError: It is finished.
        """
        job = await asyncio.to_thread(self._store.ask_to_cancel, identifier, key.id)
        self._runner.wake()
        return await self.show(job)

    def _may(self, key: Key, backend: str, shots: int | None, needs: Estimate, mine: Spent, everybody: Spent) -> bool:
        try:
            limits.check_request(key, backend, shots)
            if needs.jobs:
                self._budget.check(key, needs, mine, everybody)
        except HqtlError:
            return False
        return True

    def _fallback(self, asked: PredictRequest, exact: InferenceBatch) -> dict[str, Any]:
        assert exact.execution is not None
        requested = self._predictor.backend_of(asked.options)
        reason = f"the answer of {requested} follows as a job; this is the exact one"
        record = dataclasses.replace(exact.execution, backend_requested=requested, reason=reason)
        return self._predictor.describe(asked.filenames, dataclasses.replace(exact, execution=record), explain=asked.options.explain)

    def _submission(
        self, key: Key, asked: PredictRequest, batch: InferenceBatch, name: str | None, reason: str | None, fallback: dict[str, Any] | None
    ) -> Submission:
        backend, options = self._predictor.backend_of(asked.options), asked.options
        kept = options.model_dump(include=_KEPT, exclude_none=True) | {"backend": backend}
        return Submission(
            owner=key.id,
            backend=backend,
            paid=backend_capabilities(backend).paid,
            bundle=self._work.bundle,
            content=_content(asked),
            inputs=pack_inputs(batch),
            filenames=asked.filenames,
            options=kept,
            estimate=estimate_of(backend, options, len(asked.filenames)),
            idempotency_key=name,
            webhook=options.webhook,
            reason=reason,
            fallback=fallback,
        )

    def _follow(self, job: Job, running: Future[InferenceBatch], *, goes_on: bool) -> None:
        if not goes_on:  # another process takes it up, or it was there before
            running.cancel()
            return
        self._runner.adopt(job, lambda job: self._predictor.answer(job.submission.filenames, running.result()))

    def _show(self, job: Job, short: bool) -> dict[str, Any]:
        return job_answer(job, self._work.executions(job), self._store.position(job), self._work.bundle, short=short)

    def _tell(self, job: Job) -> None:
        assert self._hook is not None
        assert job.submission.webhook is not None
        self._hook.tell(job.submission.webhook, self._show(job, short=True))


def _content(asked: PredictRequest) -> str:
    """Hash of everything that a request says."""
    head = json.dumps([asked.filenames, asked.options.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    digest.update(asked.pixels.tobytes())
    return digest.hexdigest()
