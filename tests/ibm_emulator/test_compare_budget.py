"""One budget for all paid runs of a comparison: it stops before the job that is too much, and goes on without paying again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hqtl_common.ledger import Ledger
from tests.ibm_emulator.conftest import Running
from training.cli import main


def test_paid_runs_share_one_budget(
    running: Running, photographs: Path, feature_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs of two runs and at least four jobs each (a step, a validation, two measurements), and a limit between one and both."""
    ledger, file, out = tmp_path / "ledger", tmp_path / "paid.toml", tmp_path / "out"
    monkeypatch.setenv("HQTL_LEDGER", str(ledger))
    options = {"poll_s": 0.05, "max_poll_s": 0.3, "settle_s": 1.0, "optimization_level": 1}
    base = '[base]\nweights = "none"\nsplit_seed = 0\nepochs = 1\nbatch_size = 64\nshots = 16\nbackend = "ibm:ibm_lima"\n'
    base += 'diff_method = "spsa"\n[base.backend_options]\n' + "\n".join(f"{name} = {value}" for name, value in options.items())
    file.write_text(f"[data]\npath = {json.dumps(str(photographs))}\n{base}\n[grid]\nnum_layers = [1, 2]\nseed = [0, 1]\n")
    command = ["compare", str(file), "--out", str(out), "--cache-dir", str(feature_cache), "--engine", "process", "--json"]
    with running() as emulator:
        assert "costs money" in CliRunner().invoke(main, command).stderr
        stopped = CliRunner().invoke(main, [*command, "--max-jobs", "6"])
        assert stopped.exit_code == 4, stopped.output
        spent = emulator.stats()["submits_received"]
        assert spent <= 6
        assert len(list(out.glob("runs/num_layers=1*/result.json"))) == 2
        assert not list(out.glob("runs/num_layers=2*/result.json"))
        assert (out / "results.csv").read_text().count("pending") == 2
        ended = CliRunner().invoke(main, [*command, "--max-jobs", "100"])
        assert ended.exit_code == 0, ended.output
        jobs = emulator.stats()["submits_received"]
    entries = Ledger(ledger).find()
    assert jobs == len(entries)
    assert len({entry.scope for entry in entries}) == 1
    assert entries[0].scope.startswith("compare-")
    rows = json.loads(ended.stdout)["rows"]
    assert {row["status"] for row in rows} == {"finished"}
    assert rows[0]["jobs"] + rows[2]["jobs"] == jobs  # the seeds of a program share their jobs
    assert all(json.loads(path.read_text())["engine"] == "local" for path in out.glob("outcomes/*.json"))
