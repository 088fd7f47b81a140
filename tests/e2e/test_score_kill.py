"""The real command, killed and interrupted at any moment: resumed, its files are those of an undisturbed run."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqtl_common import ModelBundle

COMMAND = [sys.executable, "-m", "serving.cli"]
FILES = ("scores.jsonl", "scores.csv", "summary.json", "state.json", "listing.nul")
KILLS = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images that take a few milliseconds each, some of them bad."""
    folder = tmp_path_factory.mktemp("kill") / "photos"
    rng = np.random.default_rng(0)
    for index in range(30):
        (folder / f"day{index}").mkdir(parents=True)
        pixels = rng.integers(0, 30 + 7 * index, (500, 500, 3), dtype=np.uint8)
        first = folder / f"day{index}" / "00.jpg"
        Image.fromarray(pixels).save(first, quality=80)
        for copy in range(1, 10):
            (folder / f"day{index}" / f"{copy:02d}.jpg").write_bytes(first.read_bytes())
        (folder / f"day{index}" / "cut.jpg").write_bytes(first.read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path, bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run in batches of four."""
    return finish(photos, bundle, tmp_path_factory.mktemp("whole") / "out", "--batch-size", "4")


def start(photos: Path, bundle: ModelBundle, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, str(photos), "--bundle", str(bundle.path), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def finish(photos: Path, bundle: ModelBundle, out: Path, *options: str) -> dict[str, bytes]:
    process = start(photos, bundle, out, *options)
    _, stderr = process.communicate()
    assert process.returncode == 3, stderr
    return {name: (out / name).read_bytes() for name in FILES}


def wait_for_rows(process: subprocess.Popen[str], out: Path, size: int) -> None:
    """Until scores.csv has ``size`` bytes, or the process ended."""
    while process.poll() is None and not ((out / "scores.csv").exists() and (out / "scores.csv").stat().st_size >= size):
        time.sleep(0.002)


def send(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate()


@pytest.mark.parametrize("options", [["--batch-size", "8"], ["--batch-size", "4", "--shots", "100", "--seed", "9"]], ids=["exact", "shots"])
def test_killed_at_any_moment(photos: Path, bundle: ModelBundle, tmp_path: Path, options: list[str]) -> None:
    whole = finish(photos, bundle, tmp_path / "whole", *options)
    rng, killed, resumed_at = random.Random(0), 0, set()
    for size in sorted(rng.randrange(len(whole["scores.csv"])) for _ in range(KILLS)):
        process = start(photos, bundle, tmp_path / "out", *options, "--resume")
        wait_for_rows(process, tmp_path / "out", size)
        time.sleep(rng.random() * 0.02)
        send(process, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        resumed_at.add(json.loads((tmp_path / "out" / "state.json").read_text())["position"]["files"])
    assert killed
    assert len(resumed_at) > 1, "no kill came after a commit"
    assert finish(photos, bundle, tmp_path / "out", "--resume") == whole


def test_killed_before_the_first_row(photos: Path, bundle: ModelBundle, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for delay in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6):
        process = start(photos, bundle, tmp_path / "out", "--batch-size", "4", "--resume")
        time.sleep(delay)
        send(process, signal.SIGKILL)
    assert finish(photos, bundle, tmp_path / "out", "--batch-size", "4", "--resume") == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(photos: Path, bundle: ModelBundle, tmp_path: Path, whole: dict[str, bytes], number: int) -> None:
    process = start(photos, bundle, tmp_path / "out", "--batch-size", "4", "--json")
    wait_for_rows(process, tmp_path / "out", len(whole["scores.csv"]) // 4)
    stdout, stderr = send(process, number)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "go on with: hqtl-score " in stderr
    answer = json.loads(stdout)
    assert not answer["complete"]
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert state["position"]["files"] == answer["done"] == (tmp_path / "out" / "scores.jsonl").read_bytes().count(b"\n")
    assert 0 < answer["done"] < 330
    assert finish(photos, bundle, tmp_path / "out", "--resume") == whole


def test_full_disk_is_one_line_and_resumable(photos: Path, bundle: ModelBundle, tmp_path: Path, whole: dict[str, bytes]) -> None:
    limit = len(whole["scores.jsonl"]) // 2
    command = [*COMMAND, str(photos), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--batch-size", "4"]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert answer.returncode == 1
    assert "scores.jsonl': File too large; make room or mend it, then run the same command with --resume" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert finish(photos, bundle, tmp_path / "out", "--resume") == whole


def test_full_disk_while_the_report_is_made_is_one_line_and_resumable(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700), dtype=np.uint8)).save(tmp_path / "scans" / "a.png")
    command = [*COMMAND, str(tmp_path / "scans"), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--tiles"]
    where = Path(__file__).parents[2]
    subprocess.run([*command, "--no-report", "--no-maps"], check=True, capture_output=True, cwd=where)
    before = everything(tmp_path / "out")
    for limit, name in ((100, "results.geojson"), (10_000, "maps/000001-a-png.png"), (None, "")):
        answer = subprocess.run(
            [*command, "--resume", "--report", *(["--maps"] if limit != 100 else [])],
            capture_output=True,
            text=True,
            check=False,
            cwd=where,
            preexec_fn=None if limit is None else lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),  # type: ignore[misc]
        )
        assert answer.returncode == (limit is not None), answer.stderr
        if limit is not None:
            assert f"{name}': File too large; make room or mend it, then run the same command with --resume" in answer.stderr
            assert answer.stderr.count("\n") == 1
            assert everything(tmp_path / "out") == before, "nothing half made is left"
    subprocess.run([*command[:-2], str(tmp_path / "whole"), "--tiles"], check=True, capture_output=True, cwd=where)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_second_run_on_the_same_output_is_refused(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    process = start(photos, bundle, tmp_path / "out", "--batch-size", "2")
    wait_for_rows(process, tmp_path / "out", 1)
    _, stderr = (second := start(photos, bundle, tmp_path / "out", "--resume")).communicate()
    still_running = process.poll() is None
    send(process, signal.SIGINT)
    if not still_running:
        pytest.skip("the first run ended too soon")
    assert second.returncode == 1
    assert "another run is writing" in stderr


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "seen.sqlite"}


def test_tiles_and_report_killed_at_any_moment(bundle: ModelBundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for index in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
        coarse.resize((700, 500)).save(tmp_path / "scans" / f"{index}.png")
    (tmp_path / "scans" / "copy.png").write_bytes((tmp_path / "scans" / "0.png").read_bytes())
    (tmp_path / "scans" / "bad.png").touch()
    options = ("--tiles", "100", "--overlap", "50", "--shots", "50", "--truth", str(tmp_path / "scans"))
    finish(tmp_path / "scans", bundle, tmp_path / "whole", *options)
    whole = everything(tmp_path / "whole")
    kills = 0
    for delay in (0.8, 1.1, 1.4, 1.7):
        process = start(tmp_path / "scans", bundle, tmp_path / "out", *options, "--resume")
        time.sleep(delay)
        send(process, signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills
    finish(tmp_path / "scans", bundle, tmp_path / "out", *options, "--resume")
    assert everything(tmp_path / "out") == whole
