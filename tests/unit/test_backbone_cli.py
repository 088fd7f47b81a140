"""``hqtl-train backbones``, ``explain`` and ``data synth --volumes`` as their user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from training.cli import main


def test_backbones_lists_and_filters() -> None:
    result = CliRunner().invoke(main, ["backbones", "r3d", "--json"])
    assert (result.exit_code, [each["name"] for each in json.loads(result.stdout)]) == (0, ["r3d_18"])
    whole = CliRunner().invoke(main, ["backbones"])
    assert whole.exit_code == 0
    assert {"resnet18", "vgg16", "squeezenet1_1", "swin_t", "s3d"} <= {
        line.split()[0] for line in whole.stdout.splitlines() if line.strip()
    }


def test_explain_prints_a_line_per_picture_and_counts_what_failed(finished_run: Path, photographs: Path, tmp_path: Path) -> None:
    image = next((photographs / "crack").iterdir())
    (tmp_path / "broken.png").write_bytes(b"no image")
    arguments = ["explain", str(finished_run), str(image), str(tmp_path / "broken.png"), "--out", str(tmp_path / "why"), "--json"]
    result = CliRunner().invoke(main, arguments)
    (found,) = json.loads(result.stdout)
    assert result.exit_code == 3
    assert "broken.png" in result.stderr
    assert found["target"] == found["label"]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(main, arguments)
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)


def test_synth_volumes_makes_cubes(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["data", "synth", "--out", str(tmp_path / "v"), "--volumes", "12", "--num-images", "4"])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'v'}: 4 volumes of 12 × 12 × 12 voxels\n")
    shapes = [np.load(path).shape for path in (tmp_path / "v").rglob("*.npy")]
    assert shapes == [(12, 12, 12)] * 4


@pytest.mark.parametrize("extra", [["--large", "300", "300"], ["--grain", "1", "2"], ["--masks", "m"]])
def test_volumes_take_no_option_of_patches(extra: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["data", "synth", "--out", str(tmp_path / "v"), "--volumes", "12", *extra])
    assert result.exit_code == 2
    assert f"{extra[0]} would have no effect on cubes (--volumes)" in result.stderr
