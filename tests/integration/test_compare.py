"""``hqtl-train compare`` from file to tables: what it finds, that it goes on, and how it says what failed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from tests.unit.test_report import Page
from training.cli import main
from training.compare.experiment import read_comparison
from training.compare.summary import verdict
from training.runs import RunFolder

ROOT = Path(__file__).parents[2]
TEXT = 'seeds = 2\n[base]\nweights = "none"\nsplit_seed = 0\nepochs = 3\n[grid]\nnum_layers = [1, 2]\n'


@pytest.fixture(scope="module")
def command(photographs: Path, feature_cache: Path) -> Any:
    def command(file: Path, out: Path, *arguments: str) -> Result:
        fixed = ["--data", str(photographs), "--out", str(out), "--cache-dir", str(feature_cache), "--engine", "local"]
        return CliRunner().invoke(main, ["compare", str(file), *fixed, *arguments])

    return command


@pytest.fixture(scope="module")
def done(command: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """The file, the folder and the printed document of a finished comparison."""
    folder = tmp_path_factory.mktemp("compare")
    file, out = folder / "layers.toml", folder / "out"
    file.write_text(TEXT + '[data]\npath = "nowhere"\n')
    result = command(file, out, "--json")
    assert result.exit_code == 0, result.output
    return file, out, json.loads(result.stdout)


def test_tables_hold_what_the_runs_found(done: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, printed = done
    table = parquet.read_table(out / "results.parquet").to_pylist()
    assert [row["run"] for row in table] == [f"num_layers={layers},seed={seed}" for layers in (1, 2) for seed in (0, 1)]
    assert table == printed["rows"]
    with (out / "results.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in table]
    for row in table:
        result = RunFolder(out / "runs" / row["run"]).result()
        assert result is not None
        assert row["test_accuracy"] == result["test"]["accuracy"]
        assert [row["test_accuracy_low"], row["test_accuracy_high"]] == result["test"]["accuracy_interval"]
        assert row["bottleneck_accuracy"] == result["twins"]["bottleneck"]["test"]["accuracy"]
        assert row["linear_mcnemar_p"] == result["mcnemar"]["linear"]["p_value"]
        assert (row["parameter_sets"], row["jobs"], row["trained_together"]) == (result["parameter_sets"], result["jobs"], 2)
        assert (row["status"], row["error"], row["planned_jobs"]) == ("finished", None, result["planned"]["jobs"])
        assert row["torch"]
        assert row["seconds"] > 0
    with (out / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [(row["num_layers"], row["runs"]) for row in summary] == [("1", "2"), ("2", "2")]
    assert float(summary[0]["test_accuracy_mean"]) == pytest.approx(sum(row["test_accuracy"] for row in table[:2]) / 2)


def test_same_command_repeats_nothing_and_longer_lists_go_on(command: Any, done: tuple[Path, Path, dict[str, Any]]) -> None:
    file, out, printed = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    result = command(file, out, "--set", "seeds=3")
    assert result.exit_code == 0, result.output
    assert "4 runs are finished already" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("runs/*/result.json"))) == 6
    assert "num_layers" in result.stdout
    again = json.loads(command(file, out, "--json").stdout)
    assert again["rows"] == printed["rows"]


def test_other_options_are_refused_before_anything_runs(command: Any, done: tuple[Path, Path, dict[str, Any]]) -> None:
    file, out, _ = done
    result = command(file, out, "--set", "base.epochs=4")
    assert result.exit_code == 1
    assert "was begun with other options (epochs: 3 here, 4 there" in result.stderr
    assert command(file, out.parent, "--dry-run").exit_code == 0
    assert "no comparison" in command(file, out.parent).stderr


def test_failed_run_is_written_down_and_tried_again(command: Any, tmp_path: Path) -> None:
    """It was to be trained in one program with another, which goes on alone."""
    file, out = tmp_path / "lr.toml", tmp_path / "out"
    file.write_text('[base]\nepochs = 2\nsplit_seed = 0\nweights = "none"\n[grid]\nlr = [1e-3, 1e-2]\n[data]\npath = "nowhere"\n')
    spoilt = out / "runs" / "lr=0.01"
    spoilt.mkdir(parents=True)
    (spoilt / "notes.txt").touch()
    result = command(file, out)
    assert result.exit_code == 3, result.output
    first, second = parquet.read_table(out / "results.parquet").to_pylist()
    assert (first["status"], second["status"], second["test_accuracy"]) == ("finished", "failed", None)
    assert second["error"].startswith("ConfigError: ")
    for text in (result.stdout, (out / "report.html").read_text(), (out / "results.csv").read_text()):
        assert "exists already; go on with it" in " ".join(text.replace("\n", " ").split())
    assert "lr=0.01 failed: " in result.stderr
    (spoilt / "notes.txt").unlink()
    result = command(file, out)
    assert result.exit_code == 0, result.output
    assert "1 runs are finished already" in result.stderr
    assert [row["status"] for row in parquet.read_table(out / "results.parquet").to_pylist()] == ["finished"] * 2


def test_page_of_a_comparison(done: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, out, printed = done
    result = CliRunner().invoke(main, ["report", str(out), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    page.assert_whole()
    assert len(page.pictures("svg+xml")) == 2
    text = " ".join(page.text.split())
    for row in read_comparison(out).summary:
        assert verdict(row, "linear") in text
        assert f"{100 * row['test_accuracy_mean']:.1f} %" in text
    assert all(row["run"].replace(",", ", ") in text for row in printed["rows"])


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("compare-*.toml")), ids=lambda path: path.stem)
def test_examples_can_run(path: Path, command: Any, tmp_path: Path) -> None:
    result = command(path, tmp_path / "out", "--dry-run", "--json", "--set", "base.weights=none", "--set", "base.group_by=none", "--yes")
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]
    assert len(runs) > 3
    assert all(run["parameter_sets"] > 0 for run in runs)
    assert not (tmp_path / "out").exists()
