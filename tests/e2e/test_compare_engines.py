"""The real command on every engine, and killed between two runs: always the same figures, digit by digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hqtl_common.backends.opening import Limits
from training.compare.experiment import compare, plan_comparison
from training.compare.local_engines import EngineOptions
from training.compare.options import read_config

ROOT = Path(__file__).parents[2]
EPOCHS = 20
NAMES = [f"num_layers={layers},seed={seed}" for layers in (1, 2) for seed in (0, 1)]


@pytest.fixture(scope="module")
def file(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "layers.toml"
    base = f'[base]\nweights = "none"\nsplit_seed = 0\nepochs = {EPOCHS}\n'
    path.write_text(f"seeds = 2\n[data]\npath = {json.dumps(str(photographs))}\n{base}[grid]\nnum_layers = [1, 2]\n")
    return path


@pytest.fixture(scope="module")
def expected(file: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """``result.json`` of every run, trained one after another in this process."""
    planned, out = plan_comparison(read_config(file), Limits()), tmp_path_factory.mktemp("local") / "out"
    compare(planned, out, feature_cache, engine="local", options=EngineOptions(), limits=Limits())
    return results(out)


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / "runs" / name / "result.json").read_bytes() for name in NAMES}


def start(file: Path, out: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "training.cli", "compare", str(file), "--out", str(out), "--cache-dir", str(cache), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}  # of no influence
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    answer: dict[str, Any] = json.loads(stdout)
    return answer


@pytest.mark.slow
def test_killed_processes_go_on(file: Path, expected: dict[str, bytes], feature_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(file, out, feature_cache, "--engine", "process", "--workers", "1")
    second = out / "runs" / NAMES[2] / "metrics.jsonl"
    while not (second.exists() and second.read_bytes().count(b"\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=20)
    finished = {name: (out / "runs" / name / "result.json").stat().st_mtime_ns for name in NAMES[:2]}
    assert not (out / "runs" / NAMES[2] / "result.json").exists()
    answer = finish(start(file, out, feature_cache, "--engine", "process", "--workers", "1"))
    assert {name: (out / "runs" / name / "result.json").stat().st_mtime_ns for name in NAMES[:2]} == finished
    assert results(out) == expected
    assert [row["status"] for row in answer["rows"]] == ["finished"] * 4


@pytest.mark.slow
def test_ray_gives_the_same(file: Path, expected: dict[str, bytes], feature_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    out = tmp_path / "out"
    answer = finish(start(file, out, feature_cache, "--engine", "ray", "--workers", "2"))
    assert results(out) == expected
    assert {row["status"] for row in answer["rows"]} == {"finished"}
    outcome = json.loads((out / "outcomes" / f"{NAMES[0]}.json").read_text())
    assert outcome["engine"] == "ray"
