"""``hqtl-score --refine-with`` a paid machine: only what is in doubt is paid for, within a budget, and never twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hqtl_common import ModelBundle
from serving.cli import main
from tests.ibm_emulator.conftest import Running

OPTIONS = ("poll_s=0.05", "max_poll_s=0.3", "settle_s=1.0", "optimization_level=1")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans, each with tiles in doubt."""
    (tmp_path / "scans").mkdir()
    for index in range(4):
        coarse = np.random.default_rng(index).integers(0, 256, (8, 10), dtype=np.uint8)
        Image.fromarray(coarse).resize((600, 500), Image.Resampling.BICUBIC).save(tmp_path / "scans" / f"{index}.png")
    return tmp_path / "scans"


def score(scans: Path, bundle: ModelBundle, out: Path, *more: str) -> Result:
    backend = [word for option in OPTIONS for word in ("--refine-option", option)]
    refine = ("--refine-with", "ibm:ibm_lima", "--refine-shots", "32", *backend)
    options = ("--bundle", str(bundle.path), "--out", str(out), "--tiles", "100", "--overlap", "0", *refine)
    return CliRunner().invoke(main, [str(scans), *options, *more, "--json"])


def test_budget_stops_the_refinement_and_nothing_is_paid_twice(
    running: Running, scans: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HQTL_LEDGER", str(tmp_path / "ledger"))
    with running() as emulator:
        refused = score(scans, bundle, tmp_path / "out")
        assert refused.exit_code == 1
        assert "costs money or queues" in refused.stderr
        stopped = score(scans, bundle, tmp_path / "out", "--max-jobs", "2")
        assert stopped.exit_code == 4, stopped.stderr
        assert "go on with: hqtl-score" in stopped.stderr
        assert emulator.stats()["jobs_accepted"] == 2
        rows = (tmp_path / "out" / "scores.jsonl").read_bytes()
        assert rows.count(b"\n") == 2, "what was paid for is written"
        again = score(scans, bundle, tmp_path / "out", "--resume", "--max-jobs", "2")
        assert again.exit_code == 4, "the budget is that of the run, not of the call"
        assert emulator.stats()["jobs_accepted"] == 2
        done = score(scans, bundle, tmp_path / "out", "--resume", "--max-jobs", "4")
        assert done.exit_code == 0, done.stderr
        assert emulator.stats()["jobs_accepted"] == 4
        assert (tmp_path / "out" / "scores.jsonl").read_bytes().startswith(rows)
        replayed = score(scans, bundle, tmp_path / "copy", "--max-jobs", "4")
        assert replayed.exit_code == 0, replayed.stderr
        assert emulator.stats()["jobs_accepted"] == 4
    for name in ("scores.jsonl", "tiles.jsonl", "summary.json", "report.html"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    tiles = [json.loads(line) for line in (tmp_path / "out" / "tiles.jsonl").read_text().splitlines()]
    refined = [tile for tile in tiles if tile["backend"] == "ibm:ibm_lima"]
    exact, paid = json.loads(done.stdout)["executions"]
    assert (exact["num_rows"], exact["num_jobs"], paid["num_rows"], paid["num_jobs"]) == (len(tiles), 4, len(refined), 4)
    assert 0 < len(refined) < len(tiles)
    assert all(tile["interval"] and tile["shots"] == 32 for tile in refined)
    assert not any(tile["interval"] for tile in tiles if tile not in refined)


@pytest.mark.slow
def test_520_tiles_are_one_job_with_intervals(
    running: Running, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HQTL_LEDGER", str(tmp_path / "ledger"))
    (tmp_path / "scans").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (21, 27), dtype=np.uint8)
    Image.fromarray(coarse).resize((2600, 2000), Image.Resampling.BICUBIC).save(tmp_path / "scans" / "wall.png")
    backend = [word for option in OPTIONS for word in ("--backend-option", option)]
    options = ("--tiles", "100", "--overlap", "0", "--backend", "ibm:ibm_lima", "--shots", "128", "--max-jobs", "1", *backend)
    command = [str(tmp_path / "scans"), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), *options, "--json"]
    with running() as emulator:
        answer = CliRunner().invoke(main, command)
        assert answer.exit_code == 0, answer.stderr
        assert emulator.stats()["jobs_accepted"] == 1
    (execution,) = json.loads(answer.stdout)["executions"]
    assert (execution["num_rows"], execution["num_jobs"]) == (520, 1)
    tiles = [json.loads(line) for line in (tmp_path / "out" / "tiles.jsonl").read_text().splitlines()]
    assert all(tile["interval"][0] <= tile["probability"] <= tile["interval"][1] for tile in tiles)
    assert "ibm:ibm_lima" in (tmp_path / "out" / "report.html").read_text()
