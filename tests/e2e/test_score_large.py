"""Large photographs by the real command: maps and tiles against masks, and 520 tiles as one job with intervals on the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqtl_common import ModelBundle

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def score(folder: Path, bundle: ModelBundle, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "serving.cli", str(folder), "--bundle", str(bundle.path), "--out", str(out), "--json", *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


def test_tiles_of_the_large_photographs_are_compared_with_their_masks(shared_data: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    photos = shared_data / "large"
    answer = score(photos, bundle, tmp_path / "out", "--exclude", "*_mask.png", "--tiles", "--truth", str(photos))
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["bridge_001.jpg", "bridge_027.jpg", "floor_a.jpg"]
    maps = sorted((tmp_path / "out" / "maps").iterdir())
    for row, drawn in zip(rows, maps, strict=True):
        with Image.open(drawn) as picture:
            wanted = row["width"] / row["height"]
            assert picture.width / picture.height == pytest.approx(wanted, rel=0.1), "the picture and its legend"
    tiles, images = answer["truth"]["tiles"], answer["truth"]["images"]
    assert sum(tiles[key] for key in ("tp", "fp", "fn", "tn", "unclear")) == sum(row["tiles"]["count"] for row in rows)
    assert images["tp"] + images["fn"] == 3, "every one shows a crack"
    cracked = 0
    for row in rows:
        mask = np.asarray(Image.open(photos / row["path"].replace(".jpg", "_mask.png")).convert("L")) >= 128
        places = [tile for tile in tiles_of(tmp_path / "out") if tile["path"] == row["path"]]
        cracked += sum(mask[t["y"] : t["y"] + t["height"], t["x"] : t["x"] + t["width"]].sum() >= 80 for t in places)
    assert tiles["tp"] + tiles["fn"] == cracked


def tiles_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tiles.jsonl").read_text().splitlines()]


def test_520_tiles_are_one_job_of_a_noisy_machine_with_intervals_on_the_page(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (21, 27), dtype=np.uint8)
    Image.fromarray(coarse).resize((2600, 2000), Image.Resampling.BICUBIC).save(tmp_path / "scans" / "wall.png")
    options = ("--tiles", "100", "--overlap", "0", "--tile-quantile", "0.5", "--backend", "fake_kolkata", "--shots", "256")
    answer = score(tmp_path / "scans", bundle, tmp_path / "out", *options)
    (execution,) = answer["executions"]
    assert (execution["num_rows"], execution["num_jobs"], execution["backend_used"]) == (520, 1, "fake_kolkata")
    assert all(tile["interval"][0] <= tile["probability"] <= tile["interval"][1] for tile in tiles_of(tmp_path / "out"))
    page = re.sub(r"\s+", " ", (tmp_path / "out" / "report.html").read_text())
    assert "hold 95 % of the spread" in page
    assert re.search(r'\d % <span class="soft">\(\d+\.\d % to&nbsp;\d+\.\d %\)', page)
