"""All routes of the emulated platform: account, machines, sessions, and the table with those of jobs.

Forms are those that the installed client reads (``qiskit_ibm_runtime.api.rest``) and of
https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from training.emulator.job_routes import JOB_ROUTES
from training.emulator.jobs import Session, timestamp
from training.emulator.options import INSTANCES, Instance
from training.emulator.platform import Platform
from training.emulator.wire import API, Answer, Handler, Request, Route, json_answer

__all__ = ["ROUTES", "find_route"]

_DAY = 86400.0


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The route of a request and the arguments in its path."""
    for route in ROUTES:
        arguments = route.arguments(method, path)
        if arguments is not None:
            return route, arguments
    return None


# ---------------------------------------------------------------- the account


def _token(platform: Platform, request: Request) -> Answer:
    return json_answer(platform.tokens.issue())


def _search(platform: Platform, request: Request) -> Answer:
    items = [
        {"crn": one.crn, "name": one.plan, "service_plan_unique_id": one.plan_id, "doc": {"extensions": {"allocations": 1}}, "tags": []}
        for one in INSTANCES
    ]
    return json_answer({"items": items, "limit": 100})


def _plan(instance: Instance) -> Handler:
    entry = {"overview_ui": {"en": {"display_name": instance.display_name}}, "metadata": {"pricing": {"type": instance.pricing_type}}}
    return lambda platform, request: json_answer({"id": instance.plan_id, **entry})


def _usage(platform: Platform, request: Request) -> Answer:
    instance = platform.instance(request.crn)
    consumed, limit, now = platform.consumed_seconds(instance), platform.limit_seconds(instance), time.time()
    usage: dict[str, Any] = {
        "instance_id": instance.crn,
        "plan_id": instance.plan_id,
        "usage_consumed_seconds": consumed,
        "usage_period": {"start_time": timestamp(now - 28 * _DAY), "end_time": timestamp(now)},
        "usage_limit_reached": limit is not None and consumed >= limit,
    }
    return json_answer(usage if limit is None else {**usage, "usage_limit_seconds": limit, "usage_allocation_seconds": limit})


def _instance(platform: Platform, request: Request) -> Answer:
    instance = platform.instance(request.crn)
    return json_answer({"id": instance.crn, "plan_id": instance.plan_id})


# ---------------------------------------------------------------- machines


def _backends(platform: Platform, request: Request) -> Answer:
    down = "maintenance" in request.faults
    devices = [
        {
            "name": device.name,
            "status": {"name": "paused" if down else "online", "reason": "maintenance" if down else "available"},
            "qubits": device.num_qubits,
            "queue_length": platform.book.pending(device.name),
            "is_simulator": False,
        }
        for device in platform.devices.values()
    ]
    return json_answer({"devices": devices})


def _configuration(platform: Platform, request: Request) -> Answer:
    return json_answer(platform.device(request.arguments[0]).configuration)


def _properties(platform: Platform, request: Request) -> Answer:
    before = request.value("updated_before")
    at = datetime.fromisoformat(before).timestamp() if before else None
    return json_answer(platform.device(request.arguments[0]).properties(at))


def _status(platform: Platform, request: Request) -> Answer:
    device, down = platform.device(request.arguments[0]), "maintenance" in request.faults
    state = {"state": not down, "status": "maintenance" if down else "active", "message": "", "backend_version": "emulated"}
    return json_answer({**state, "length_queue": platform.book.pending(device.name)})


# ---------------------------------------------------------------- sessions


def _session_view(platform: Platform, session: Session) -> dict[str, Any]:
    jobs = platform.book.jobs_of(session)
    return {
        "id": session.id,
        "backend_name": session.backend,
        "mode": session.mode,
        "state": platform.book.state_of(session),
        "accepting_jobs": session.accepting_jobs,
        "interactive_ttl": 60,
        "max_ttl": session.max_ttl,
        "active_ttl": session.max_ttl,
        "started_at": timestamp(session.activated),
        "activated_at": timestamp(session.activated),
        "closed_at": timestamp(session.closed),
        "last_job_started": timestamp(max((job.running for job in jobs if job.running), default=None)),
        "last_job_completed": timestamp(max((job.finished for job in jobs if job.finished), default=None)),
        "elapsed_time": platform.session_seconds(session),
    }


def _create_session(platform: Platform, request: Request) -> Answer:
    body = request.json()
    mode, backend = body.get("mode") or "dedicated", str(body.get("backend"))
    session = platform.open_session(platform.instance(request.crn), backend, mode, int(body.get("max_ttl") or 8 * 3600))
    return json_answer(_session_view(platform, session))


def _session(platform: Platform, request: Request) -> Session:
    return platform.session(request.arguments[0], platform.instance(request.crn))


def _get_session(platform: Platform, request: Request) -> Answer:
    return json_answer(_session_view(platform, _session(platform, request)))


def _update_session(platform: Platform, request: Request) -> Answer:
    session = _session(platform, request)
    if request.json().get("accepting_jobs") is False:
        platform.book.close_session(session, cancel=False)
    return Answer(204)


def _cancel_session(platform: Platform, request: Request) -> Answer:
    platform.book.close_session(_session(platform, request), cancel=True)
    return Answer(204)


ROUTES: tuple[Route, ...] = (
    Route("iam.token", "POST", "/identity/token", _token, authorized=False),
    Route("search.instances", "POST", "/v3/resources/search", _search),
    *(Route("catalog.plan", "GET", f"{API}/{instance.plan_id}", _plan(instance)) for instance in INSTANCES),
    Route("version.get", "GET", f"{API}/version", lambda platform, request: json_answer({"api": "emulated"}), authorized=False),
    Route("instance.get", "GET", f"{API}/instance", _instance),
    Route("usage.get", "GET", f"{API}/instances/usage", _usage),
    Route("backends.list", "GET", f"{API}/backends", _backends),
    Route("backends.configuration", "GET", f"{API}/backends/*/configuration", _configuration),
    Route("backends.properties", "GET", f"{API}/backends/*/properties", _properties),
    Route("backends.status", "GET", f"{API}/backends/*/status", _status),
    *JOB_ROUTES,
    Route("sessions.create", "POST", f"{API}/sessions", _create_session),
    Route("sessions.get", "GET", f"{API}/sessions/*", _get_session),
    Route("sessions.update", "PATCH", f"{API}/sessions/*", _update_session),
    Route("sessions.cancel", "DELETE", f"{API}/sessions/*/close", _cancel_session),
)
