"""The real command, killed and interrupted at any moment: resumed, it ends with the run and the bundle of an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from training.export import export_run
from training.runs import RunFolder

EPOCHS = 60
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(photographs: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(run: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "training.cli", "fit", str(photographs), "--out", str(run), "--cache-dir", str(cache)]
        options = ("--weights", "none", "--epochs", str(EPOCHS), "--patience", "50", "--json", *options)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *options], cwd=ROOT, preexec_fn=heed_interrupts, **pipes)

    return start


@pytest.fixture(scope="module")
def whole(start: Callable[..., subprocess.Popen[str]], feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(run, feature_cache))
    return run


def heed_interrupts() -> None:
    """Where the tests run in the background of a shell, SIGINT is ignored, also by the processes they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    answer: dict[str, Any] = json.loads(stdout)
    return answer


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Until something is reached, or the process ended."""
    while process.poll() is None and not reached():
        time.sleep(0.002)


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def num_features(cache: Path) -> int:
    for path in cache.glob("*.sqlite"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            try:
                return int(connection.execute("SELECT count(*) FROM features").fetchone()[0])
            except sqlite3.OperationalError:  # not made yet
                return 0
    return 0


def assert_same_run(left: Path, right: Path) -> None:
    for name in ("result.json", "predictions.json", "data.json", "config.json", "curves.png", "confusion.png"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    metrics = [[{**line, "seconds": 0} for line in RunFolder(path).metrics()] for path in (left, right)]
    assert metrics[0] == metrics[1]
    checkpoints = [RunFolder(path).load_checkpoint() for path in (left, right)]
    assert checkpoints[0] is not None
    assert checkpoints[1] is not None
    assert checkpoints[0].progress == checkpoints[1].progress
    assert checkpoints[0].tensors.keys() == checkpoints[1].tensors.keys()
    assert all(torch.equal(value, checkpoints[1].tensors[key]) for key, value in checkpoints[0].tensors.items())


def test_stopped_at_any_moment(start: Callable[..., subprocess.Popen[str]], whole: Path, tmp_path: Path) -> None:
    """Killed in the features, in the epochs and at the end, and interrupted: always the same run, with a cache of its own."""
    run, cache, rng = tmp_path / "run", tmp_path / "cache", random.Random(0)
    first, second = rng.randrange(1, 20), rng.randrange(1, 20)
    moments: list[tuple[Callable[[int], bool], signal.Signals]] = [
        (lambda begun: num_features(cache) > 0, signal.SIGKILL),
        (lambda begun: lines(run) >= begun + first, signal.SIGKILL),
        (lambda begun: lines(run) >= begun + second, signal.SIGINT),
        (lambda begun: lines(run) == EPOCHS, signal.SIGKILL),
    ]
    done = [0]
    for reached, number in moments:
        process = start(run, cache, "--resume")
        begun = lines(run)
        wait_for(process, lambda: reached(begun))  # noqa: B023 - called within this turn
        time.sleep(rng.random() * 0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
        done.append(lines(run))
        if number == signal.SIGINT:
            assert stdout == ""
            assert stderr.splitlines()[-1] == "interrupted; what was recorded is kept (hqtl-train fit --resume RUN goes on)"
            assert "Traceback" not in stderr
    assert 0 < done[2] < done[3] < EPOCHS, f"the signals must hit the epochs; epochs done: {done}"
    assert done == sorted(done), "an epoch was lost"
    answer = finish(start(run, cache, "--resume"))
    assert answer["epochs"] == EPOCHS
    assert_same_run(whole, run)
    for path, name in ((whole, "undisturbed"), (run, "resumed")):
        export_run(path, tmp_path / name)
    for path in (tmp_path / "undisturbed").iterdir():
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes(), path.name
