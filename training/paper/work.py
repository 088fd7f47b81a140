"""Does the parts of a study, several at a time; what is finished is not done again, what was killed goes on."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from training.console import progress_bar, say
from training.paper.protocol import Part
from training.runs import write_json

__all__ = ["do_parts", "part_record"]

_LOOK_EVERY_S = 0.5


def do_parts(parts: Sequence[Part], out: Path, cache_folder: Path, workers: int) -> None:
    """Train everything that is not yet finished.

    Args:
        parts: With distinct names.
        out: Folder of the study.
        cache_folder: Where features are cached; they should be there already.
        workers: Processes; with 1 the work is done in this one.

    Raises:
        HqtlError: Of the training that failed first; finished parts are kept.
    """
    todo = [part for part in parts if part_record(part, out) is None]
    if done := len(parts) - len(todo):
        say(f"{done} of {len(parts)} parts are there already")
    if workers == 1 or len(todo) < 2:
        for number, part in enumerate(todo, 1):
            say(f"part {number} of {len(todo)}: {part.title}, {len(part.configs)} trainings")
            _do_part(part, out, cache_folder)
    else:
        _in_processes(todo, out, cache_folder, min(workers, len(todo)))


def part_record(part: Part, out: Path) -> dict[str, Any] | None:
    """What the finished part says about its times, None while it is not finished."""
    path = _record_path(part, out)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_bytes())
    return record


def _record_path(part: Part, out: Path) -> Path:
    return out / "runs" / part.name / "part.json"


def _do_part(part: Part, out: Path, cache_folder: Path) -> None:
    """Train a part and record how long it took.

    ``seconds`` are those of the epochs and do not depend on interruptions; ``wall_seconds`` and ``cpu_seconds`` are of the last
    call, with reading features, measuring and drawing.
    """
    from training.fit import fit_many, open_run

    started, cpu_started = time.perf_counter(), time.process_time()
    opened = [open_run(folder, config, resume=True) for folder, config in zip(part.folders(out), part.configs, strict=True)]
    fit_many([config for _, config in opened], [run for run, _ in opened], cache_folder)
    record = {
        "seconds": sum(line["seconds"] for line in opened[0][0].metrics()),
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "trainings": len(part.configs),
    }
    write_json(_record_path(part, out), record)


def _in_processes(parts: Sequence[Part], out: Path, cache_folder: Path, workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (os.getpid(), stop))
    try:
        running = {pool.submit(_do_quietly, part, out, cache_folder): part for part in parts}
        with progress_bar("trainings", sum(part.configs[0].epochs for part in parts), "epochs of all parts") as advance:
            _watch(running, out, advance)
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _watch(running: dict[Future[None], Part], out: Path, advance: Any) -> None:
    parts, seen, finished = list(running.values()), 0, 0
    while running:
        done, _ = wait(running, _LOOK_EVERY_S, FIRST_COMPLETED)
        for future in done:
            part = running.pop(future)
            future.result()
            finished += 1
            record = part_record(part, out)
            assert record is not None
            say(f"{finished} of {len(parts)} parts: {part.title}, {len(part.configs)} trainings in {record['wall_seconds']:.0f} s")
        epochs = sum(_num_epochs(part, out) for part in parts)
        advance(epochs - seen)
        seen = epochs


def _num_epochs(part: Part, out: Path) -> int:
    path = part.folders(out)[0] / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _do_quietly(part: Part, out: Path, cache_folder: Path) -> None:
    log = out / "runs" / part.name / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        _do_part(part, out, cache_folder)


def _begin_worker(parent: int, stop: Any) -> None:
    """End with the parent: a worker that outlived it would write into the folders of the next attempt."""

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S) and os.getppid() == parent:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
