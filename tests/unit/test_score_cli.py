"""The command line: quick help, pure JSON, exit codes, progress."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from hqtl_common import ModelBundle, __version__
from hqtl_common.errors import BudgetExceededError, HqtlError
from serving import scoring
from serving.cli import main
from serving.scoring.progress import Bar, Lines, Silent, reporter_for
from serving.scoring.screen import printable

HEAVY = {"numpy", "PIL", "onnx", "onnxruntime", "rich", "pydantic", "torch", "bentoml", "qiskit", "pennylane", "asyncio"}
HELP = """
import sys
from serving.cli import main
main(["--help"], standalone_mode=False)
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for level in range(3):
        Image.new("L", (32, 32), level * 100).save(folder / f"{level}.png")
    return folder


def score(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(argument) for argument in arguments])


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)  # of the CPU: the machine may be busy
        assert answer.stdout.startswith("Usage: ")
        assert not HEAVY & set(answer.stderr.split())
    assert min(seconds) < 0.5


def test_help_names_every_option_and_exit_code() -> None:
    text = score("--help").stdout
    for parameter in main.params:
        assert any(name in text for name in parameter.opts) or parameter.name == "folder"
        assert parameter.name == "folder" or getattr(parameter, "help", None)
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "130 "):
        assert f"\n    {code}" in text
    assert score("--version").stdout == f"hqtl-score, version {__version__}\n"


def test_table_for_people(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    answer = score(photos, "--bundle", bundle.path, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr
    for word in ("crack", "no_crack", "images", "per second", "scores.csv", "scores.jsonl", "statevector (exact)"):
        assert word in answer.stdout
    assert answer.stderr == "3 images to score\n"
    again = score(photos, "--bundle", bundle.path, "--out", tmp_path / "out", "--resume")
    assert again.exit_code == 0
    assert "all of them by an earlier run" in again.stdout


def test_json_is_one_document_and_nothing_else(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    (photos / "bad\x1b[31m.png").touch()
    options = ("--bundle", bundle.path, "--out", tmp_path / "out", "--json", "--shots", "20", "--batch-size", "2", "--threshold", "0.4")
    answer = score(photos, *options)
    assert answer.exit_code == 3
    document = json.loads(answer.stdout)
    assert (document["images"], document["errors"], document["complete"]) == (4, {"UnknownImageFormatError": 1}, True)
    assert document["options"] == {"backend": "statevector", "shots": 20, "seed": 0, "batch_size": 2, "chunk_size": 2, "threshold": 0.4}
    assert document["images_per_second"] > 0
    table = score(photos, "--bundle", bundle.path, "--out", tmp_path / "out", "--resume")
    assert table.exit_code == 3
    assert r"bad\x1b[31m.png" in table.stdout
    assert "\x1b" not in table.stdout


def test_failure_is_one_line_or_one_document(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    arguments = (photos, "--bundle", tmp_path, "--out", tmp_path / "out")
    plain = score(*arguments)
    assert (plain.exit_code, plain.stdout) == (1, "")
    assert plain.stderr.startswith("hqtl-score: ")
    assert plain.stderr.count("\n") == 1
    as_json = score(*arguments, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["error"]["code"] == "BundleFormatError"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["missing-folder", "--bundle", "b", "--out", "o"],
        [".", "--out", "o"],
        [".", "--bundle", "b", "--out", "o", "--shots", "0"],
        [".", "--bundle", "b", "--out", "o", "--threshold", "1"],
        [".", "--bundle", "b", "--out", "o", "--nonsense"],
    ],
)
def test_wrong_command_line(arguments: list[str]) -> None:
    answer = score(*arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "Usage: " in answer.stderr


def test_no_image_is_said(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = score(tmp_path / "empty", "--bundle", bundle.path, "--out", tmp_path / "out")
    assert answer.exit_code == 0
    assert "no image was found" in answer.stderr


@pytest.mark.parametrize(
    ("error", "code", "resumable"),
    [(HqtlError("a\nb"), 1, False), (BudgetExceededError("3 of 3 jobs"), 4, True), (KeyboardInterrupt(), 130, True)],
)
def test_exit_codes_of_errors(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, resumable: bool
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(scoring, "score_folder", fail)
    answer = score(photos, "--bundle", "b", "--out", tmp_path / "a b", "--json")
    assert answer.exit_code == code
    assert set(json.loads(answer.stdout)) == {"error"}
    assert ("--resume" in answer.stderr) == resumable
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_the_chunk_and_tells_how_to_go_on(
    photos: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(Lines, "begin", lambda self, total, done: os.kill(os.getpid(), number))
    answer = score(photos, "--bundle", bundle.path, "--out", tmp_path / "a b", "--shots", "9", "--json", "--no-report", "--tiles")
    monkeypatch.undo()
    assert answer.exit_code == 130
    assert json.loads(answer.stdout)["complete"] is False
    options = "--shots 9 --tiles 0 --no-report --resume --json"
    assert f"go on with: hqtl-score {photos} --bundle {bundle.path} --out '{tmp_path}/a b' {options}\n" in answer.stderr
    assert signal.getsignal(number) is before
    assert score(photos, "--bundle", bundle.path, "--out", tmp_path / "a b", "--resume").exit_code == 0


def test_lines_tell_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serving.scoring.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Lines(stream) as lines:
        lines.found(5)
        lines.begin(1000, 100)
        for second in range(1, 62):
            clock[0] = float(second)
            lines.advance(100 + 5 * second)
    assert stream.getvalue().splitlines() == [
        "1,000 images to score, 100 of them done before",
        "250 of 1,000 images, 5.0 images/s, 2 min left",
        "400 of 1,000 images, 5.0 images/s, 2 min left",
    ]


def test_lines_within_the_first_file_know_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serving.scoring.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Lines(stream) as lines:
        lines.begin(2, 0)
        clock[0] = 31.0
        lines.advance(0)  # some frames of a long video have their rows
    assert stream.getvalue().splitlines()[1:] == ["0 of 2 images, 0.0 images/s"]


def test_bar_shows_count_rate_and_time() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=100)) as bar:
        bar.found(7)
        bar.begin(40, 10)
        for done in range(10, 41, 10):
            time.sleep(0.01)
            bar.advance(done)
        bar.note("something [b]new[/b]")
    text = stream.getvalue()
    assert "Scoring" in text
    assert "40/40" in text
    assert "images/s" in text
    assert "something [b]new[/b]" in text


def test_reporter_fits_the_stream() -> None:
    assert isinstance(reporter_for(io.StringIO()), Lines)
    silent = Silent()
    silent.found(1)
    silent.begin(1, 0)
    silent.advance(1)
    silent.note("x")


@pytest.mark.parametrize(
    ("name", "shown"), [("größe 漢.png", "größe 漢.png"), ("a\nb", r"a\nb"), ("\udce9\x1b", r"\udce9\x1b"), ("it's", "it's")]
)
def test_names_are_made_safe_for_terminals(name: str, shown: str) -> None:
    assert printable(name) == shown
