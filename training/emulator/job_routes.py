"""The routes of jobs, each a function of a request to an answer.

Forms are those that the installed client reads (``qiskit_ibm_runtime.api.rest.runtime`` and ``program_job``) and of
https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest/tags/jobs.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from training.emulator.jobs import Job, timestamp
from training.emulator.platform import Platform, PlatformError, Submission
from training.emulator.runner import encode, misshape, parse_result
from training.emulator.wire import API, Answer, Request, Route, json_answer

__all__ = ["JOB_ROUTES"]


def _submit(platform: Platform, request: Request) -> Answer:
    body = request.json()
    submission = Submission(
        program=str(body.get("program_id")),
        backend=str(body.get("backend")),
        parameters=json.dumps(body.get("params") or {}),
        tags=tuple(body.get("tags") or ()),
        session_id=body.get("session_id"),
        max_seconds=body.get("cost"),
        private=bool(body.get("private")),
    )
    if "calibration" in request.faults:
        platform.device(submission.backend).recalibrate(time.time(), request.faults["calibration"].factor)
    job = platform.submit(platform.instance(request.crn), submission, request.faults)
    return json_answer({"id": job.id, "backend": job.backend, "session_id": job.session_id, "private": job.private})


def _job(platform: Platform, request: Request) -> Job:
    job = platform.book.get(request.arguments[0], request.crn)
    if job is None:
        raise PlatformError(404, 0, f"Job not found. Job ID: {request.arguments[0]}", "Check the job ID.")
    return job


def _job_view(job: Job) -> dict[str, Any]:
    state = {"status": job.status, **({"reason": job.reason} if job.reason else {})}
    return {
        "id": job.id,
        "backend": job.backend,
        "state": state if job.reason_code is None else {**state, "reason_code": job.reason_code},
        "status": job.status,
        "program": {"id": job.program},
        "created": timestamp(job.created),
        "ended": timestamp(job.finished),
        "tags": job.tags,
        "session_id": job.session_id,
        "cost": job.max_seconds,
        "estimated_running_time_seconds": job.seconds,
        "usage": {"seconds": job.charged, "quantum_seconds": job.charged},
        "private": job.private,
    }


def _get_job(platform: Platform, request: Request) -> Answer:
    job = _job(platform, request)
    view = _job_view(job)
    if request.value("exclude_params") != "true" and not job.private:
        view["params"] = json.loads(job.parameters_file.read_text("utf-8"))
    if fault := request.faults.get("unknown_status"):
        view["status"] = fault.detail or "Paused"
        view["state"] = {"status": view["status"]}
    return json_answer(view)


def _list_jobs(platform: Platform, request: Request) -> Answer:
    limit, offset = int(request.value("limit") or 10), int(request.value("offset") or 0)
    now = time.monotonic()
    found = platform.book.select(lambda job: job.instance == request.crn and not job.deleted and job.hidden_until <= now)
    found = [job for job in found if _is_wanted(job, request)]
    if request.value("sort") != "ASC":
        found.reverse()
    page = found[offset : offset + limit]
    return json_answer({"jobs": [_job_view(job) for job in page], "limit": limit, "offset": offset, "count": len(found)})


def _is_wanted(job: Job, request: Request) -> bool:
    exact = {"backend": job.backend, "program": job.program, "session_id": job.session_id, "pending": "false" if job.final else "true"}
    after, before = (request.value(name) for name in ("created_after", "created_before"))
    return (
        all(request.value(name) in (None, value) for name, value in exact.items())
        and set(request.query.get("tags", ())) <= set(job.tags)
        and (after is None or job.created >= datetime.fromisoformat(after).timestamp())
        and (before is None or job.created <= datetime.fromisoformat(before).timestamp())
    )


def _results(platform: Platform, request: Request) -> Answer:
    job = _job(platform, request)
    if job.status != "Completed":
        return Answer(200, (job.reason or "").encode(), "text/plain") if job.final else Answer(204)
    text = job.result_file.read_text("utf-8")
    if fault := request.faults.get("wrong_shape"):
        text = encode(misshape(parse_result(text), fault.detail or "rows"))
    return Answer(200, text.encode())


def _metrics(platform: Platform, request: Request) -> Answer:
    job = _job(platform, request)
    times = {"created": timestamp(job.created), "running": timestamp(job.running), "finished": timestamp(job.finished)}
    usage = {"quantum_seconds": job.charged, "seconds": job.charged}
    return json_answer({"timestamps": times, "bss": {"seconds": job.charged}, "usage": usage})


def _logs(platform: Platform, request: Request) -> Answer:
    _job(platform, request)
    return Answer(200, b"", "text/plain")


def _cancel_job(platform: Platform, request: Request) -> Answer:
    job = _job(platform, request)
    if not platform.book.cancel(job):
        raise PlatformError(409, 0, f"Job can't be cancelled: it is {job.status.lower()}.", "Only pending jobs can be cancelled.")
    return Answer(204)


def _delete_job(platform: Platform, request: Request) -> Answer:
    job = _job(platform, request)
    if not job.final:
        raise PlatformError(409, 0, "Job can't be deleted before it has ended.", "Cancel it first.")
    platform.book.remove(job)
    return Answer(204)


def _tag_job(platform: Platform, request: Request) -> Answer:
    _job(platform, request).tags = list(request.json().get("tags") or [])
    return Answer(204)


JOB_ROUTES: tuple[Route, ...] = (
    Route("jobs.submit", "POST", f"{API}/jobs", _submit),
    Route("jobs.list", "GET", f"{API}/jobs", _list_jobs),
    Route("jobs.get", "GET", f"{API}/jobs/*", _get_job),
    Route("jobs.delete", "DELETE", f"{API}/jobs/*", _delete_job),
    Route("jobs.results", "GET", f"{API}/jobs/*/results", _results),
    Route("jobs.metrics", "GET", f"{API}/jobs/*/metrics", _metrics),
    Route("jobs.logs", "GET", f"{API}/jobs/*/logs", _logs),
    Route("jobs.cancel", "POST", f"{API}/jobs/*/cancel", _cancel_job),
    Route("jobs.tags", "PUT", f"{API}/jobs/*/tags", _tag_job),
)
