"""Lanes of heads: who is evaluated together, who alone, and that nobody is spoiled by a neighbour."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from hqtl_common.records import ExecutionRecord, InferenceBatch
from serving.forms import PredictOptions
from serving.lanes import HeadLane


class Head:
    """Answers every row by its own feature; the first call waits until it is let go, so that others queue up."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[float], PredictOptions]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, batch: InferenceBatch, options: PredictOptions) -> InferenceBatch:
        rows = batch.features if batch.features is not None else batch.angles
        assert rows is not None
        self.calls.append((rows[:, 0].tolist(), options))
        self.begun.set()
        assert self.go.wait(60)
        if (rows < 0).any():
            raise ValueError("negative")
        record = ExecutionRecord("statevector", "statevector", options.shots, options.seed, num_rows=len(rows))
        return InferenceBatch(features=batch.features, expvals=2.0 * rows, logits=rows, labels=("a", "b"), execution=record)


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def lane(head: Head) -> Iterator[HeadLane]:
    lane = HeadLane(head, "test", max_total_shots=1000)
    yield lane
    head.go.set()
    lane.close()


def rows(*values: float) -> InferenceBatch:
    return InferenceBatch(features=np.array([[value, 0.5] for value in values]))


def ask(lane: HeadLane, head: Head, *requests: tuple[InferenceBatch, dict[str, Any]]) -> list[Any]:
    """Let the requests queue up behind one that runs."""
    lane.submit(rows(99), PredictOptions(seed=0))
    assert head.begun.wait(60)
    futures = [lane.submit(batch, PredictOptions(**options)) for batch, options in requests]
    head.go.set()
    return [future.exception(60) or future.result() for future in futures]


def evaluations(head: Head) -> list[list[float]]:
    return [values for values, _ in head.calls[1:]]


def test_equal_options_are_one_evaluation_and_each_gets_its_own_rows(lane: HeadLane, head: Head) -> None:
    first, other, last = ask(lane, head, (rows(1, 2), {"shots": 10}), (rows(3), {}), (rows(4), {"shots": 10}))
    assert evaluations(head) == [[1, 2, 4], [3]]
    assert (first.expvals.tolist(), last.expvals.tolist()) == ([[2, 1], [4, 1]], [[8, 1]])
    assert other.expvals.tolist() == [[6, 1]]
    assert [answer.execution.num_rows for answer in (first, other, last)] == [2, 1, 1]
    assert last.labels == ("a", "b")


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"max_shots": 50, "shots": 5}],
    ids=["the same seed repeats the same answer", "adaptive"],
)
def test_some_stay_alone(lane: HeadLane, head: Head, options: dict[str, Any]) -> None:
    ask(lane, head, (rows(1), options), (rows(2), options))
    assert evaluations(head) == [[1], [2]]


@pytest.mark.parametrize("name", ["backend", "shots", "mitigation", "threshold"])
def test_what_differs_is_not_put_together(lane: HeadLane, head: Head, name: str) -> None:
    changed = {"backend": "aer", "shots": 7, "mitigation": "readout", "threshold": 0.3}[name]
    ask(lane, head, (rows(1), {}), (rows(2), {name: changed}), (rows(3), {}))
    assert evaluations(head) == [[1, 3], [2]]


def test_features_and_angles_do_not_mix(lane: HeadLane, head: Head) -> None:
    angles = InferenceBatch(angles=np.array([[5.0, 0.5]]))
    ask(lane, head, (rows(1), {}), (angles, {}), (rows(2), {}), (angles, {}))
    assert evaluations(head) == [[1, 2], [5, 5]]


def test_rows_and_shots_of_an_evaluation_are_bounded(lane: HeadLane, head: Head) -> None:
    ask(lane, head, *[(rows(*range(40)), {}) for _ in range(2)], *[(rows(1), {"shots": 400}) for _ in range(3)])
    assert [len(values) for values in evaluations(head)] == [40, 40, 2, 1]


def test_only_the_culprit_fails(lane: HeadLane, head: Head) -> None:
    good, bad, also = ask(lane, head, (rows(1), {}), (rows(-1), {}), (rows(2), {}))
    assert (good.expvals.tolist(), also.expvals.tolist()) == ([[2, 1]], [[4, 1]])
    assert isinstance(bad, ValueError)


def test_a_cancelled_request_is_not_evaluated(lane: HeadLane, head: Head) -> None:
    lane.submit(rows(99), PredictOptions(seed=0))
    assert head.begun.wait(60)
    cancelled, kept = (lane.submit(rows(value), PredictOptions()) for value in (1, 2))
    assert cancelled.cancel()
    head.go.set()
    kept.result(60)
    assert evaluations(head) == [[2]]


def test_closing_ends_what_runs_and_cancels_what_waits(head: Head) -> None:
    lane = HeadLane(head, "test", max_total_shots=1000)
    running = lane.submit(rows(1), PredictOptions())
    assert head.begun.wait(60)
    waiting = lane.submit(rows(2), PredictOptions())
    closing = threading.Thread(target=lane.close)
    closing.start()
    while not lane.submit(rows(3), PredictOptions()).cancelled():  # from now on nothing is taken
        pass
    head.go.set()
    closing.join(60)
    assert running.result(60).expvals.tolist() == [[2, 1]]
    with pytest.raises(CancelledError):
        waiting.result(60)


def test_waiting_times_are_told(head: Head) -> None:
    told: list[float] = []
    lane = HeadLane(head, "test", max_total_shots=1000, on_start=told.append)
    head.go.set()
    lane.submit(rows(1), PredictOptions()).result(60)
    lane.close()
    assert len(told) == 1
    assert told[0] >= 0
