"""A training on emulated hardware, killed and disturbed at random: it ends as an undisturbed one, and every job is paid once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from hqtl_common.ledger import Ledger
from training.emulator import Emulator, EmulatorOptions, Fault, FaultKind, emulated_environment, start
from training.runs import RunFolder
from training.synth import write_dataset

ROOT = Path(__file__).parents[2]
MACHINE = "ibm_kolkata"
SECRETS = ("emulated-api-key", "crn:v1:")
# A fixed layout: a calibration that changes between two processes must not change the circuit.
OPTIONS = ("poll_s=0.05", "max_poll_s=0.4", "settle_s=6", "optimization_level=1", "initial_layout=[0,1,4,7]", "deadline_s=120")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """49 images to train on and 49 to validate with, the paper's 4/4/92 split, and a few to test with."""
    root = tmp_path_factory.mktemp("photographs") / "data"
    for seed, (name, count) in enumerate({"train": 49, "val": 49, "test": 10}.items()):
        write_dataset(root / name, count, seed)
    return root


def command(photographs: Path, run: Path, folder: Path) -> list[str]:
    arguments = ["fit", str(photographs), "--out", str(run), "--resume", "--weights", "none", "--epochs", "2", "--shots", "1024"]
    limits = ["--backend", f"ibm:{MACHINE}", "--max-jobs", "500", "--cache-dir", str(folder / "cache")]
    options = [word for option in OPTIONS for word in ("--backend-option", option)]
    return [sys.executable, "-m", "training.cli", *arguments, *limits, *options]


def launch(emulator: Emulator, arguments: list[str], ledger: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | emulated_environment(emulator, sealed=False) | {"HQTL_LEDGER": str(ledger)}
    with log.open("ab") as file:
        return subprocess.Popen(arguments, env=environment, cwd=ROOT, stdout=file, stderr=file)


def options_of(seed: int) -> EmulatorOptions:
    return EmulatorOptions(backends=(MACHINE,), seed=seed, open_seconds=None)


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(options_of(7)) as emulator:
        process = launch(emulator, command(photographs, folder / "run", folder), folder / "ledger.sqlite", folder / "log")
        assert process.wait(timeout=300) == 0, (folder / "log").read_text()
        stats = emulator.stats()
    steps = 2 * (13 + 1) + 2  # ⌈49/4⌉ optimiser steps and a validation per epoch, and the final figures
    assert (stats["submits_received"], stats["jobs_executed"]) == (steps, steps)
    return folder


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_disturbed_it_ends_the_same_and_pays_once(kills: int, photographs: Path, undisturbed: Path, tmp_path: Path) -> None:
    rng = random.Random(kills)
    arguments, ledger, log = command(photographs, tmp_path / "run", undisturbed), tmp_path / "ledger.sqlite", tmp_path / "log"
    with start(options_of(7)) as emulator:
        for kind in get_args(FaultKind):
            seconds = {"listing_lag": 1.0, "slow": 0.3, "rate_limit": 1.0}.get(kind)
            emulator.faults.add(Fault(kind=kind, probability=0.04, **({} if seconds is None else {"seconds": seconds})))
        for _ in range(400):
            process = launch(emulator, arguments, ledger, log)
            if kills:
                wait_for_submits(emulator, process, rng.randint(0, 2))
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                kills -= 1
            if process.wait(timeout=300) == 0:
                break
        else:
            pytest.fail(log.read_text()[-4000:])
        stats = emulator.stats()
    assert_same_run(tmp_path / "run", undisturbed / "run")
    entries = Ledger(ledger).find()
    jobs = [entry.job_id for entry in entries if entry.job_id is not None]
    assert len(jobs) == len(set(jobs)) == stats["jobs_accepted"]
    assert sum(entry.state == "done" for entry in entries) == stats["jobs"]["Completed"] == 30
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret.encode() in written]


def wait_for_submits(emulator: Emulator, process: subprocess.Popen[bytes], more: int) -> None:
    wanted = emulator.stats()["submits_received"] + more
    while process.poll() is None and emulator.stats()["submits_received"] < wanted:
        time.sleep(0.01)


def assert_same_run(run: Path, other: Path) -> None:
    found, expected = RunFolder(run).result(), RunFolder(other).result()
    assert found is not None
    assert expected is not None
    assert found.pop("qpu_seconds") == pytest.approx(expected.pop("qpu_seconds"), rel=1e-12)  # replayed seconds are added in another order
    assert found == expected
    mine, theirs = RunFolder(run).load_checkpoint(), RunFolder(other).load_checkpoint()
    assert mine is not None
    assert theirs is not None
    assert mine.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(value, theirs.tensors[key]) for key, value in mine.tensors.items())
