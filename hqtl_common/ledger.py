"""A record of every paid or long-running execution, so that nothing is paid twice whatever is killed when.

One row per request, in a SQLite file (write-ahead log, one writer at a time, any number of processes):

``intent`` (written before the submit, carries the tag the job will have) → ``submitted`` (the provider's job id) → ``done``
(raw counts) or ``failed``. Whoever finds an ``intent`` without a job id after a crash looks the job up by its tag; whoever
finds a job id adopts the job; whoever finds counts replays them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError
from hqtl_common.specs import HeadSpec

__all__ = ["Entry", "Ledger", "State", "Usage", "default_ledger_path", "request_key"]

State = Literal["intent", "submitted", "done", "failed"]

_TAG_PREFIX = "hqtl-"
_SCHEMA_VERSION = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS executions (
    key TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    backend TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('intent', 'submitted', 'done', 'failed')),
    job_id TEXT UNIQUE,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    num_rows INTEGER NOT NULL,
    shots INTEGER NOT NULL,
    qpu_seconds REAL NOT NULL,
    counts BLOB,
    details TEXT NOT NULL DEFAULT '{}'
)
"""
_COLUMNS = "key, scope, backend, state, job_id, created, updated, num_rows, shots, qpu_seconds, counts, details"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row.

    Args:
        key: Hash of the request; see :func:`request_key`.
        scope: What the execution belongs to (a run, a scoring, a request).
        backend: Name of the backend.
        state: See the module.
        job_id: The provider's identifier, once known.
        created: Unix time of the intent.
        updated: Unix time of the last change.
        num_rows: Parameter sets.
        shots: Repetitions per set.
        qpu_seconds: Estimate until done, then what was billed.
        counts: (R, 2^n) integers when done, else None.
        details: JSON-ready facts about the execution, or about its failure.
    """

    key: str
    scope: str
    backend: str
    state: State
    job_id: str | None
    created: float
    updated: float
    num_rows: int
    shots: int
    qpu_seconds: float
    counts: NDArray[np.int64] | None
    details: dict[str, Any]

    @property
    def tag(self) -> str:
        """The tag that the job carries at the provider."""
        return _TAG_PREFIX + self.key[:40]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a scope has spent or promised: jobs and QPU seconds."""

    num_jobs: int
    qpu_seconds: float


class Ledger:
    """See the module. Objects are cheap; each call opens the file, so they may be shared between threads and processes.

    Args:
        path: The SQLite file, made with mode 0600 if missing.

    Raises:
        ConfigError: It is no ledger, or one of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(path)  # options of a command are text
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            with self._connect() as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version not in (0, _SCHEMA_VERSION):
                    raise ConfigError(f"{str(path)!r} is a ledger of version {version}, not {_SCHEMA_VERSION}: update hqtl")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{str(path)!r} is not a ledger ({error}); give another file") from error

    def get(self, key: str) -> Entry | None:
        """The row of a request, or None."""
        with self._connect() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM executions WHERE key = ?", (key,)).fetchone()
        return None if row is None else _entry(row)

    def find(self, *, scope: str | None = None, state: State | None = None, job_id: str | None = None) -> list[Entry]:
        """The rows that match all that is given, oldest first."""
        wanted = {"scope": scope, "state": state, "job_id": job_id}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        with self._connect() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM executions WHERE {where} ORDER BY created, key", (*given.values(),))
            return [_entry(row) for row in rows]

    def intend(self, key: str, *, scope: str, backend: str, num_rows: int, shots: int, qpu_seconds: float, details: dict[str, Any]) -> bool:
        """Write the intent; False if a row with this key is there already (another process was first)."""
        now = time.time()
        with self._connect() as connection:
            done = connection.execute(
                "INSERT OR IGNORE INTO executions (key, scope, backend, state, created, updated, num_rows, shots, qpu_seconds, details)"
                " VALUES (?, ?, ?, 'intent', ?, ?, ?, ?, ?, ?)",
                (key, scope, backend, now, now, num_rows, shots, qpu_seconds, json.dumps(details)),
            )
            return done.rowcount == 1

    def take_over(self, key: str, created: float) -> float | None:
        """Make an old intent this process's own; None if another process was first or it is no intent any more.

        Args:
            key: The request.
            created: When the intent that was seen had been written.

        Returns:
            When it is written now: what another take-over, or a withdrawal, must name.
        """
        now = max(time.time(), math.nextafter(created, math.inf))
        with self._connect() as connection:
            done = connection.execute(
                "UPDATE executions SET created = ?, updated = ? WHERE key = ? AND state = 'intent' AND created = ?",
                (now, now, key, created),
            )
            return now if done.rowcount == 1 else None

    def withdraw(self, key: str, created: float) -> None:
        """Remove an intent whose submit was refused for certain, unless another process has taken it over since ``created``."""
        with self._connect() as connection:
            connection.execute("DELETE FROM executions WHERE key = ? AND state = 'intent' AND created = ?", (key, created))

    def submitted(self, key: str, job_id: str) -> None:
        """Record the provider's identifier."""
        self._update(key, "state = 'submitted', job_id = ?", job_id)

    def finish(self, key: str, counts: NDArray[np.int64], qpu_seconds: float, details: dict[str, Any]) -> None:
        """Record the result: counts (R, 2^n), billed seconds, and JSON-ready facts beside those of the intent."""
        assignment = "state = 'done', counts = ?, qpu_seconds = ?, details = json_patch(details, ?)"
        self._update(key, assignment, _pack(counts), qpu_seconds, json.dumps(details))

    def fail(self, key: str, reason: str) -> None:
        """Record that the job ended without a result; a result that is there stays."""
        with self._connect() as connection:
            connection.execute(
                "UPDATE executions SET state = 'failed', details = json_patch(details, ?), updated = ? WHERE key = ? AND state != 'done'",
                (json.dumps({"error": reason}), time.time(), key),
            )

    def forget(self, scope: str) -> None:
        """Remove the rows of a scope; asking the same again would pay again."""
        with self._connect() as connection:
            connection.execute("DELETE FROM executions WHERE scope = ?", (scope,))

    def usage(self, scope: str) -> Usage:
        """What the rows of a scope have spent or promised, failed ones included."""
        with self._connect() as connection:
            jobs, seconds = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(qpu_seconds), 0) FROM executions WHERE scope = ?", (scope,)
            ).fetchone()
        return Usage(int(jobs), float(seconds))

    def _update(self, key: str, assignment: str, *values: Any) -> None:
        with self._connect() as connection:
            connection.execute(f"UPDATE executions SET {assignment}, updated = ? WHERE key = ?", (*values, time.time(), key))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level="IMMEDIATE")
        try:
            connection.execute("PRAGMA synchronous=FULL")  # an intent must be on disk before the submit
            with connection:
                yield connection
        finally:
            connection.close()


def default_ledger_path() -> Path:
    """``$HQTL_LEDGER``, else ``$XDG_DATA_HOME/hqtl/ledger.sqlite``, else ``~/.local/share/hqtl/ledger.sqlite``."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(os.environ.get("HQTL_LEDGER") or base / "hqtl" / "ledger.sqlite")


def request_key(
    scope: str,
    backend: str,
    options: dict[str, Any],
    spec: HeadSpec,
    weights: NDArray[np.float64],
    angles: NDArray[np.float64],
    stream: int,
) -> str:
    """SHA-256 (hex) over everything that decides what a request asks for.

    Args:
        scope: Requests of different scopes are different, even if they ask the same.
        backend: Name of the backend.
        options: JSON-ready options that change the answer.
        spec: The head.
        weights: (L, n) or (R, L, n), radians.
        angles: (R, n), radians.
        stream: See :meth:`hqtl_common.backends.base.Backend.run`.
    """
    head = [scope, backend, options, spec.to_dict(), weights.shape, angles.shape, stream]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(weights, dtype="<f8").tobytes() + np.ascontiguousarray(angles, dtype="<f8").tobytes())
    return digest.hexdigest()


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    counts = values.pop("counts")
    return Entry(**{**values, "details": json.loads(values["details"])}, counts=None if counts is None else _unpack(counts))


def _pack(counts: NDArray[np.int64]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, counts=np.asarray(counts, dtype=np.int64))
    return buffer.getvalue()


def _unpack(data: bytes) -> NDArray[np.int64]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        counts: NDArray[np.int64] = stored["counts"]
        return counts
