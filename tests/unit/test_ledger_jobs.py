"""The ledger as a person sees it: list, show, and refusals before anybody is asked; and what two processes may do to one row."""

from __future__ import annotations

import json
import multiprocessing
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hqtl_common import ledger as ledger_module
from hqtl_common.backends import recorded
from hqtl_common.backends.recorded import JobStatus, RecordedExecutor, Request, Timing, UncertainSubmitError
from hqtl_common.errors import BackendUnavailableError, ConfigError, InputError
from hqtl_common.ledger import Entry, Ledger, default_ledger_path
from training.cli import main
from training.ledger_jobs import adopt, cancel, describe, find_entry, open_ledger

KEYS = {"intent": "a" * 64, "submitted": "b" * 64, "done": "c" * 64, "failed": "cd" * 32}
COUNTS = np.eye(16, dtype=np.int64)[:3] * 100


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One row in every state."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number, key in enumerate(KEYS.values()):
        facts = {"depth": 9, "layout": [3, 1]}
        assert ledger.intend(key, scope=f"s{number % 2}", backend="ibm:x", num_rows=3, shots=100, qpu_seconds=2.5, details=facts)
    for state in ("submitted", "done", "failed"):
        ledger.submitted(KEYS[state], f"job-{state}")
    ledger.finish(KEYS["done"], COUNTS, 2.25, {"depth": 10})
    ledger.fail(KEYS["failed"], "ran too long")
    return ledger


def entry(ledger: Ledger, state: str) -> Entry:
    found = ledger.get(KEYS[state])
    assert found is not None
    assert found.state == state
    return found


def call(ledger: Ledger, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["jobs", *arguments, "--ledger", str(ledger.path)])


# ---------------------------------------------------------------- list, show


def test_list_shows_all_or_one_state(ledger: Ledger) -> None:
    rows = json.loads(call(ledger, "list", "--json").stdout)
    assert {row["state"]: row["key"] for row in rows} == KEYS
    assert not [row for row in rows if {"counts", "details"} & row.keys()]
    (row,) = json.loads(call(ledger, "list", "--state", "done", "--json").stdout)
    created = row.pop("created")
    assert created.endswith("+00:00")
    facts = {"backend": "ibm:x", "scope": "s0", "parameter_sets": 3, "shots": 100, "qpu_seconds": 2.25}
    assert row == {"key": KEYS["done"], "state": "done", "job_id": "job-done", **facts}


def test_list_as_a_table(ledger: Ledger) -> None:
    answer = call(ledger, "list")
    assert answer.exit_code == 0
    lines = answer.stdout.splitlines()
    assert len(lines) == 5
    assert all(any(word in line for line in lines) for word in ("job-submitted", "–", "failed", "2.2", KEYS["done"][:12]))


def test_an_empty_ledger_lists_nothing(tmp_path: Path) -> None:
    assert json.loads(call(Ledger(tmp_path / "new"), "list", "--json").stdout) == []


def test_show_finds_by_job_and_by_the_beginning_of_the_key(ledger: Ledger) -> None:
    for name in ("job-done", KEYS["done"], "ccc"):
        shown = json.loads(call(ledger, "show", name).stdout)
        assert (shown["key"], shown["details"], shown["tag"]) == (KEYS["done"], {"depth": 10, "layout": [3, 1]}, "hqtl-" + "c" * 40)
    assert json.loads(call(ledger, "show", "job-failed").stdout)["details"]["error"] == "ran too long"


@pytest.mark.parametrize(("name", "count"), [("job-x", 0), ("c", 2), ("", 0)])
def test_a_name_must_mean_one_execution(name: str, count: int, ledger: Ledger) -> None:
    with pytest.raises(InputError, match=f"^{count} recorded executions are called '{name}'"):
        find_entry(ledger, name)
    for command in ("show", "cancel", "adopt"):
        answer = call(ledger, command, name)
        assert answer.exit_code == 1
        assert answer.stderr.startswith(f"error: {count} recorded executions")
        assert answer.stdout == ""


def test_what_is_described_is_json(ledger: Ledger) -> None:
    for found in ledger.find():
        facts = describe(found, details=True)
        assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("state", ["done", "failed"])
def test_what_has_ended_is_neither_cancelled_nor_adopted(state: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqtl_common.backends.ibm_account.open_service", lambda: pytest.fail("somebody logged in"))
    for act in (cancel, adopt):
        with pytest.raises(InputError, match=f"is {state}; only submitted ones"):
            act(ledger, entry(ledger, state))
    assert entry(ledger, state).qpu_seconds == {"done": 2.25, "failed": 2.5}[state]


def test_the_ledger_is_the_users_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("HQTL_LEDGER", raising=False)
    assert open_ledger(None).path == default_ledger_path() == tmp_path / "data/hqtl/ledger.sqlite"
    monkeypatch.setenv("HQTL_LEDGER", str(tmp_path / "mine"))
    assert open_ledger(None).path == tmp_path / "mine"
    assert open_ledger(tmp_path / "other").path == tmp_path / "other"


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 200)
    answer = CliRunner().invoke(main, ["jobs", "list", "--ledger", str(tmp_path / "text")])
    assert (answer.exit_code, answer.stderr.startswith("error: ")) == (1, True)


def test_a_ledger_may_be_named_as_text(tmp_path: Path) -> None:
    """As ``--backend-option ledger=FILE`` gives it."""
    assert Ledger(str(tmp_path / "ledger")).find() == []  # type: ignore[arg-type]


def test_a_ledger_of_a_later_version_is_left_alone(ledger: Ledger) -> None:
    with ledger._connect() as connection:
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(ConfigError, match="version 9, not 1: update"):
        Ledger(ledger.path)


# ---------------------------------------------------------------- rows that several processes touch


def test_a_result_outlives_a_late_failure(ledger: Ledger) -> None:
    """Somebody cancels while another process records the result: it is paid, so it stays."""
    ledger.fail(KEYS["done"], "cancelled by the user")
    np.testing.assert_array_equal(entry(ledger, "done").counts, COUNTS)


def test_only_the_process_that_has_the_intent_withdraws_it(ledger: Ledger) -> None:
    seen = entry(ledger, "intent").created
    taken = ledger.take_over(KEYS["intent"], seen)
    assert taken is not None
    assert taken > seen
    assert ledger.take_over(KEYS["intent"], seen) is None
    ledger.withdraw(KEYS["intent"], seen)
    assert entry(ledger, "intent").created == taken
    ledger.withdraw(KEYS["intent"], taken)
    assert ledger.get(KEYS["intent"]) is None
    for state in ("submitted", "done", "failed"):
        assert ledger.take_over(KEYS[state], entry(ledger, state).created) is None
        ledger.withdraw(KEYS[state], entry(ledger, state).created)
        assert entry(ledger, state)


def begin(path: Path, when: float, results: Any) -> None:
    time.sleep(max(0.0, when - time.time()))
    results.put(Ledger(path).intend("k", scope="s", backend="b", num_rows=1, shots=1, qpu_seconds=0.0, details={}))


def test_one_of_many_processes_makes_the_intent(tmp_path: Path) -> None:
    """The file itself is made by all of them at once."""
    context = multiprocessing.get_context("fork")
    results, when = context.Queue(), time.time() + 0.2
    processes = [context.Process(target=begin, args=(tmp_path / "ledger", when, results)) for _ in range(6)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=300) for _ in processes) == [False] * 5 + [True]
    for process in processes:
        process.join()


class Clock:
    """Time that only moves when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = types.SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.now, sleep=self.sleep)
        for module in (recorded, ledger_module):
            monkeypatch.setattr(module, "time", fake)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Silent:
    """A provider whose submits get no answer, and which lists no job."""

    name = "ibm:test"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.submits: list[float] = []

    def submit(self, payload: Any, tag: str) -> str:
        self.submits.append(self.clock.now)
        self.clock.sleep(20)
        raise UncertainSubmitError("504 gateway")

    def find(self, tag: str) -> str | None:
        return None

    def status(self, job_id: str) -> JobStatus:
        return JobStatus("queued")


REQUEST = Request("k" * 64, num_rows=1, shots=1, qpu_seconds=1.0, payload=None)


def test_a_slow_process_does_not_submit_what_another_has_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one waits its time from the first submit, takes the request over, and its own submit is still on its way."""
    clock = Clock(monkeypatch)
    ledger, provider = Ledger(tmp_path / "l"), Silent(clock)
    taken: list[float] = []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if not taken and clock.now >= 1060:
            (row,) = ledger.find()
            assert ledger.take_over(row.key, row.created)
            taken.append(clock.now)

    timing = Timing(settle=60, poll_first=1, poll_longest=5)
    with pytest.raises(BackendUnavailableError):
        RecordedExecutor(ledger, provider, "s", timing=timing, sleep=sleep).run(REQUEST)
    assert len(taken) == 1
    assert not [submit for submit in provider.submits if 0 <= submit - taken[0] < 60]


def test_a_provider_that_never_answers_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ledger, provider = Ledger(tmp_path / "l"), Silent(clock)
    with pytest.raises(BackendUnavailableError, match=r"accepted no job in 5 attempts \(504 gateway\)"):
        RecordedExecutor(ledger, provider, "s", sleep=clock.sleep).run(REQUEST)
    assert len(provider.submits) == 5
    assert ledger.find() == []


def test_days_in_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ledger = Ledger(tmp_path / "l")
    ledger.intend(REQUEST.key, scope="s", backend="ibm:test", num_rows=1, shots=1, qpu_seconds=1.0, details={})
    ledger.submitted(REQUEST.key, "job-0")
    provider = Silent(clock)
    days = types.SimpleNamespace(status=lambda job: JobStatus("done" if clock.now > 3 * 86400 else "queued"))
    monkeypatch.setattr(provider, "status", days.status)
    provider.fetch = lambda job_id, request: (COUNTS[:1], 1.0, {})  # type: ignore[attr-defined]
    assert RecordedExecutor(ledger, provider, "s", sleep=clock.sleep).run(REQUEST).state == "done"  # type: ignore[arg-type]
