"""The real command on a Ray cluster of two nodes, either of which may die, and the run itself: always the rows of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from hqtl_common import ModelBundle
from tests.films import pictures, write_film

pytest.importorskip("ray", reason="needs the extra ray")

ROOT = Path(__file__).parents[2]
NOT_COMPARED = {"seen.sqlite"}
OPTIONS = ("--batch-size", "3", "--chunk-size", "6", "--shots", "100", "--seed", "9", "--no-report")
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "pid\\n":
        print(next(one.process.pid for one in node.all_processes["raylet"]), flush=True)
    elif line == "add\\n":
        node = cluster.add_node(num_cpus=1)
        print("added", flush=True)
cluster.shutdown()
"""


class TwoNodes:
    """A cluster of this machine, of a process of its own."""

    def __init__(self) -> None:
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", CLUSTER], text=True, env=environment, cwd=ROOT, **pipes)
        self.address = self._line()

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self._line()

    def second_at_work(self, run: subprocess.Popen[str]) -> psutil.Process:
        """The second node, as soon as a chunk is being scored there."""
        raylet = psutil.Process(int(self.ask("pid")))
        while not any("score_rows" in " ".join(command_of(child)) for child in raylet.children()):
            assert run.poll() is None, run.communicate()
            time.sleep(0.005)
        return raylet

    def kill_second_at_work(self, run: subprocess.Popen[str]) -> None:
        """The second node dies at work; another one takes its place."""
        raylet = self.second_at_work(run)
        processes = [raylet, *raylet.children(recursive=True)]  # as a machine without power
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert not psutil.wait_procs(processes[1:], timeout=60)[1]
        self.ask("add")

    def close(self) -> None:
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.communicate()
        assert not psutil.wait_procs(processes, timeout=60)[1], "Ray left processes"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    try:
        yield nodes
    finally:
        nodes.close()


def make_photos(folder: Path, count: int) -> Path:
    """Images with duplicates near and far, damaged ones, and names of any bytes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        first = folder / f"day{index % 5}" / f"{index:04d}.jpg"
        first.parent.mkdir(parents=True, exist_ok=True)
        low, high = sorted(rng.integers(0, 256, 2))
        Image.fromarray(rng.integers(low, high + 1, (200, 200, 3), dtype=np.uint8)).save(first)
        if index % 7 == 0:
            (folder / f"again{index}.jpg").write_bytes(first.read_bytes())
            (first.parent / f"{index:04d} copy.jpg").write_bytes(first.read_bytes())
        if index % 9 == 0:
            (first.parent / f"cut\n{index}.jpg").write_bytes(first.read_bytes()[:600])
            (first.parent / f"n\udce9\udcff {index}.JPG").write_bytes(first.read_bytes() + b"tail")
    (folder / "empty.png").touch()
    return folder


def start(photos: Path, bundle: ModelBundle, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving.cli", str(photos), "--bundle", str(bundle.path), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: subprocess.Popen[str], code: int = 3) -> str:
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    return stderr


def wait_for_rows(process: subprocess.Popen[str], out: Path, rows: int) -> None:
    while not (out / "scores.jsonl").exists() or (out / "scores.jsonl").read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in NOT_COMPARED}


def disturb(cluster: TwoNodes, photos: Path, bundle: ModelBundle, out: Path, rows: int) -> None:
    """A run on the cluster that loses a node, and then its own life."""
    process = start(photos, bundle, out, *OPTIONS, "--resume", "--engine", "ray", "--ray-address", cluster.address)
    wait_for_rows(process, out, rows)
    cluster.kill_second_at_work(process)
    wait_for_rows(process, out, rows + 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def add_stacks(folder: Path) -> None:
    """A video that is cut off, an array, and a TIFF of several pages, twice."""
    film = write_film(folder / "flight.mkv", pictures(12)).read_bytes()
    (folder / "cut.mkv").write_bytes(film[: len(film) * 2 // 3])
    np.save(folder / "cube.npy", np.stack([frame[..., 0] for frame in pictures(7, seed=1)]))
    for name in ("pages.tif", "pages again.tif"):
        tifffile.imwrite(folder / name, np.stack(pictures(5, seed=2)), photometric="rgb")


def test_two_nodes_give_the_rows_of_one_process(cluster: TwoNodes, bundle: ModelBundle, tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 120), tmp_path / "out"
    add_stacks(photos)
    options, ray = (*OPTIONS, "--every", "2"), ("--engine", "ray", "--ray-address", cluster.address)
    finish(start(photos, bundle, tmp_path / "whole", *options))
    process = start(photos, bundle, out, *options, *ray)
    cluster.second_at_work(process)
    wait_for_rows(process, out, 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(photos, bundle, out, "--resume", "--no-report", *ray))
    assert everything(out) == everything(tmp_path / "whole")
    kinds = [json.loads(line)["part_kind"] for line in (out / "scores.jsonl").read_text().splitlines()]
    assert Counter(kinds)["slice"] == 7
    assert Counter(kinds)["page"] == 10
    assert Counter(kinds)["frame"] > 6


@pytest.mark.slow
def test_a_node_dies_and_the_run_too(cluster: TwoNodes, bundle: ModelBundle, tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 180), tmp_path / "out"
    finish(start(photos, bundle, tmp_path / "whole", *OPTIONS))
    disturb(cluster, photos, bundle, out, 20)
    finish(start(photos, bundle, out, "--resume", "--no-report"))  # in one process
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.slow
def test_more_of_everything(cluster: TwoNodes, bundle: ModelBundle, tmp_path: Path) -> None:
    """Begun in one process, gone on with on the cluster, which loses a node three times; and stopped politely in between."""
    photos, out = make_photos(tmp_path / "photos", 900), tmp_path / "out"
    finish(start(photos, bundle, tmp_path / "whole", *OPTIONS))
    process = start(photos, bundle, out, *OPTIONS)
    wait_for_rows(process, out, 60)
    process.send_signal(signal.SIGTERM)
    finish(process, 130)
    for rows in (150, 400, 650):
        disturb(cluster, photos, bundle, out, rows)
    process = start(photos, bundle, out, "--resume", "--engine", "ray", "--ray-address", cluster.address)
    wait_for_rows(process, out, 800)
    process.send_signal(signal.SIGTERM)
    assert "go on with: hqtl-score " in finish(process, 130)
    finish(start(photos, bundle, out, "--resume", "--no-report", "--engine", "ray"))  # on a cluster of its own
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--tiles", "100", "--overlap", "20"), ("--refine-with", "aer"), ("--backend", "fake_lima", "--shots", "64")]
)
def test_every_kind_of_run(cluster: TwoNodes, bundle: ModelBundle, tmp_path: Path, options: tuple[str, ...]) -> None:
    photos = make_photos(tmp_path / "photos", 24)
    for name, where in (("whole", ()), ("out", ("--engine", "ray", "--ray-address", cluster.address))):
        finish(start(photos, bundle, tmp_path / name, "--batch-size", "5", "--seed", "3", *options, *where))
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
