"""Mitigation on a machine: one job with several PUBs, raw counts of all of them in the ledger, replays that pay nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends import hardware
from hqtl_common.backends.base import Backend, estimate
from hqtl_common.backends.costs import estimated_qpu_seconds
from hqtl_common.errors import BudgetExceededError, ConfigError
from hqtl_common.ledger import Entry, Ledger
from tests.ibm_emulator.conftest import Running
from training.emulator import Emulator, Fault

SPEC = HeadSpec()
RNG = np.random.default_rng(0)
WEIGHTS, ANGLES = RNG.uniform(-2, 2, (1, 4)), RNG.uniform(-1.5, 1.5, (6, 4))
BOTH: dict[str, Any] = {"mitigation": "readout", "calibration_shots": 3000, "zne": (1, 3)}


def machine(path: Path, **options: Any) -> Backend:
    given = {"shots": 500, "seed": 1, "max_jobs": 3, "scope": "s", "ledger": path / "ledger.sqlite"}
    return get_backend("ibm:ibm_lima", **given, poll_s=0.1, max_poll_s=1.0, settle_s=5.0, **options)


def only_entry(path: Path) -> Entry:
    (entry,) = Ledger(path / "ledger.sqlite").find()
    return entry


def test_one_job_of_two_pubs(emulator: Emulator, tmp_path: Path) -> None:
    answer = machine(tmp_path, mitigation="readout", calibration_shots=3000).run(SPEC, WEIGHTS, ANGLES)
    stats, entry = emulator.stats(), only_entry(tmp_path)
    assert stats["jobs_executed"] == 1
    assert stats["qpu_seconds"] == pytest.approx(estimated_qpu_seconds(1, 6 * 500 + 2 * 3000), rel=0.03)
    assert entry.counts is not None
    assert (entry.num_rows, entry.counts.sum(axis=1).tolist()) == (6, [500] * 6 + [3000] * 2)
    assert (answer.record.num_jobs, answer.record.options["calibration_executions"]) == (1, 6000)

    raw, _ = estimate(entry.counts[:6], 4)
    (zero, one), _ = estimate(entry.counts[6:], 4)
    np.testing.assert_allclose(answer.expvals, np.clip((2 * raw - zero - one) / (zero - one), -1, 1), atol=1e-12)
    np.testing.assert_allclose(answer.record.options["readout_errors"], np.transpose([(1 - zero) / 2, (1 + one) / 2]))

    snapshot = get_backend("fake_lima", mitigation="readout", optimization_level=3).run(SPEC, WEIGHTS, ANGLES)
    assert snapshot.record.layout == answer.record.layout
    np.testing.assert_allclose(answer.record.options["readout_errors"], snapshot.record.options["readout_errors"], atol=0.025)
    assert answer.expval_stds is not None
    assert np.abs((answer.expvals - snapshot.expvals) / answer.expval_stds).max() < 5


def test_extrapolation_and_readout_come_nearer_to_the_truth(emulator: Emulator, tmp_path: Path) -> None:
    ideal = get_backend("statevector").run(SPEC, WEIGHTS, ANGLES).expvals
    options = {"shots": 20_000, "max_jobs": None, "yes": True, "scope": None, "ledger": tmp_path / "l", "poll_s": 0.1, "settle_s": 5.0}
    raw, better = (
        get_backend("ibm:ibm_lima", **options, **o).run(SPEC, WEIGHTS, ANGLES) for o in ({}, {**BOTH, "calibration_shots": 20_000})
    )
    assert np.square(better.expvals - ideal).mean() < 0.3 * np.square(raw.expvals - ideal).mean()
    assert better.record.options["zne_executions"] == 6 * 20_000
    assert emulator.stats()["jobs_executed"] == 2


def test_a_replay_is_identical_and_costs_nothing(emulator: Emulator, tmp_path: Path) -> None:
    first = machine(tmp_path, **BOTH).run(SPEC, WEIGHTS, ANGLES)
    again = machine(tmp_path, **BOTH).run(SPEC, WEIGHTS, ANGLES)
    assert first.expvals.tobytes() == again.expvals.tobytes()
    assert first.expval_covs is not None
    assert again.expval_covs is not None
    assert first.expval_covs.tobytes() == again.expval_covs.tobytes()
    assert first.record.options == again.record.options
    assert first.record.job_ids == again.record.job_ids
    assert emulator.stats()["jobs_executed"] == 1
    entry = only_entry(tmp_path)
    assert entry.counts is not None
    assert entry.counts.sum(axis=1).tolist() == [500] * 12 + [3000] * 2
    assert entry.details["executions"] == entry.counts.sum() == 12_000
    machine(tmp_path).run(SPEC, WEIGHTS, ANGLES)  # another request
    machine(tmp_path, **{**BOTH, "zne": (1, 5)}).run(SPEC, WEIGHTS, ANGLES)
    assert emulator.stats()["jobs_executed"] == 3


def test_a_result_without_its_last_pub_is_not_taken(emulator: Emulator, tmp_path: Path) -> None:
    """What is missing is missing once: the next look at the same job finds it."""
    emulator.faults.add(Fault(kind="wrong_shape", detail="pubs"))
    backend = machine(tmp_path, **BOTH)
    answer = backend.run(SPEC, WEIGHTS, ANGLES)
    assert [fault["fired"] for fault in emulator.faults.state()] == [1]
    assert np.abs(answer.expvals).max() <= 1
    assert emulator.stats()["jobs_executed"] == 1


def test_the_budget_knows_the_overhead(emulator: Emulator, tmp_path: Path) -> None:
    plain = estimated_qpu_seconds(1, 6 * 500)
    with pytest.raises(BudgetExceededError, match="QPU seconds"):
        machine(tmp_path, max_qpu_seconds=plain + 1, **BOTH).run(SPEC, WEIGHTS, ANGLES)
    assert emulator.stats()["jobs_executed"] == 0
    answer = machine(tmp_path, max_qpu_seconds=plain + 3, **BOTH).run(SPEC, WEIGHTS, ANGLES)
    assert answer.record.qpu_seconds == pytest.approx(estimated_qpu_seconds(1, 12_000, 90), rel=0.05)


def test_every_part_of_a_split_call_has_its_own_calibration(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "MAX_EXECUTIONS", 10_000)
    with running() as emulator:
        answer = machine(tmp_path, **BOTH).run(SPEC, WEIGHTS, ANGLES)
        assert emulator.stats()["jobs_executed"] == 2
        entries = Ledger(tmp_path / "ledger.sqlite").find()
        assert [entry.details["executions"] for entry in entries] == [4 * 1000 + 6000, 2 * 1000 + 6000]
        assert (answer.record.num_jobs, answer.record.options["calibration_executions"]) == (2, 12_000)
        assert answer.expvals.shape == (6, 4)
        with pytest.raises(ConfigError, match="needs 26,000 executions for one parameter set"):
            get_backend("ibm:ibm_lima", shots=10_000, yes=True, ledger=tmp_path / "l", **BOTH)


def test_an_empty_table_submits_nothing(emulator: Emulator, tmp_path: Path) -> None:
    answer = machine(tmp_path, **BOTH).run(SPEC, WEIGHTS, ANGLES[:0])
    assert answer.expvals.shape == (0, 4)
    assert answer.record.options["readout_errors"] is None
    assert emulator.stats()["jobs_accepted"] == 0
