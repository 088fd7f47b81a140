"""The table of the jobs: its columns, and how a job becomes a row and a row a job."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from typing import Any

from serving.jobs.records import STATES, Estimate, Job, Submission

__all__ = ["COLUMNS", "CREATE", "INDEXES", "job_of", "row_of"]

COLUMNS = (
    *("number", "id", "owner", "state", "backend", "paid", "bundle", "created", "started", "finished", "tries", "retry_at", "cancel"),
    *("idempotency_key", "content", "request", "inputs", "num_jobs", "qpu_seconds", "fallback", "answer", "error"),
    *("hook", "hook_tries", "hook_at"),
)
CREATE = f"""
CREATE TABLE IF NOT EXISTS service_jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN {STATES}),
    backend TEXT NOT NULL,
    paid INTEGER NOT NULL,
    bundle TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    retry_at REAL NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT,
    content TEXT NOT NULL,
    request TEXT NOT NULL,
    inputs BLOB NOT NULL,
    num_jobs INTEGER NOT NULL,
    qpu_seconds REAL NOT NULL,
    fallback TEXT,
    answer TEXT,
    error TEXT,
    hook TEXT CHECK (hook IN ('pending', 'delivered', 'failed')),
    hook_tries INTEGER NOT NULL DEFAULT 0,
    hook_at REAL NOT NULL DEFAULT 0,
    UNIQUE (owner, idempotency_key)
)
"""
# What is asked twice a second must not read through the finished jobs of a month; each entry ends with the number of its job.
INDEXES = (
    *(f"CREATE INDEX IF NOT EXISTS service_jobs_{column} ON service_jobs ({column})" for column in ("state", "owner", "created")),
    "CREATE INDEX IF NOT EXISTS service_jobs_hook ON service_jobs (hook) WHERE hook = 'pending'",
)


def row_of(wanted: Submission) -> dict[str, Any]:
    """The row of a new job, by column; the others have their defaults."""
    now = time.time()
    request = {name: getattr(wanted, name) for name in ("filenames", "options", "webhook", "reason")}
    return {
        "id": uuid.uuid4().hex,
        **{name: getattr(wanted, name) for name in ("owner", "backend", "paid", "bundle", "idempotency_key", "content", "inputs")},
        "state": "running" if wanted.running else "queued",
        "created": now,
        "started": now if wanted.running else None,
        "tries": int(wanted.running),
        "request": json.dumps(request | {"estimate": dataclasses.asdict(wanted.estimate)}),
        "num_jobs": wanted.estimate.jobs,
        "qpu_seconds": wanted.estimate.qpu_seconds,
        "fallback": None if wanted.fallback is None else json.dumps(wanted.fallback),
        "hook": None if wanted.webhook is None else "pending",
    }


def job_of(row: tuple[Any, ...]) -> Job:
    """A row, in the order of :data:`COLUMNS`, as a job."""
    values = dict(zip(COLUMNS, row, strict=True))
    request = json.loads(values["request"])
    submission = Submission(
        **{name: values[name] for name in ("owner", "backend", "bundle", "idempotency_key", "content", "inputs")},
        paid=bool(values["paid"]),
        filenames=tuple(request["filenames"]),
        options=request["options"],
        estimate=Estimate(**request["estimate"]),
        webhook=request["webhook"],
        reason=request["reason"],
        fallback=None if values["fallback"] is None else json.loads(values["fallback"]),
    )
    plain = ("number", "id", "state", "created", "started", "finished", "tries", "qpu_seconds", "hook", "hook_tries")
    parsed: dict[str, Any] = {name: values[name] and json.loads(values[name]) for name in ("answer", "error")}
    return Job(**{name: values[name] for name in plain}, **parsed, cancel=bool(values["cancel"]), submission=submission)
