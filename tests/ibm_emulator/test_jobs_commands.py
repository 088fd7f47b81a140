"""``hqtl-train jobs cancel`` and ``adopt`` on jobs that a process left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hqtl_common import HeadSpec, get_backend
from hqtl_common.errors import JobFailedError
from hqtl_common.ledger import Entry, Ledger
from hqtl_common.records import Evaluation
from tests.ibm_emulator.conftest import Running
from training.cli import main
from training.emulator import Fault

SPEC = HeadSpec()
WEIGHTS, ANGLES = np.full((1, 4), 0.3), np.linspace(-1, 1, 12).reshape(3, 4)
WAITING = {"queue_seconds": (1e5, 1e5), "time_factor": 1.0}


class Killed(BaseException):
    """The process died here."""


def ask(path: Path, **options: Any) -> Evaluation:
    given: dict[str, Any] = {"shots": 200, "seed": 1, "max_jobs": 3, "scope": "s", "ledger": path, "optimization_level": 1}
    return get_backend("ibm:ibm_lima", **given, poll_s=0.05, max_poll_s=0.3, settle_s=2.0, **options).run(SPEC, WEIGHTS, ANGLES)


PLACES = {
    "submit": "hqtl_common.backends.ibm.IBMProvider.submit",  # nothing is sent yet
    "submitted": "hqtl_common.ledger.Ledger.submitted",  # the job is accepted, its identifier is lost
    "_wait": "hqtl_common.backends.recorded.RecordedExecutor._wait",
}


def killed_in(step: str, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Entry:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(PLACES[step], die)
        with pytest.raises(Killed):
            ask(path, **options)
    (entry,) = Ledger(path).find()
    return entry


def call(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["jobs", *arguments, "--ledger", str(path)])


@pytest.mark.parametrize(("step", "state"), [("_wait", "submitted"), ("submitted", "intent")])
def test_an_abandoned_job_is_adopted(step: str, state: str, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running() as emulator:
        entry = killed_in(step, path, monkeypatch)
        assert entry.state == state
        answer = call(path, "adopt", entry.job_id or entry.key[:16])
        assert answer.exit_code == 0, answer.stderr
        (adopted,) = Ledger(path).find()
        shown = json.loads(answer.stdout)
        assert (shown["state"], shown["job_id"], shown["parameter_sets"]) == ("done", adopted.job_id, 3)
        assert adopted.counts is not None
        assert adopted.counts.sum(axis=1).tolist() == [200] * 3
        assert adopted.qpu_seconds == emulator.stats()["qpu_seconds"] > 0
        assert adopted.details["depth"] > 0, "what was known before must stay"
        assert ask(path).record.job_ids == (adopted.job_id,)
        assert emulator.stats()["submits_received"] == 1
        again = call(path, "adopt", entry.key[:16])
        assert (again.exit_code, again.stdout) == (1, "")
        assert "is done; only submitted ones" in again.stderr


def test_an_intent_without_a_job_is_not_submitted_by_adopting_it(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running() as emulator:
        entry = killed_in("submit", path, monkeypatch)
        for command in ("adopt", "cancel"):
            answer = call(path, command, entry.key)
            assert answer.exit_code == 1
            assert "no job carries the tag" in answer.stderr
        assert Ledger(path).find() == [entry]
        assert emulator.stats()["submits_received"] == 0


@pytest.mark.parametrize("step", ["_wait", "submitted"])
def test_a_queued_job_is_cancelled(step: str, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running(**WAITING) as emulator:
        entry = killed_in(step, path, monkeypatch)
        answer = call(path, "cancel", entry.key[:12])
        assert (answer.exit_code, answer.stdout) == (0, f"{entry.key[:12]}: cancelled\n"), answer.stderr
        (cancelled,) = Ledger(path).find()
        assert (cancelled.state, cancelled.details["error"]) == ("failed", "cancelled by the user")
        assert emulator.stats()["jobs"] == {"Cancelled": 1}
        assert emulator.stats()["qpu_seconds"] == 0
        assert call(path, "cancel", entry.key[:12]).exit_code == 1


def test_a_finished_job_is_not_cancelled(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running() as emulator:
        entry = killed_in("_wait", path, monkeypatch)
        while emulator.stats()["jobs_executed"] == 0 or emulator.stats()["jobs"] != {"Completed": 1}:
            time.sleep(0.02)
        answer = call(path, "cancel", str(entry.job_id))
        assert answer.exit_code == 1
        assert "cannot be cancelled" in answer.stderr
        assert Ledger(path).find() == [entry], "its result is paid and can still be adopted"


def test_a_job_that_failed_is_recorded_by_adopting_it(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running() as emulator:
        emulator.faults.add(Fault(kind="fail", detail="the qubits are cold"))
        entry = killed_in("_wait", path, monkeypatch)
        answer = call(path, "adopt", str(entry.job_id))
        assert answer.exit_code == 1
        assert "the qubits are cold" in answer.stderr
        assert [found.state for found in Ledger(path).find()] == ["failed"]


def test_a_job_with_mitigation_is_adopted_or_left_alone(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger must know its PUBs to check the result; else the command that began it adopts it."""
    path = tmp_path / "ledger"
    options = {"mitigation": "readout", "calibration_shots": 500}
    with running() as emulator:
        entry = killed_in("_wait", path, monkeypatch, **options)
        answer = call(path, "adopt", str(entry.job_id))
        if answer.exit_code:
            assert "run the command that began it again" in answer.stderr
            assert Ledger(path).find() == [entry]
        assert ask(path, **options).record.job_ids == (entry.job_id,)
        assert emulator.stats()["submits_received"] == 1


def test_cancelling_stops_the_process_that_waits(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with running(**WAITING):
        entry = killed_in("_wait", path, monkeypatch)
        waits: list[str] = []
        original = Ledger.get

        def get(self: Ledger, key: str) -> Entry | None:
            if not waits:
                waits.append(key)
                found = original(self, key)
                assert call(path, "cancel", str(entry.job_id)).exit_code == 0
                return found
            return original(self, key)

        monkeypatch.setattr(Ledger, "get", get)
        with pytest.raises(JobFailedError, match="submits it anew"):
            ask(path)
