"""The recorded executions of the ledger: find, describe, cancel, adopt."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from hqtl_common.backends.recorded import RecordedExecutor, Request
from hqtl_common.errors import InputError
from hqtl_common.ledger import Entry, Ledger, default_ledger_path

__all__ = ["adopt", "cancel", "describe", "find_entry", "open_ledger"]


def open_ledger(path: Path | None) -> Ledger:
    """The ledger at ``path``, or the user's.

    Raises:
        ConfigError: The file is no ledger.
    """
    return Ledger(path or default_ledger_path())


def find_entry(ledger: Ledger, job: str) -> Entry:
    """The execution with a job id, or whose key begins so.

    Raises:
        InputError: There is none, or more than one.
    """
    found = ledger.find(job_id=job) or [entry for entry in ledger.find() if job and entry.key.startswith(job)]
    if len(found) != 1:
        raise InputError(f"{len(found)} recorded executions are called {job!r}; hqtl-train jobs list shows all")
    return found[0]


def describe(entry: Entry, *, details: bool = False) -> dict[str, Any]:
    """JSON-ready facts about an execution, its counts left out."""
    facts: dict[str, Any] = {
        "key": entry.key,
        "state": entry.state,
        "job_id": entry.job_id,
        "backend": entry.backend,
        "scope": entry.scope,
        "created": datetime.datetime.fromtimestamp(entry.created, datetime.UTC).isoformat(timespec="seconds"),
        "parameter_sets": entry.num_rows,
        "shots": entry.shots,
        "qpu_seconds": entry.qpu_seconds,
    }
    return {**facts, "tag": entry.tag, "details": entry.details} if details else facts


def cancel(ledger: Ledger, entry: Entry) -> None:
    """Cancel the job of an execution that has not finished.

    Raises:
        InputError: It has no job, or has finished.
        BackendError: The platform did not take it.
    """
    provider = _provider_of(entry)
    provider.cancel(_running_job(ledger, entry, provider))
    ledger.fail(entry.key, "cancelled by the user")


def adopt(ledger: Ledger, entry: Entry) -> Entry:
    """Wait for the job of an execution and record its result.

    Raises:
        InputError: It has no job, or has finished, or its job holds more than the ledger can tell.
        JobFailedError: The job ended without a result.
        BackendError: The platform cannot be reached.
    """
    provider = _provider_of(entry)
    request = Request(entry.key, entry.num_rows, entry.shots, entry.qpu_seconds, _payload(entry))
    _running_job(ledger, entry, provider)
    return RecordedExecutor(ledger, provider, entry.scope).run(request)


def _provider_of(entry: Entry) -> Any:
    if entry.state not in ("intent", "submitted"):
        raise InputError(f"the execution {entry.key[:12]} is {entry.state}; only submitted ones have a job that runs")
    from hqtl_common.backends.ibm import open_provider

    return open_provider(entry.backend, mode="job", dynamical_decoupling=None, twirling=False, rep_delay=None)


def _running_job(ledger: Ledger, entry: Entry, provider: Any) -> str:
    """Its identifier; that of an intent, whose process died in the submit, is found by its tag and recorded."""
    if entry.job_id is not None:
        return entry.job_id
    job_id: str | None = provider.find(entry.tag)
    if job_id is None:
        raise InputError(f"no job carries the tag of the execution {entry.key[:12]}; run the command that began it again")
    ledger.submitted(entry.key, job_id)
    return job_id


def _payload(entry: Entry) -> Any:
    """What the result is checked against; nothing that could be submitted."""
    from hqtl_common.backends.ibm import Payload, Pub

    pubs = entry.details.get("pubs", [[entry.num_rows, entry.shots]])
    executions = sum(rows * shots for rows, shots in pubs)
    if entry.details.get("executions", executions) != executions:
        raise InputError(f"the job of the execution {entry.key[:12]} holds mitigation as well; run the command that began it again")
    return Payload(tuple(Pub(_no_circuit, {}, rows, shots) for rows, shots in pubs))


def _no_circuit() -> Any:
    raise AssertionError("an adopted job is never submitted")
