"""Engines: every task once, deaths told apart from ends, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hqtl_common.errors import ConfigError
from training.compare.engines import make_engine, pick_engine
from training.compare.folder import CompareFolder
from training.compare.local_engines import EngineOptions, LocalEngine, ProcessEngine
from training.compare.task import Task


def leave_mark(task: Task) -> None:
    """A worker's job: a file per try, and a death where the name says so."""
    number = len(list(task.folder.glob(f"{task.names[0]}.*")))
    (task.folder / f"{task.names[0]}.{number}").write_text(str(os.getpid()))
    if task.names[0] == "killed" or (task.names[0] == "once" and number == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.names[0] == "raises":
        raise OSError("no space")
    if task.names[0] == "sleeps":
        time.sleep(3600)


def tasks(folder: Path, *names: str) -> list[Task]:
    return [Task(names=(name,), configs=(), folder=folder, cache_folder=folder, engine="test") for name in names]


def test_local_engine_takes_turns(tmp_path: Path) -> None:
    done = list(LocalEngine(EngineOptions(), leave_mark).run(tasks(tmp_path, "a", "b")))
    assert [(task.names[0], death) for task, death in done] == [("a", None), ("b", None)]
    assert (tmp_path / "a.0").read_text() == str(os.getpid())


def test_process_engine_tells_deaths(tmp_path: Path) -> None:
    engine = ProcessEngine(EngineOptions(workers=4, retries=1), leave_mark)
    done = {task.names[0]: death for task, death in engine.run(tasks(tmp_path, "a", "once", "killed", "raises"))}
    assert done["a"] is None
    assert done["once"] is None
    assert "SIGKILL" in (done["killed"] or "")
    assert "exit code 1" in (done["raises"] or "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.0", "killed.0", "killed.1", "once.0", "once.1", "raises.0", "raises.1"]
    assert (tmp_path / "a.0").read_text() != str(os.getpid())


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Also if it is killed: nobody goes on writing into runs that a new comparison takes up."""
    program = (
        "from pathlib import Path; import sys\n"
        "from tests.unit.test_compare_engines import *\n"
        "if __name__ == '__main__':\n"
        "    list(ProcessEngine(EngineOptions(workers=1), leave_mark).run(tasks(Path(sys.argv[1]), 'sleeps')))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    mark = tmp_path / "sleeps.0"
    while not (mark.exists() and mark.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    worker = psutil.Process(int(mark.read_text()))
    parent.kill()
    parent.wait()
    until(lambda: has_ended(worker))


def test_abandoned_engine_ends_its_workers(tmp_path: Path) -> None:
    running = ProcessEngine(EngineOptions(workers=2), leave_mark).run(tasks(tmp_path, "a", "sleeps"))
    next(running)
    mark = tmp_path / "sleeps.0"
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.02)
    worker = psutil.Process(int(mark.read_text()))
    running.close()  # type: ignore[attr-defined]
    assert has_ended(worker)


def test_ray_engine_tells_deaths_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    program = (
        "from pathlib import Path; import sys\n"
        "from tests.unit.test_compare_engines import *\n"
        "from training.compare.ray_engine import RayEngine\n"
        "for task, death in RayEngine(EngineOptions(workers=2), leave_mark).run(tasks(Path(sys.argv[1]), 'a', 'once', 'killed')):\n"
        "    print(task.names[0], death)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {MARK: str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    answer = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    done = dict(line.split(" ", 1) for line in answer.stdout.splitlines())
    assert (done["a"], done["once"]) == ("None", "None")
    assert "the worker on the cluster died" in done["killed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.0", "killed.0", "killed.1", "once.0", "once.1"]
    until(lambda: not processes_marked(str(tmp_path)))


MARK = "HQTL_TEST_MARK"


def processes_marked(value: str) -> list[psutil.Process]:
    """Those that have inherited the mark of one test; others use Ray at the same time."""
    return [process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get(MARK) == value]


def has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_choice_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [pick_engine(name, EngineOptions()) for name in ("auto", "local", "ray")] == ["process", "local", "ray"]
    assert pick_engine("auto", EngineOptions(ray_address="head:6379")) == "ray"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert pick_engine("auto", EngineOptions()) == "ray"
    with pytest.raises(ConfigError, match="one of auto, local, process, ray"):
        make_engine("slurm", EngineOptions())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'hqtl\[ray\]'"):
        make_engine("ray", EngineOptions())


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    folder = CompareFolder(tmp_path / "out")
    with (
        folder.locked(["comparison"], wait=False),
        pytest.raises(ConfigError, match="another process works"),
        folder.locked(["comparison"], wait=False),
    ):
        pass
    with folder.locked(["comparison"], wait=False):
        pass


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photograph.png").touch()
    with pytest.raises(ConfigError, match="no comparison"):
        CompareFolder(tmp_path).check()
    folder = CompareFolder(tmp_path / "new")
    folder.check()
    scope = folder.begin({}, [["a"]])
    folder.check()
    assert folder.begin({}, [["a", "b"]]) == scope
    assert (folder.record() or {})["stacks"] == [["a", "b"]]
