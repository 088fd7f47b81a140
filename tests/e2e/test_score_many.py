"""A folder as inspectors may have it: one row per file in every table, whatever the files are called and hold."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from hqtl_common import ModelBundle
from tests.odd_folder import make_folder, rows_of_all

ROOT = Path(__file__).parents[2]


def test_every_table_has_one_row_per_file(bundle: ModelBundle, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "photos", 240, seed=1)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "serving.cli", str(tmp_path / "photos"), "--bundle", str(bundle.path), "--out", str(out), "--parquet"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 3, answer.stderr
    assert rows_of_all(out, tmp_path / "photos", made).startswith("240, one per file; 3 errors, 2 duplicates")
    names = [os.fsencode(json.loads(line)["path"]) for line in (out / "scores.jsonl").read_bytes().splitlines()]
    with (out / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [os.fsencode(row["path"]) for row in csv.DictReader(file)] == names
    assert pyarrow.parquet.read_table(out / "scores.parquet")["path_bytes"].to_pylist() == names
    images = {entry["file_name"] for entry in json.loads((out / "coco.json").read_bytes())["images"]}
    assert {os.fsencode(name) for name in images} == set(names) - failed_without_size(out)
    points = [feature for feature in json.loads((out / "results.geojson").read_bytes())["features"] if feature["geometry"]]
    assert len(points) == sum(b'"longitude": null' not in line for line in (out / "scores.jsonl").read_bytes().splitlines()) > 20


def failed_without_size(out: Path) -> set[bytes]:
    rows = map(json.loads, (out / "scores.jsonl").read_bytes().splitlines())
    return {os.fsencode(row["path"]) for row in rows if row["width"] is None}


@pytest.mark.slow
def test_the_benchmark_of_many_files_finds_no_difference(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/hundred_thousand.py", "--files", "3000", "--kills", "10", "--folder", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "3,000, one per file; 30 errors" in answer.stdout
    assert "the same bytes" in answer.stdout
