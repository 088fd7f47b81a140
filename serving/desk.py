"""The desk between the routes and the predictor: who may ask, how many at once, how long, and what is written down of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from hqtl_common.records import InferenceBatch
from serving import limits
from serving.arrivals import SLOW_S, Arrival
from serving.bodies import read_body
from serving.errors import DeadlineError, FieldError, NotFoundError, NotReadyError, OverloadedError, SlowClientError
from serving.forms import PredictOptions
from serving.intake import PredictRequest
from serving.jobs.office import JobOffice
from serving.jobs.records import FINISHED, Job
from serving.keys import Key, KeyRing
from serving.metrics import shots_of
from serving.predictor import Predictor
from serving.queries import idempotency_key

__all__ = ["PREDICT", "Desk", "Reply"]

T = TypeVar("T")

PREDICT = "/v1/predict"


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back.

    Args:
        status: Of HTTP.
        body: JSON-ready.
        headers: Besides those of every answer.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


class Desk:
    """Takes requests in: bounds how many are in work and the time of each, and lets a key have what it was granted.

    Args:
        predictor: Answers them.
        ring: The keys, None without authentication.
        office: Keeps jobs, None where there are none.
    """

    def __init__(self, predictor: Predictor, ring: KeyRing | None, office: JobOffice | None = None) -> None:
        self._predictor = predictor
        self._office = office
        self._settings = predictor.settings
        self._ring = ring
        self._in_work = 0
        self._arriving: dict[Arrival, asyncio.Timeout] = {}
        self._closing = False
        self._calibrations: dict[str, str] = {}  # of the backends that have run
        self._model = _model(predictor)

    def close(self) -> None:
        """Take nothing more; what is in work goes on."""
        self._closing = True

    def check_ready(self) -> None:
        """Say whether all that the service promises can be had.

        Raises:
            NotReadyError: It is about to end, or cannot keep jobs now.
            KeysUnavailableError: Nobody would be let in.
        """
        self._check_open()
        if self._office is not None:
            self._office.check_ready()

    def _check_open(self) -> None:
        """What cannot become a job is answered even where none can be kept."""
        if self._closing:
            raise NotReadyError("the service is about to end and takes no more requests")
        if self._ring is not None:
            self._ring.check()

    @property
    def office(self) -> JobOffice:
        """Where jobs are kept.

        Raises:
            NotFoundError: There are none.
        """
        if self._office is None:
            raise NotFoundError("this service keeps no jobs; its operator must set HQTL_JOBS to a file for them")
        return self._office

    async def answer(self, request: Request) -> Reply:
        """Read one request and answer it, or keep it as a job: where it is paid, and where it was not done in time.

        Raises:
            HqtlError: See :meth:`submit`.
        """
        return await self._take_in(request, self._predict)

    async def submit(self, request: Request) -> Reply:
        """Read one request and keep it as a job.

        Raises:
            NotReadyError: The service is about to end.
            OverloadedError: Too many requests are in work.
            SlowClientError: The deadline came while the client was still sending.
            DeadlineError: It came while the service was working.
            ForbiddenError: More than the key was granted.
            HqtlError: See :meth:`serving.intake.Intake.read`, :meth:`serving.predictor.Predictor.predict` and
                :meth:`serving.jobs.office.JobOffice.accept`.
        """
        _ = self.office
        return await self._take_in(request, self._keep)

    async def answer_now(self, request: Request, read: Callable[[AsyncIterator[bytes]], Awaitable[PredictRequest]]) -> dict[str, Any]:
        """Answer one request that ``read`` makes of its body; nothing becomes a job.

        Raises:
            HqtlError: See :meth:`submit`, and what ``read`` raises.
        """
        return (await self._take_in(request, self._predict_now, read)).body

    async def work_on(
        self,
        request: Request,
        read: Callable[[AsyncIterator[bytes]], Awaitable[PredictRequest]],
        work: Callable[[PredictRequest], Awaitable[T]],
    ) -> T:
        """Let ``work`` do what ``read`` makes of the body of a request, within the limits of the service and of the key.

        Raises:
            HqtlError: See :meth:`submit`, and what ``read`` and ``work`` raise.
        """
        return await self._take_in(request, lambda _, asked, __: work(asked), read)

    async def _take_in(
        self,
        request: Request,
        work: Callable[[Request, PredictRequest, asyncio.Timeout], Awaitable[T]],
        read: Callable[[AsyncIterator[bytes]], Awaitable[PredictRequest]] | None = None,
    ) -> T:
        self._check_open()
        request.state.idempotency_key = idempotency_key(request)
        if self._in_work >= self._settings.max_requests:
            self._make_room()
        arrival, started = Arrival(request), asyncio.get_running_loop().time()
        log = request.state.log = {}
        self._in_work += 1
        try:
            async with asyncio.timeout(self._settings.deadline_s) as deadline:
                self._arriving[arrival] = deadline
                chunks = arrival.chunks()
                asked = await (read(chunks) if read else self._predictor.intake.read(read_body(request, chunks, self._settings)))
                self._arriving.pop(arrival, None)
                log |= self._check(request.state.key, asked)
                deadline.reschedule(started + (asked.options.deadline_s or self._settings.deadline_s))
                return await work(request, asked, deadline)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            if arrival.waiting or arrival.gave_way:
                limit = "while others waited" if arrival.gave_way else f"within {self._settings.deadline_s:g} s, the limit here"
                raise SlowClientError(f"the body did not arrive {limit}") from error
            raise DeadlineError("the request was not done in time; send fewer images or shots, or allow a later deadline_s") from error
        finally:
            self._in_work -= 1
            self._arriving.pop(arrival, None)
            log["bytes_in"] = arrival.received

    def _make_room(self) -> None:
        """Give up the request whose client has been waited for the longest, so that slow ones cannot keep others out.

        Raises:
            OverloadedError: All are in work, or arrive.
        """
        waiting = [one for one, deadline in self._arriving.items() if one.waiting and not deadline.expired()]
        slowest = max(waiting, key=lambda one: one.waited, default=None)
        if slowest is None or slowest.waited < SLOW_S:
            raise OverloadedError(f"{self._in_work} requests are in work, the limit of this service; try again later")
        slowest.gave_way = True
        self._arriving.pop(slowest).reschedule(asyncio.get_running_loop().time())

    async def _predict(self, request: Request, asked: PredictRequest, deadline: asyncio.Timeout) -> Reply:
        if self._office is not None and self._office.is_paid(asked.options):
            return await self._keep(request, asked, deadline)
        batch = await self._predictor.featurize(asked)
        running = self._predictor.start(batch, asked.options)
        if self._office is not None and not asked.options.explain:
            until = deadline.when() or 0
            deadline.reschedule(None)  # from now on the answer is not lost
            if not await _is_done(running, until - asyncio.get_running_loop().time()):
                reason = "it was not done in time and goes on"
                return await self._reply(request, asked, await self._accept(request, asked, batch, reason=reason, running=running))
        return await self._finish(request, asked, running)

    async def _predict_now(self, request: Request, asked: PredictRequest, _: asyncio.Timeout) -> Reply:
        limits.refuse_paid(self._predictor.backend_of(asked.options))
        return await self._finish(request, asked, self._predictor.start(await self._predictor.featurize(asked), asked.options))

    async def _finish(self, request: Request, asked: PredictRequest, running: Future[InferenceBatch]) -> Reply:
        answer = self._predictor.answer(asked.filenames, await asyncio.wrap_future(running), explain=asked.options.explain)
        execution = answer["execution"]
        if execution["calibration"]:
            self._calibrations[execution["backend_used"]] = execution["calibration"]
        request.state.log |= {"backend": execution["backend_used"], "shots": shots_of(answer), "qpu_seconds": execution["qpu_seconds"]}
        return Reply(200, answer)

    async def _keep(self, request: Request, asked: PredictRequest, deadline: asyncio.Timeout) -> Reply:
        batch = await self._predictor.featurize(asked)
        deadline.reschedule(None)  # a job that is kept is not answered as one that was late
        return await self._reply(request, asked, await self._accept(request, asked, batch))

    async def _accept(self, request: Request, asked: PredictRequest, batch: InferenceBatch, **facts: Any) -> Job:
        return await self.office.accept(request.state.key, asked, batch, request.state.idempotency_key, **facts)

    async def _reply(self, request: Request, asked: PredictRequest, job: Job) -> Reply:
        """The fallback where one was asked for, else the job."""
        headers = {"location": f"/v1/jobs/{job.id}"}
        if job.submission.fallback is not None and request.url.path == PREDICT:
            return Reply(200, {**job.submission.fallback, "job_id": job.id}, headers)
        return Reply(200 if job.state in FINISHED else 202, await self.office.show(job), headers)

    def describe_model(self) -> dict[str, Any]:
        """The manifest with its own hash, how the backbone runs, and the limits."""
        return self._model

    def describe_backends(self, key: Key) -> dict[str, Any]:
        """The backends on offer with what each can do and whether the key may use it."""
        described = self._predictor.describe_backends()
        for entry in described["backends"]:
            entry["allowed"] = limits.may_use(key, entry["name"])
            entry["price_class"] = "paid" if entry["paid"] else "free"
            entry["calibration"] = self._calibrations.get(entry["name"])
        return {**described, "key": {"id": key.id, "name": key.name, "grants": key.grants.model_dump(mode="json")}}

    def _check(self, key: Key, asked: PredictRequest) -> dict[str, Any]:
        """Refuse what the key or the operator does not allow; what the log says of the rest."""
        options, limit = asked.options, self._settings.deadline_s
        backend = self._predictor.backend_of(options)
        if (options.deadline_s or 0) > limit:
            raise FieldError("deadline_s", f"must be at most {limit:g}; got {options.deadline_s:g}")
        if backend in self._settings.backends:  # of others the predictor says what is on offer
            limits.check_request(key, backend, _most_shots(options))
            self._predictor.check(options, len(asked.filenames))
            if self._office is not None:
                self._office.check(key, options, len(asked.filenames))
            elif options.webhook:
                raise FieldError("webhook", "is for jobs, which this service does not keep")
            return {"images": len(asked.filenames), "backend": backend}
        self._predictor.check(options, len(asked.filenames))
        return {"images": len(asked.filenames)}


async def _is_done(running: Future[InferenceBatch], seconds: float) -> bool:
    """Wait for it, but no longer; it goes on in any case."""
    waiting = asyncio.wrap_future(running)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # asyncio wants it looked at
    await asyncio.wait([waiting], timeout=max(0.0, seconds))
    return waiting.done()


def _most_shots(options: PredictOptions) -> int | None:
    return max(options.shots or 0, options.max_shots or 0) or None


def _model(predictor: Predictor) -> dict[str, Any]:
    bundle = predictor.bundle
    written = bundle.manifest.to_bytes()
    return {**json.loads(written), "runtime": predictor.runtime, "limits": predictor.settings.limits}
