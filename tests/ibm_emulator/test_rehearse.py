"""``hqtl-train rehearse``: a command against the stand-in, in a process of its own, its exit code passed on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose ledger is known, with an account that a rehearsal must not use."""
    values = {"HQTL_LEDGER": str(tmp_path / "mine.sqlite"), "QISKIT_IBM_TOKEN": "canary-51f0", "QISKIT_IBM_INSTANCE": "crn:v1:canary"}
    return {**os.environ, **values, "PYTHONPATH": str(ROOT)}


def rehearse(home: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.cli", "rehearse", "--machine", "ibm_lima", *arguments]
    return subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True, timeout=300, check=False)


def stats(answer: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer.stderr[answer.stderr.index("{") :])
    return found


def test_the_machines_of_the_stand_in_are_listed(home: dict[str, str], tmp_path: Path) -> None:
    answer = rehearse(home, "--", "backends", "--check", "--json")
    assert answer.returncode == 0, answer.stderr
    account = json.loads(answer.stdout)["ibm"]
    (machine,) = account["machines"]
    assert (machine["name"], machine["num_qubits"], machine["operational"], machine["pending_jobs"]) == ("ibm_lima", 5, True, 0)
    assert account["usage"]
    assert stats(answer)["submits_received"] == 0
    assert "canary" not in answer.stdout + answer.stderr
    assert "crn:" not in answer.stdout + answer.stderr
    assert not (tmp_path / "mine.sqlite").exists()


WORK = """
import os, sys
import numpy as np
from hqtl_common import HeadSpec, get_backend
from hqtl_common.ledger import default_ledger_path
backend = get_backend("ibm:ibm_lima", shots=50, max_jobs=1, poll_s=0.05, optimization_level=1)
backend.run(HeadSpec(), np.zeros((1, 4)), np.zeros((2, 4)))
print(default_ledger_path(), default_ledger_path().exists(), os.environ["QISKIT_IBM_TOKEN"])
sys.exit(7)
"""


def test_any_program_with_its_exit_code_and_a_ledger_for_the_rehearsal(home: dict[str, str], tmp_path: Path) -> None:
    answer = rehearse(home, "--", sys.executable, "-W", "ignore", "-c", WORK)
    assert answer.returncode == 7, answer.stderr
    path, existed, key = answer.stdout.split()
    assert existed == "True"
    assert not Path(path).exists(), "the ledger of a rehearsal goes with it"
    assert not (tmp_path / "mine.sqlite").exists()
    assert "canary" not in key
    assert stats(answer)["jobs_executed"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--", "no-such-program"], 1, "there is no program 'no-such-program'"),
        (["--machine", "ibm_nowhere", "--", "backends"], 1, "_nowhere"),
        (["--", "fit", "--no-such-option"], 2, "--no-such-option"),
        ([], 2, "COMMAND"),
    ],
    ids=["program", "machine", "usage", "nothing"],
)
def test_refusals(arguments: list[str], code: int, message: str, home: dict[str, str]) -> None:
    answer = rehearse(home, *arguments)
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_killed_command_is_told_like_a_shell_does(home: dict[str, str]) -> None:
    answer = rehearse(home, "--", sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert answer.returncode == 137
