"""The ledger's protocol against a provider that loses answers, lags and fails, in processes that die anywhere."""

from __future__ import annotations

import random
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hqtl_common import ledger as ledger_module
from hqtl_common.backends import recorded
from hqtl_common.backends.recorded import Budget, JobStatus, RecordedExecutor, Request, Timing, UncertainSubmitError
from hqtl_common.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    BudgetExceededError,
    ConfigError,
    JobFailedError,
)
from hqtl_common.ledger import Ledger, request_key
from hqtl_common.specs import HeadSpec

LAG = 20.0
TIMING = Timing(settle=60, poll_first=5, poll_longest=30)


class Killed(BaseException):
    """The process died here."""


class Clock:
    """Time that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class Machine:
    """A provider with faults; jobs appear in the listing ``LAG`` seconds after they were accepted."""

    name = "ibm:test"

    def __init__(self, clock: Clock, rng: random.Random, faults: float = 0.0, failing_jobs: int = 0) -> None:
        self.clock, self.rng, self.faults = clock, rng, faults
        self.failing_jobs = failing_jobs
        self.accepted: dict[str, tuple[str, float]] = {}  # job id → tag, time

    def _fault(self) -> bool:
        return self.rng.random() < self.faults

    def submit(self, payload: Any, tag: str) -> str:
        if self._fault():
            self.clock.sleep(20)
            raise UncertainSubmitError("504 before acceptance")
        job_id = f"job-{len(self.accepted)}"
        self.accepted[job_id] = (tag, self.clock.now)
        if self._fault():
            self.clock.sleep(20)
            raise UncertainSubmitError("504 after acceptance")
        return job_id

    def find(self, tag: str) -> str | None:
        if self._fault() and self._fault():
            raise BackendUnavailableError("listing is down")
        return next((i for i, (t, accepted) in self.accepted.items() if t == tag and self.clock.now - accepted >= LAG), None)

    def status(self, job_id: str) -> JobStatus:
        if self._fault():
            return JobStatus("unknown")
        number = int(job_id.removeprefix("job-"))
        if number < self.failing_jobs:
            return JobStatus("failed", "Cancelled - Ran too long")
        return JobStatus("done" if self.clock.now - self.accepted[job_id][1] > 30 else "queued")

    def fetch(self, job_id: str, request: Request) -> tuple[np.ndarray, float, dict[str, Any]]:
        if self._fault() and self._fault():
            raise BackendUnavailableError("truncated")
        seed = zlib.crc32(self.accepted[job_id][0].encode())
        return np.random.default_rng(seed).integers(0, 100, size=(request.num_rows, 16)), 2.5, {"depth": 9}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = types.SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now, sleep=clock.sleep)
    monkeypatch.setattr(recorded, "time", fake)
    monkeypatch.setattr(ledger_module, "time", fake)
    return clock


def request_of(number: int, seconds: float = 2.0) -> Request:
    angles = np.full((3, 4), float(number))
    key = request_key("run", "ibm:test", {"shots": 100}, HeadSpec(), np.zeros((1, 4)), angles, 0)
    return Request(key, num_rows=3, shots=100, qpu_seconds=seconds, payload=None, facts=lambda: {"layout": [3, 1]})


def executor(path: Path, machine: Machine, **options: Any) -> RecordedExecutor:
    return RecordedExecutor(Ledger(path), machine, "run", timing=options.pop("timing", TIMING), sleep=machine.clock.sleep, **options)


def test_a_finished_request_is_replayed(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))
    first = executor(tmp_path / "l.sqlite", machine).run(request_of(1))
    second = executor(tmp_path / "l.sqlite", machine).run(request_of(1))
    assert len(machine.accepted) == 1
    assert first.counts is not None
    np.testing.assert_array_equal(first.counts, second.counts)
    assert (second.qpu_seconds, second.details, second.job_id, second.state) == (2.5, {"layout": [3, 1], "depth": 9}, "job-0", "done")
    assert Ledger(tmp_path / "l.sqlite").usage("run").qpu_seconds == 2.5


def dying(function: Callable[..., Any], rng: random.Random, odds: float) -> Callable[..., Any]:
    """``function``, in a process that may die right before or right after it."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if rng.random() < odds:
            raise Killed
        result = function(*args, **kwargs)
        if rng.random() < odds:
            raise Killed
        return result

    return wrapper


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_whatever_dies_or_is_lost_every_request_is_paid_once(tmp_path_factory: pytest.TempPathFactory, clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("ledger") / "l.sqlite"
    machine = Machine(clock, rng, faults=0.3)
    results = []
    for number in range(3):
        for _ in range(200):
            runner = executor(path, machine)
            for target, names in ((machine, ("submit", "find", "fetch")), (runner.ledger, ("intend", "submitted", "finish", "take_over"))):
                for name in names:
                    original = getattr(type(target), name).__get__(target)
                    setattr(target, name, dying(original, rng, 0.08))
            try:
                results.append(runner.run(request_of(number)).counts)
                break
            except (Killed, BackendUnavailableError):
                clock.sleep(rng.choice([0.0, 3.0, 100.0]))
    assert len(results) == 3
    tags = [tag for tag, _ in machine.accepted.values()]
    assert len(tags) == len(set(tags)) == 3


def test_a_job_without_an_id_is_adopted_by_its_tag(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))
    runner = executor(tmp_path / "l.sqlite", machine)
    runner.ledger.submitted = dying(runner.ledger.submitted, random.Random(0), 1.0)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        runner.run(request_of(1))
    assert executor(tmp_path / "l.sqlite", machine).run(request_of(1)).job_id == "job-0"
    assert len(machine.accepted) == 1


def test_failed_jobs_are_reported_and_tried_anew_on_the_next_run(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0), failing_jobs=2)
    for number in range(2):
        with pytest.raises(JobFailedError, match="Ran too long") as caught:
            executor(tmp_path / "l.sqlite", machine).run(request_of(1))
        assert caught.value.job_id == f"job-{number}"
    assert executor(tmp_path / "l.sqlite", machine).run(request_of(1)).job_id == "job-2"
    assert Ledger(tmp_path / "l.sqlite").usage("run").num_jobs == 3  # failed ones count against the budget


def test_budget_is_checked_before_the_submit(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))
    runner = executor(tmp_path / "l.sqlite", machine, budget=Budget(max_jobs=2))
    for number in range(2):
        runner.run(request_of(number))
    with pytest.raises(BudgetExceededError, match="--max-jobs"):
        runner.run(request_of(2))
    assert runner.run(request_of(0)).state == "done"  # what is paid is free
    tight = executor(tmp_path / "l.sqlite", machine, budget=Budget(max_qpu_seconds=6.9))
    with pytest.raises(BudgetExceededError, match=r"5\.0 QPU seconds are spent.*2\.0.*6\.9"):
        tight.run(request_of(2))
    assert len(machine.accepted) == 2
    assert executor(tmp_path / "l.sqlite", machine, budget=Budget(max_qpu_seconds=7.0)).run(request_of(2)).state == "done"


def test_a_refused_job_leaves_no_trace(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))

    def refuse(payload: Any, tag: str) -> str:
        raise BackendError("circuit too wide")

    machine.submit = refuse  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="too wide"):
        executor(tmp_path / "l.sqlite", machine).run(request_of(1))
    assert Ledger(tmp_path / "l.sqlite").find() == []


def test_deadline_leaves_the_job_to_be_adopted(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))
    with pytest.raises(BackendTimeoutError, match="job-0 is queued"):
        executor(tmp_path / "l.sqlite", machine, timing=Timing(settle=60, poll_first=1, poll_longest=1, deadline=10)).run(request_of(1))
    assert executor(tmp_path / "l.sqlite", machine).run(request_of(1)).job_id == "job-0"


def test_status_changes_are_told(tmp_path: Path, clock: Clock) -> None:
    seen: list[tuple[str, str]] = []
    machine = Machine(clock, random.Random(0))
    executor(tmp_path / "l.sqlite", machine, on_status=lambda job, status: seen.append((job, status.state))).run(request_of(1))
    assert seen == [("job-0", "queued")]


def test_nothing_is_sent_again_while_the_listing_is_down(tmp_path: Path, clock: Clock) -> None:
    machine = Machine(clock, random.Random(0))

    def unreachable(tag: str) -> str | None:
        raise BackendUnavailableError("listing is down")

    def lost(payload: Any, tag: str) -> str:
        machine.accepted["job-0"] = (tag, clock.now)
        raise UncertainSubmitError("504")

    machine.find, machine.submit = unreachable, lost  # type: ignore[method-assign]
    with pytest.raises(BackendUnavailableError, match="listing"):
        executor(tmp_path / "l.sqlite", machine).run(request_of(1))
    del machine.find, machine.submit
    assert executor(tmp_path / "l.sqlite", machine).run(request_of(1)).job_id == "job-0"
    assert len(machine.accepted) == 1


def test_a_ledger_is_private_and_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    Ledger(path)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 40)
    with pytest.raises(ConfigError, match="not a ledger"):
        Ledger(tmp_path / "text")


def test_keys_differ_where_requests_differ() -> None:
    base: dict[str, Any] = {
        "scope": "a",
        "backend": "ibm:x",
        "options": {"shots": 1},
        "spec": HeadSpec(),
        "weights": np.zeros((1, 4)),
        "angles": np.zeros((2, 4)),
        "stream": 0,
    }
    changes: list[dict[str, Any]] = [
        {"scope": "b"},
        {"backend": "ibm:y"},
        {"options": {"shots": 2}},
        {"spec": HeadSpec(num_layers=2), "weights": np.zeros((2, 4))},
        {"weights": np.full((1, 4), 1e-16)},
        {"angles": np.zeros((4, 2))},
        {"angles": np.full((2, 4), -1e-300)},
        {"stream": 1},
    ]
    keys = [request_key(**{**base, **change}) for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    assert request_key(**base) == keys[0]
