"""Tasks of a comparison on this machine: one after another in this process, or in processes of their own."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from training.compare.task import Task, train_task

__all__ = ["Engine", "EngineOptions", "LocalEngine", "ProcessEngine", "Work"]

Work = Callable[[Task], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine works.

    Args:
        workers: Tasks at the same time; None: one per core. A cluster has its own number.
        retries: How often a task is tried again whose worker died.
        ray_address: Of a Ray cluster; None: $RAY_ADDRESS, else one is started on this machine.
        cpus: Cores that Ray sets aside for a task.
        gpus: Graphics processors, or a share of one, that Ray sets aside for a task.
    """

    workers: int | None = None
    retries: int = 1
    ray_address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class Engine(Protocol):
    """Runs tasks."""

    name: str

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str | None]]:
        """Each task when it has ended, in any order, and why its worker died (None: it did not)."""


class LocalEngine:
    """One task after another in this process; the only engine for paid backends."""

    name = "local"

    def __init__(self, options: EngineOptions, work: Work = train_task) -> None:
        self._work = work

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str | None]]:
        """See :class:`Engine`."""
        for task in tasks:
            self._work(task)
            yield task, None


@dataclass(slots=True)
class _Worker:
    task: Task
    process: BaseProcess
    deaths: int = field(default=0)


class ProcessEngine:
    """A fresh process per task, some at a time: what one of them loses or leaks is no other's."""

    name = "process"

    def __init__(self, options: EngineOptions, work: Work = train_task) -> None:
        self._work = work
        self._workers = options.workers or os.cpu_count() or 1
        self._retries = options.retries
        self._context = get_context("spawn")

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str | None]]:
        """See :class:`Engine`."""
        waiting = deque((task, 0) for task in tasks)
        working: dict[int, _Worker] = {}
        try:
            while waiting or working:
                while waiting and len(working) < self._workers:
                    worker = self._start(*waiting.popleft())
                    working[worker.process.sentinel] = worker
                for sentinel in wait(list(working)):
                    assert isinstance(sentinel, int)
                    worker = working.pop(sentinel)
                    worker.process.join()
                    code = worker.process.exitcode
                    if code and worker.deaths < self._retries:
                        waiting.append((worker.task, worker.deaths + 1))
                    else:
                        yield worker.task, _epitaph(code) if code else None
        finally:
            for worker in working.values():
                worker.process.kill()
            for worker in working.values():
                worker.process.join()

    def _start(self, task: Task, deaths: int) -> _Worker:
        process = self._context.Process(target=_work, args=(self._work, task), daemon=True)
        process.start()
        return _Worker(task, process, deaths)


def _epitaph(code: int) -> str:
    how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the worker process {how}; perhaps memory ran out: try fewer --workers"


def _work(work: Work, task: Task) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    work(task)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
