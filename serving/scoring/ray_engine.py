"""The chunks of a run, scored on a Ray cluster: an existing one, or one of this machine that ends with the run.

Ray Data carries chunks of paths to the workers and answers back, in order and with back-pressure. This process keeps the list, the
results, which bytes came before, and a head that costs money or looks again at doubtful answers. A worker that dies costs time: its
chunks are begun again, and give the same. Images and bundle must lie on storage that every node sees under the same path, and hqtl
must be installed on every node.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.errors import ConfigError, HqtlError, InputError
from hqtl_common.providers import CPU
from hqtl_common.records import ExecutionRecord, InferenceBatch, Prediction
from serving.errors import NotReadyError
from serving.scoring.answers import ScoredChunk
from serving.scoring.heads import HeadRunner, Part
from serving.scoring.listing import Batch
from serving.scoring.ray_cluster import check_cluster, connected, in_order, open_desk
from serving.scoring.ray_worker import job_of, score_rows
from serving.scoring.rows import text_of
from serving.scoring.run import Run, Where
from serving.scoring.seen import Earlier
from serving.scoring.unscored import scored
from serving.scoring.wire import Packed, error_of, unpack

__all__ = ["RayEngine"]

_WINDOW = 512  # chunks that Ray knows of at a time


class RayEngine:
    """See :class:`serving.scoring.engines.Engine`."""

    def check(self, where: Where) -> None:
        """See :class:`serving.scoring.engines.Engine`."""
        if where.providers != CPU:
            raise ConfigError("the workers of Ray compute on the processor: leave out --providers, or --engine ray")
        check_cluster(where)

    def chunks(
        self, run: Run, runner: HeadRunner, batches: Iterator[Batch], seen: Earlier, files: int
    ) -> Generator[ScoredChunk, None, None]:
        """See :class:`serving.scoring.engines.Engine`.

        Raises:
            ConfigError: There is no cluster at the address, or a node has other versions.
            InputError: A node does not see the folder or the bundle.
            NotReadyError: The cluster cannot go on.
        """
        here = backend_capabilities(run.options.backend).paid or runner.refiner is not None
        tasks = _tasks(batches, files)
        with ExitStack() as stack:
            ray = stack.enter_context(connected(run.where))
            clerk, watch = (stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=name)) for name in ("desk", "progress"))
            cluster = _Cluster(ray, stack.enter_context(open_desk(ray)), run, job_of(run, head=not here))
            watch.submit(cluster.watch)
            while window := list(islice(tasks, _WINDOW)):
                clerk.submit(cluster.answer, window, seen)
                with closing(cluster.packed(window)) as answers:
                    for packed in answers:
                        assert packed.chunk is not None
                        yield scored(runner if here else _Answered(packed.result), packed.chunk, run.tile_rule)


@dataclass(frozen=True, slots=True)
class _Task:
    """One chunk: the number of its first file, and its batches."""

    number: int
    batches: tuple[Batch, ...]

    @property
    def chunk(self) -> int:
        return self.batches[0].chunk

    @property
    def paths(self) -> list[bytes]:
        return [path for batch in self.batches for path in batch.paths]

    def to_json(self) -> bytes:
        batches = [dataclasses.asdict(batch) | {"paths": [path.hex() for path in batch.paths]} for batch in self.batches]
        return json.dumps({"number": self.number, "batches": batches}).encode("ascii")


def _tasks(batches: Iterator[Batch], number: int) -> Iterator[_Task]:
    for _, of_chunk in groupby(batches, key=lambda batch: batch.chunk):
        task = _Task(number, tuple(of_chunk))
        yield task
        number += len(task.paths)


@dataclass(frozen=True, slots=True)
class _Answered:
    """The head has run on a worker; see :class:`serving.scoring.heads.HeadRunner`."""

    result: InferenceBatch | None

    def run(self, parts: Sequence[Part], stream: int) -> tuple[list[Prediction], ExecutionRecord | None, ExecutionRecord | None]:
        return ([], None, None) if self.result is None else (self.result.predictions(), self.result.execution, None)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The workers as this process sees them.

    Args:
        ray: The module, connected.
        desk: The handle of the desk.
        run: What is scored and how.
        job: What every worker is told.
    """

    ray: Any
    desk: Any
    run: Run
    job: str

    def packed(self, window: Sequence[_Task]) -> Generator[Packed, None, None]:
        """What the workers give back of each chunk, in order; several pieces of one that holds videos or other stacks.

        Raises:
            HqtlError: Of a worker, or the cluster cannot go on.
        """
        tasks = iter(window)
        with closing(self._stream(window)) as stream:
            for data in stream:
                packed = unpack(data)
                for note in packed.notes:
                    self.run.reporter.note(note)
                if packed.error is not None:
                    raise error_of(*packed.error)
                assert packed.chunk is not None
                yield packed
                if packed.chunk.ends:
                    self.desk.forget.remote(next(tasks).chunk)

    def watch(self) -> None:
        """Pass on how far workers are within large files; it ends when the desk goes."""
        while True:
            self.run.reporter.within(*self.ray.get(self.desk.told.remote()))

    def answer(self, window: Sequence[_Task], seen: Earlier) -> None:
        """Say at the desk which bytes came before, chunk by chunk in the order of the list; it ends when the desk goes."""
        for task in window:
            question = self.ray.get(self.desk.asked.remote(task.chunk))
            try:
                self._check_visible(task, question)
                answer = {
                    "hashes": question["hashes"],
                    "firsts": [seen.first(one, at) for at, one in enumerate(question["hashes"], task.number)],
                }
            except HqtlError as error:
                answer = {"error": [type(error).__name__, str(error)]}
            self.ray.get(self.desk.answer.remote(task.chunk, answer))

    def _stream(self, window: Sequence[_Task]) -> Generator[bytes, None, None]:
        try:
            with closing(iter(self._dataset(window).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))) as tables:
                for table in tables:
                    yield from table["packed"].to_pylist()
        except HqtlError:
            raise
        except Exception as error:  # of Ray and of what it runs: they have no common base
            lines = str(getattr(error, "cause", None) or error).split("\n")
            reason = " ".join((next(filter(None, map(str.strip, reversed(lines))), "") or type(error).__name__).split())[:500]
            raise NotReadyError(f"the Ray cluster cannot go on: {reason}; mend it, then run the same command with --resume") from error

    def _dataset(self, window: Sequence[_Task]) -> Any:
        """The chunks, one per block and so one per task, as they will come back."""
        import pyarrow

        tables = [pyarrow.table({"chunk": [task.to_json()]}) for task in window]
        workers = self.run.where.workers
        with in_order(self.ray):
            return self.ray.data.from_arrow(tables).map_batches(
                score_rows,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
                concurrency=workers and min(workers, len(window)),
                fn_kwargs={"job": self.job, "desk": self.desk},
            )

    def _check_visible(self, task: _Task, question: dict[str, Any]) -> None:
        folder, paths = os.fsencode(self.run.folder), task.paths
        for index in question["missing"]:
            if os.path.lexists(folder + b"/" + paths[index]):
                raise InputError(
                    f"the machine {question['host']} does not see {text_of(paths[index])!r} of {str(self.run.folder)!r}, which is there; "
                    "share the folder with every node under the same path"
                )
