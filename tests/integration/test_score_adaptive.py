"""``hqtl-score --max-shots``: shots per image in both files, the rule in the summary, the same bytes after any stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hqtl_common import ModelBundle
from hqtl_common.errors import CapabilityError, ConfigError
from serving.cli import main
from serving.scoring import Outcome, Request, score_folder
from serving.scoring.progress import Silent

FILES = ("scores.jsonl", "scores.csv", "summary.json", "state.json")
ADAPTIVE = Request(shots=50, max_shots=1600, seed=3, batch_size=5)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 images of coarse squares, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(23):
        grid = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(grid, np.ones((56, 56, 1), np.uint8))).save(folder / f"{index:03d}.png")
    (folder / "bad.png").write_bytes(b"bad")
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text("ascii").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def score_some(chunks: int, photos: Path, bundle: ModelBundle, out: Path, request: Request | None = None, resume: bool = False) -> Outcome:
    """A run that is asked to stop when so many chunks are done."""
    done: list[int] = []

    class Count(Silent):
        def begin(self, total: int, before: int) -> None:
            done.append(0)

        def advance(self, files: int) -> None:
            done[0] += 1

    return score_folder(
        photos, bundle.path, out, request, resume=resume, reporter=Count(), should_stop=lambda: bool(done) and done[0] >= chunks
    )


def score(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(argument) for argument in arguments])


def test_rows_say_the_shots_of_each_image(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    outcome = score_folder(photos, bundle.path, tmp_path / "out", ADAPTIVE)
    rows = rows_of(tmp_path / "out")
    used = [row["shots"] for row in rows if not row["error"]]
    assert len(used) == 23
    assert set(used) <= {50 * 2**k for k in range(6)}
    assert len(set(used)) > 1
    assert all(row.keys() == rows[0].keys() and "shots_used" not in row for row in rows)
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        assert [row["shots"] for row in csv.DictReader(file)] == ["" if row["error"] else str(row["shots"]) for row in rows]
    (execution,) = outcome.summary["executions"]  # one entry, however many chunks
    options = execution["options"]
    assert (options["max_shots"], options["error_rate"], options["rounds"]) == (1600, 0.05, 6)
    assert options["executions"] == sum(used) == execution["num_rows"] * 50
    assert options["undecided"] <= used.count(1600)
    assert 5 <= execution["num_jobs"] <= 5 * 6
    assert outcome.summary["options"]["max_shots"] == 1600


def test_fixed_shots_are_recorded_as_before(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    outcome = score_folder(photos, bundle.path, tmp_path / "out", Request(shots=50))
    assert "max_shots" not in outcome.summary["options"]
    assert "max_shots" not in json.loads((tmp_path / "out" / "state.json").read_bytes())["options"]
    assert {row["shots"] for row in rows_of(tmp_path / "out") if not row["error"]} == {50}


@pytest.mark.parametrize("backend", ["statevector", "aer", "fake_lima"])
def test_stopped_anywhere_and_resumed_is_the_same(photos: Path, bundle: ModelBundle, tmp_path: Path, backend: str) -> None:
    request = Request(backend=backend, shots=50, max_shots=400, seed=3, batch_size=5)
    score_folder(photos, bundle.path, tmp_path / "whole", request)
    for chunks in range(6):
        out = tmp_path / f"stopped{chunks}"
        assert score_some(chunks, photos, bundle, out, request).complete == (chunks == 5)
        assert score_folder(photos, bundle.path, out, resume=True, workers=1).complete
        assert contents(out) == contents(tmp_path / "whole")


def test_resume_compares_max_shots(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_some(1, photos, bundle, tmp_path / "out", ADAPTIVE)
    with pytest.raises(ConfigError, match=r"max-shots \(recorded: 1600, now: 800\)"):
        score_folder(photos, bundle.path, tmp_path / "out", Request(max_shots=800), resume=True)
    assert score_folder(photos, bundle.path, tmp_path / "out", Request(max_shots=1600), resume=True).complete
    score_some(1, photos, bundle, tmp_path / "fixed", Request(shots=50, batch_size=5))
    with pytest.raises(ConfigError, match=r"max-shots \(recorded: none, now: 800\)"):
        score_folder(photos, bundle.path, tmp_path / "fixed", Request(max_shots=800), resume=True)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(max_shots=100), CapabilityError),
        (Request(shots=200, max_shots=100), ConfigError),
        (Request(shots=1, max_shots=2000), ConfigError),
    ],
)
def test_illegal_bounds_leave_nothing(photos: Path, bundle: ModelBundle, tmp_path: Path, request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_shots"):
        score_folder(photos, bundle.path, tmp_path / "out", request_)
    assert not (tmp_path / "out").exists()


def test_command_line(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    (photos / "bad.png").unlink()
    options = ("--bundle", bundle.path, "--shots", "50", "--max-shots", "1600", "--seed", "3", "--batch-size", "5")
    plain = score(photos, *options, "--out", tmp_path / "plain")
    assert plain.exit_code == 0, plain.stderr
    assert "statevector (50 to 1,600 shots): " in plain.stdout
    as_json = score(photos, *options, "--out", tmp_path / "json", "--json")
    assert json.loads(as_json.stdout)["options"]["max_shots"] == 1600
    assert (tmp_path / "json" / "scores.csv").read_bytes() == (tmp_path / "plain" / "scores.csv").read_bytes()
    refused = score(photos, "--bundle", bundle.path, "--out", tmp_path / "none", "--max-shots", "100")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "set shots" in refused.stderr
