"""The file of the jobs: SQLite in the ledger's own file, so that a job and its paid executions are kept together.

Any number of processes may add, read and cancel; only the one that holds the lock (:mod:`serving.jobs.runner`) takes jobs up.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from hqtl_common.errors import ConfigError
from hqtl_common.ledger import Ledger
from serving.errors import ConflictError, NotFoundError, NotReadyError, OverloadedError
from serving.jobs.records import FINISHED, STATES, Job, Spent, State, Submission
from serving.jobs.rows import COLUMNS, CREATE, INDEXES, job_of, row_of

__all__ = ["JobStore", "Spending", "readable"]

# Told what an owner, and what all owners have promised or spent since the day began; raises to refuse a job.
Spending = Callable[[Spent, Spent], None]

_BUSY_S = 20.0  # how long others may hold the file
_OPEN = "state IN ('queued', 'running')"
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM service_jobs"
_SPENT = (
    "SELECT COALESCE(SUM(num_jobs), 0), COALESCE(SUM(qpu_seconds), 0) FROM service_jobs WHERE owner = COALESCE(?, owner) AND created >= ?"
)


class JobStore:
    """See the module. Each call opens the file, so that objects may be shared between threads.

    Args:
        path: The file, made with mode 0600 if missing.
        max_waiting: Unfinished jobs that are kept at once.

    Raises:
        ConfigError: It is no file of jobs.
    """

    def __init__(self, path: Path, max_waiting: int) -> None:
        self.ledger = Ledger(path)
        self.path = self.ledger.path
        self._max_waiting = max_waiting
        with self._connect() as connection:
            connection.execute(CREATE)
            found = tuple(row[1] for row in connection.execute("PRAGMA table_info(service_jobs)"))
            if found != COLUMNS:
                raise ConfigError(f"the jobs in {str(path)!r} were written by another version of hqtl: give another file")
            for statement in INDEXES:
                connection.execute(statement)

    def add(self, wanted: Submission, check: Spending, day_start: float) -> tuple[Job, bool]:
        """Keep a job, or find the one that was asked for by the same idempotency key before; and whether it is new.

        One transaction sees what has been spent and promises this job, so that two requests cannot both take the last second.

        Args:
            wanted: The job.
            check: Called with what the owner, and what all owners have spent since ``day_start``.
            day_start: Unix time.

        Raises:
            ConflictError: The idempotency key was used for another request.
            OverloadedError: Too many jobs are unfinished.
            QuotaError: From ``check``.
        """
        with self._connect() as connection:
            known = connection.execute(
                f"{_SELECT} WHERE owner = ? AND idempotency_key = ?", (wanted.owner, wanted.idempotency_key)
            ).fetchone()
            if known is not None:
                job = job_of(known)
                if job.submission.content != wanted.content:
                    raise ConflictError(f"the Idempotency-Key was used for another request, job {job.id}; use a new key")
                return job, False
            (waiting,) = connection.execute(f"SELECT COUNT(*) FROM service_jobs WHERE {_OPEN}").fetchone()
            if waiting >= self._max_waiting:
                raise OverloadedError(f"{waiting} jobs are unfinished, the limit of this service; try again later")
            if wanted.paid:
                check(_spent(connection, wanted.owner, day_start), _spent(connection, None, day_start))
            row = row_of(wanted)
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO service_jobs ({', '.join(row)}) VALUES ({marks})", (*row.values(),))
            return job_of(connection.execute(f"{_SELECT} WHERE id = ?", (row["id"],)).fetchone()), True

    def get(self, identifier: str, owner: str | None = None) -> Job:
        """One job.

        Args:
            identifier: Of the job.
            owner: Whose it must be, None for anybody's.

        Raises:
            NotFoundError: There is none, or it is another's.
        """
        with self._connect("DEFERRED") as connection:
            row = connection.execute(f"{_SELECT} WHERE id = ? AND owner = COALESCE(?, owner)", (identifier, owner)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no job {identifier[:64]!r} of this key")
        return job_of(row)

    def of(self, owner: str, *, state: State | None = None, before: int | None = None, limit: int = 20) -> list[Job]:
        """The jobs of an owner, the latest first.

        Args:
            owner: Identifier of the key.
            state: Only those in it.
            before: Only those with a lower number.
            limit: At most so many.
        """
        where = "owner = ? AND state = COALESCE(?, state) AND number < COALESCE(?, number + 1)"
        return self._find(f"{where} ORDER BY number DESC LIMIT ?", owner, state, before, limit)

    def position(self, job: Job) -> int:
        """How many unfinished jobs of the same backend and bundle came before it."""
        with self._connect("DEFERRED") as connection:
            (ahead,) = connection.execute(
                f"SELECT COUNT(*) FROM service_jobs WHERE {_OPEN} AND backend = ? AND bundle = ? AND number < ?",
                (job.submission.backend, job.submission.bundle, job.number),
            ).fetchone()
        return int(ahead)

    def spent(self, owner: str | None, since: float) -> Spent:
        """What an owner, or all of them where it is None, have promised or spent since a Unix time."""
        with self._connect("DEFERRED") as connection:
            return _spent(connection, owner, since)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._connect("DEFERRED") as connection:
            return dict.fromkeys(STATES, 0) | dict(connection.execute("SELECT state, COUNT(*) FROM service_jobs GROUP BY state"))

    def ask_to_cancel(self, identifier: str, owner: str) -> Job:
        """Cancel a job that costs nothing or has not begun; of another, note that it is to be cancelled at the provider.

        Raises:
            NotFoundError: There is none, or it is another's.
            ConflictError: It is finished.
        """
        with self._connect() as connection:
            at_once = "state = 'cancelled', finished = ?, error = NULL, num_jobs = 0, qpu_seconds = 0"
            mine = f"id = ? AND owner = ? AND {_OPEN}"
            free = f"{mine} AND (NOT paid OR tries = 0)"
            connection.execute(f"UPDATE service_jobs SET {at_once} WHERE {free}", (time.time(), identifier, owner))
            connection.execute(f"UPDATE service_jobs SET cancel = 1 WHERE {mine}", (identifier, owner))
        job = self.get(identifier, owner)
        if job.state in ("done", "failed"):
            raise ConflictError(f"job {job.id} is {job.state} and cannot be cancelled any more")
        return job

    def take_back(self, but: Collection[str] = ()) -> None:
        """Queue again what was running when its process died; its executions are in the ledger.

        Args:
            but: Identifiers of the jobs that do run.

        This method and those below are for the one process that takes jobs up.
        """
        self._change("state = 'queued', retry_at = 0", f"state = 'running' AND id NOT IN ({', '.join('?' * len(but))})", *but)

    def take(self, bundle: str, paid: bool) -> Job | None:
        """Take up the next job that waits; None where none does."""
        with self._connect() as connection:
            row = connection.execute(
                f"{_SELECT} WHERE state = 'queued' AND bundle = ? AND paid = ? AND retry_at <= ? AND NOT cancel ORDER BY number LIMIT 1",
                (bundle, paid, time.time()),
            ).fetchone()
            if row is None:
                return None
            now, job = time.time(), job_of(row)
            connection.execute(
                "UPDATE service_jobs SET state = 'running', tries = tries + 1, started = COALESCE(started, ?) WHERE id = ?", (now, job.id)
            )
            return dataclasses.replace(job, state="running", tries=job.tries + 1, started=job.started or now)

    def finish(self, identifier: str, answer: dict[str, Any]) -> None:
        """Keep the answer, and what was billed, unless the job was cancelled."""
        changes = "state = 'done', answer = ?, error = NULL, finished = ?, qpu_seconds = ?"
        billed = answer["execution"]["qpu_seconds"]
        self._change(changes, "id = ? AND state = 'running'", json.dumps(answer), time.time(), billed, identifier)

    def fail(self, identifier: str, code: str, message: str) -> None:
        """Keep why it ended without an answer, unless the job was cancelled. What it had promised stays spent."""
        error = json.dumps({"code": code, "message": message})
        self._change("state = 'failed', error = ?, finished = ?", f"id = ? AND {_OPEN}", error, time.time(), identifier)

    def retry(self, identifier: str, seconds: float, code: str, message: str) -> None:
        """Queue it again, to be taken up after a while."""
        error = json.dumps({"code": code, "message": message})
        changes = "state = 'queued', retry_at = ?, error = ?"
        self._change(changes, "id = ? AND state = 'running'", time.time() + seconds, error, identifier)

    def cancelled(self, identifier: str, *, spent: bool) -> None:
        """It is cancelled; what it had promised stays spent if it had been submitted."""
        changes = f"state = 'cancelled', error = NULL, finished = ?{'' if spent else ', num_jobs = 0, qpu_seconds = 0'}"
        self._change(changes, f"id = ? AND {_OPEN}", time.time(), identifier)

    def keep(self, identifier: str) -> None:
        """It cannot be cancelled any more."""
        self._change("cancel = 0", "id = ?", identifier)

    def to_cancel(self) -> list[Job]:
        """The jobs to be cancelled at their provider."""
        return self._find(f"cancel AND {_OPEN}")

    def to_tell(self) -> list[Job]:
        """Finished jobs whose web-hook is to be told now."""
        return self._find(f"hook = 'pending' AND state IN {FINISHED} AND hook_at <= ?", time.time())

    def told(self, identifier: str, *, delivered: bool, again_in: float | None = None) -> None:
        """A web-hook was told, or is to be tried again after some seconds, or never."""
        state = "delivered" if delivered else "failed" if again_in is None else "pending"
        self._change("hook = ?, hook_tries = hook_tries + 1, hook_at = ?", "id = ?", state, time.time() + (again_in or 0), identifier)

    def forget(self, before: float) -> None:
        """Remove jobs that were finished before a Unix time, with what the ledger has of them."""
        for job in self._find("finished < ?", before):
            with readable():
                self.ledger.forget(job.id)
            with self._connect() as connection:
                connection.execute("DELETE FROM service_jobs WHERE id = ?", (job.id,))

    def _find(self, where: str, *values: Any) -> list[Job]:
        with self._connect("DEFERRED") as connection:
            return [job_of(row) for row in connection.execute(f"{_SELECT} WHERE {where}", values)]

    def _change(self, changes: str, where: str, *values: Any) -> None:
        with self._connect() as connection:
            connection.execute(f"UPDATE service_jobs SET {changes} WHERE {where}", values)

    @contextmanager
    def _connect(self, mode: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """One transaction; unless deferred it keeps other writers out from its beginning."""
        with readable(), closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"BEGIN {mode}")
            with connection:
                yield connection


@contextmanager
def readable() -> Iterator[None]:
    """What goes wrong with the file, here or in the ledger's part of it, as an error that passes.

    Raises:
        NotReadyError: The file is locked, gone, full or damaged.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise NotReadyError(f"the file of the jobs cannot be used now: {error}") from error


def _spent(connection: sqlite3.Connection, owner: str | None, since: float) -> Spent:
    jobs, seconds = connection.execute(_SPENT, (owner, since)).fetchone()
    return Spent(int(jobs), float(seconds))
