"""The file of the jobs: one transaction per decision, whoever asks at the same time."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common import ModelBundle
from hqtl_common.errors import ConfigError
from hqtl_common.ledger import Ledger
from hqtl_common.records import InferenceBatch
from serving.errors import ConflictError, FieldError, NotFoundError, NotReadyError, OverloadedError, QuotaError
from serving.forms import PredictOptions
from serving.jobs.budget import Budget
from serving.jobs.estimate import estimate_of
from serving.jobs.records import Estimate, Job, Spent, Submission, pack_inputs, unpack_inputs
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.keys import Grants, new_key
from serving.metrics import Metrics
from serving.settings import ServiceSettings

ANSWER = {"predictions": [], "execution": {"qpu_seconds": 1.25, "backend_used": "b"}}


def submission(**changes: Any) -> Submission:
    inputs = pack_inputs(InferenceBatch(angles=np.ones((2, 4), np.float32)))
    given = {"owner": "key", "backend": "b", "paid": True, "bundle": "v1", "content": "c", "inputs": inputs, "filenames": ("ä.png", "")}
    return Submission(**{**given, "options": {"backend": "b"}, "estimate": Estimate(1, 600, 4.0), **changes})


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite", 100)


def add(store: JobStore, **changes: Any) -> Job:
    return store.add(submission(**changes), lambda *_: None, 0.0)[0]


def test_what_is_kept_comes_back(store: JobStore) -> None:
    wanted = submission(idempotency_key="i", webhook="https://w/", reason="r", fallback={"predictions": []})
    job = add(store, idempotency_key="i", webhook="https://w/", reason="r", fallback={"predictions": []})
    assert job.submission == wanted
    assert store.get(job.id, "key") == job
    assert (job.state, job.hook, job.qpu_seconds, job.tries) == ("queued", "pending", 4.0, 0)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    batch = unpack_inputs(job.submission.inputs)
    assert batch.angles is not None
    assert (batch.angles.dtype, batch.angles.tolist(), batch.familiarity) == (np.float32, [[1.0] * 4] * 2, None)


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE service_jobs (id TEXT)")
    connection.close()
    with pytest.raises(ConfigError, match="another version"):
        JobStore(other, 1)
    (tmp_path / "text").write_text("no database at all")
    with pytest.raises(ConfigError):
        JobStore(tmp_path / "text", 1)


def test_a_file_that_is_held_for_long_is_a_503(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.jobs.store._BUSY_S", 0.05)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotReadyError, match="locked"):
            add(store)
    assert add(store).state == "queued"


def test_two_requests_cannot_take_the_same_last_second(store: JobStore) -> None:
    """Sixteen threads at once, ten jobs of four seconds fit into forty: never eleven."""

    def check(mine: Spent, everybody: Spent) -> None:
        time.sleep(0.005)  # time for the others to come in between
        if mine.qpu_seconds + 4.0 > 40.0:
            raise QuotaError("full", 1)

    kept: list[Job] = []

    def ask(number: int) -> None:
        with suppress(QuotaError):
            kept.append(store.add(submission(content=str(number)), check, 0.0)[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 10
    assert store.spent("key", 0.0) == store.spent(None, 0.0) == Spent(10, 40.0)
    assert store.spent("other", 0.0) == store.spent("key", time.time() + 1) == Spent(0, 0.0)


def test_the_day_of_the_service_is_that_of_all_keys_together(store: JobStore, bundle: ModelBundle) -> None:
    """Twelve keys with a grant of their own each ask at once for four seconds; the service has twenty."""
    chosen = ServiceSettings(bundle=bundle.path, max_qpu_seconds_per_day=20, max_paid_jobs_per_day=100)
    budget, rich = Budget(chosen), new_key("rich", Grants(qpu_seconds_per_day=None, jobs_per_day=None))[1]
    needs, kept, refused = Estimate(1, 100, 4.0), [], []

    def ask(owner: str) -> None:
        try:
            kept.append(store.add(submission(owner=owner, estimate=needs), partial(budget.check, rich, needs), 0.0))
        except QuotaError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(f"key{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(kept), len(refused)) == (5, 7)
    assert store.spent(None, 0.0) == Spent(5, 20.0)
    assert all("this service spends 20 QPU seconds a day" in str(error) and error.retry_after_s > 0 for error in refused)
    left = budget.left(rich, Spent(1, 4.0), store.spent(None, 0.0))
    assert left == {"qpu_seconds_left": None, "jobs_left": None, "service_qpu_seconds_left": 0, "service_jobs_left": 95}
    few = Budget(chosen.model_copy(update={"max_paid_jobs_per_day": 5}))
    with pytest.raises(QuotaError, match="5 paid jobs a day and has submitted 5"):
        few.check(rich, Estimate(1, 1, 0.0), Spent(0, 0.0), Spent(5, 0.0))


def test_a_file_that_cannot_be_used_now_is_an_error_that_passes(store: JobStore) -> None:
    """Whichever call meets it: locked, gone, damaged."""
    job = add(store)
    store.path.rename(store.path.with_suffix(".away"))
    store.path.mkdir()
    for call in (store.counts, store.to_tell, partial(store.get, job.id), partial(store.spent, "key", 0.0), partial(add, store)):
        with pytest.raises(NotReadyError, match="cannot be used now"):
            call()


def test_one_idempotency_key_is_one_job_however_many_ask_at_once(store: JobStore) -> None:
    found: list[tuple[Job, bool]] = []
    ask = threading.Thread
    threads = [ask(target=lambda: found.append(store.add(submission(idempotency_key="i"), lambda *_: None, 0.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in found}) == 1
    assert sum(new for _, new in found) == 1
    with pytest.raises(ConflictError, match="another request"):
        add(store, idempotency_key="i", content="other")
    assert add(store, idempotency_key="i", owner="other", content="other").id != found[0][0].id


def test_only_so_many_wait(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite", 2)
    first = add(store)
    add(store)
    with pytest.raises(OverloadedError):
        add(store)
    store.fail(first.id, "c", "m")
    add(store)


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["take", "finish", "fail", "retry", "cancel", "cancelled", "take_back", "keep"]), max_size=12))
def test_a_finished_job_stays_as_it_is(steps: list[str]) -> None:
    """Whatever comes in whatever order: states only go forward, and what was finished is never taken up again."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = JobStore(Path(folder) / "jobs.sqlite", 5)
        job = before = add(store)
        for step in steps:
            {
                "take": lambda: store.take("v1", True),
                "finish": lambda: store.finish(job.id, ANSWER),
                "fail": lambda: store.fail(job.id, "c", "m"),
                "retry": lambda: store.retry(job.id, 0.0, "c", "m"),
                "cancel": lambda: _ask(store, job),
                "cancelled": lambda: store.cancelled(job.id, spent=True),
                "take_back": store.take_back,
                "keep": lambda: store.keep(job.id),
            }[step]()
            after = store.get(job.id)
            if before.state in ("done", "failed", "cancelled"):
                assert (after.state, after.answer, after.finished) == (before.state, before.answer, before.finished)
            assert (after.answer is not None) == (after.state == "done")
            assert (after.finished is not None) == (after.state in ("done", "failed", "cancelled"))
            before = after


def _ask(store: JobStore, job: Job) -> None:
    try:
        store.ask_to_cancel(job.id, "key")
    except ConflictError:
        assert store.get(job.id).state in ("done", "failed")


def test_cancelling_before_anything_was_spent_gives_the_day_back(store: JobStore) -> None:
    job = add(store)
    assert store.ask_to_cancel(job.id, "key").state == "cancelled"
    assert store.spent("key", 0.0) == Spent(0, 0.0)
    begun = add(store)
    store.take("v1", True)
    assert (store.ask_to_cancel(begun.id, "key").state, store.get(begun.id).cancel) == ("running", True)
    assert [one.id for one in store.to_cancel()] == [begun.id]
    store.cancelled(begun.id, spent=True)
    assert store.spent("key", 0.0) == Spent(1, 4.0)
    for wrong in (("nobody", "key"), (job.id, "other")):
        with pytest.raises(NotFoundError):
            store.ask_to_cancel(*wrong)


def test_jobs_are_taken_in_their_order_and_only_those_of_the_bundle(store: JobStore) -> None:
    other, first, free, second = add(store, bundle="v2"), add(store), add(store, paid=False), add(store)
    assert [store.position(job) for job in (other, first, free, second)] == [0, 0, 1, 2]
    assert [job and job.id for job in (store.take("v1", True), store.take("v1", True), store.take("v1", True))] == [
        first.id,
        second.id,
        None,
    ]
    taken = store.take("v1", False)
    assert taken is not None
    assert (taken.id, taken.state, taken.tries) == (free.id, "running", 1)
    assert store.get(other.id).state == "queued"
    store.take_back([second.id])
    again = store.take("v1", True)
    assert again is not None
    assert (again.id, again.tries, again.started) == (first.id, 2, store.get(first.id).started)
    store.retry(again.id, 60.0, "backend_unavailable", "later")
    assert store.take("v1", True) is None, "what is to be tried later waits"
    store.take_back()
    assert [job and job.id for job in (store.take("v1", True), store.take("v1", True))] == [second.id, None]


def test_old_jobs_are_forgotten_with_what_the_ledger_has_of_them(store: JobStore) -> None:
    old, young, unfinished = add(store), add(store), add(store)
    for job in (old, young):
        store.ledger.intend(job.id, scope=job.id, backend="b", num_rows=1, shots=1, qpu_seconds=1.0, details={})
        store.fail(job.id, "c", "m")
    finished = store.get(young.id).finished
    assert finished is not None
    store.forget(finished)
    assert {job.id for job in store.of("key")} == {young.id, unfinished.id}
    assert [entry.scope for entry in Ledger(store.path).find()] == [young.id]


def test_pages(store: JobStore) -> None:
    made = [add(store) for _ in range(5)]
    assert [job.number for job in store.of("key", limit=2)] == [made[4].number, made[3].number]
    assert [job.number for job in store.of("key", before=made[3].number)] == [made[k].number for k in (2, 1, 0)]
    assert store.of("key", state="done") == store.of("other") == []


class Idle:
    bundle = "v1"

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, job: Job) -> dict[str, Any]:
        self.ran.append(job.id)
        return ANSWER

    def cancel(self, job: Job, *, in_work: bool) -> Any:
        raise AssertionError("nothing is to be cancelled")

    def close(self) -> None:
        """Nothing waits here."""


def test_what_is_asked_often_does_not_read_through_all_jobs(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    connect = sqlite3.connect

    def listen(*values: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*values, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", listen)
    store.counts(), store.to_cancel(), store.to_tell(), store.take("v1", True), store.spent("key", 0.0), store.of("key")
    monkeypatch.undo()
    found = [one for one in asked if one.startswith("SELECT")]
    assert len(found) == 6
    with closing(connect(store.path)) as connection:
        steps = [step for one in found for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {one}")]
    assert all("USING INDEX" in step or "USING COVERING INDEX" in step for step in steps), steps


def test_one_of_several_takes_jobs_up_and_the_next_when_it_has_gone(store: JobStore) -> None:
    works = [Idle(), Idle()]
    runners = [Runner(JobStore(store.path, 100), work, Metrics("0"), 2, 1e6) for work in works]
    for runner in runners:
        runner.start()
        runner.wake()
        until(lambda runner=runner: runner.is_owner or runners[0].is_owner)  # type: ignore[misc]
    assert [runner.is_owner for runner in runners] == [True, False]
    job = add(store)
    until(lambda: store.get(job.id).state == "done")
    runners[0].close()
    later = add(store)
    until(lambda: store.get(later.id).state == "done")
    runners[1].close()
    assert [work.ran for work in works] == [[job.id], [later.id]]
    assert store.get(job.id).qpu_seconds == 1.25, "what was billed takes the place of the estimate"


def test_a_runner_whose_first_look_fails_takes_the_jobs_up_later(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    take_back = store.take_back

    def once_broken(*values: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise NotReadyError("locked")
        take_back(*values)

    monkeypatch.setattr(store, "take_back", once_broken)
    monkeypatch.setattr("serving.jobs.runner._TICK_S", 0.01)
    runner = Runner(store, Idle(), Metrics("0"), 2, 1e6)
    runner.start()
    until(lambda: runner.is_owner)
    runner.close()
    assert len(tries) >= 2


@pytest.mark.parametrize("call", ["finish", "fail"])
def test_what_came_of_a_job_is_written_later_where_it_cannot_be_now(store: JobStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    class Failing(Idle):
        def run(self, job: Job) -> dict[str, Any]:
            super().run(job)
            if call == "fail":
                raise ConfigError("it cannot be done")
            return ANSWER

    write, tries = getattr(store, call), []

    def once_broken(*values: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise NotReadyError("disk full")
        write(*values)

    monkeypatch.setattr(store, call, once_broken)
    monkeypatch.setattr("serving.jobs.runner._TICK_S", 0.01)
    runner = Runner(store, Failing(), Metrics("0"), 2, 1e6)
    runner.start()
    job = add(store)
    until(lambda: store.get(job.id).state in ("done", "failed"))
    runner.close()
    assert (len(tries), store.get(job.id).state) == (2, {"finish": "done", "fail": "failed"}[call])


def test_closing_waits_for_who_tells(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.jobs.runner._END_S", 300.0)
    telling, go = threading.Event(), threading.Event()

    def hook(job: Job) -> None:
        telling.set()
        assert go.wait(300)

    runner = Runner(store, Idle(), Metrics("0"), 2, 1e6, hook)
    runner.start()
    job = add(store, webhook="https://w/")
    assert telling.wait(300)
    threading.Timer(0.2, go.set).start()
    runner.close()
    assert store.get(job.id).hook == "delivered"


def until(condition: Any, seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


class TestEstimate:
    def test_it_is_that_of_the_machine(self) -> None:
        plain = estimate_of("ibm:ibm_fez", PredictOptions(shots=1000), 3)
        assert (plain.jobs, plain.executions) == (1, 3000)
        assert plain.qpu_seconds == pytest.approx(2 + 3000 * 253e-6)
        assert estimate_of("ibm:ibm_fez", PredictOptions(), 2).executions == 2048
        mitigated = estimate_of("ibm:ibm_fez", PredictOptions(shots=1000, mitigation="readout+zne"), 3)
        assert mitigated.executions == 2 * 3000 + 2 * 4096
        assert estimate_of("aer", PredictOptions(shots=10**6, max_shots=10**7), 1000) == Estimate()

    @pytest.mark.parametrize("options", [{"shots": 1000, "max_shots": 2000}, {"shots": 4_000_000}])
    def test_more_than_one_job_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(FieldError):
            estimate_of("ibm:ibm_fez", PredictOptions(**options), 3)
