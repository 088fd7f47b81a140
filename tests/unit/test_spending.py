"""Paid backends need limits before anything else happens; the others get a seed wherever their device takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hqtl_common.backends import registry
from hqtl_common.backends.opening import Limits, check_limits, open_backend
from hqtl_common.errors import ConfigError, UnknownBackendError
from training.config import FitConfig
from training.evaluate import evaluate
from training.fit import fit
from training.runs import RunFolder


@pytest.mark.parametrize("limits", [None, Limits()])
def test_a_paid_backend_needs_a_limit_or_yes(limits: Limits | None) -> None:
    with pytest.raises(ConfigError, match="--max-jobs or --max-qpu-seconds, or say --yes"):
        check_limits("ibm:ibm_fez", limits)
    check_limits("statevector", limits)


@pytest.mark.parametrize("limits", [Limits(max_jobs=1), Limits(max_qpu_seconds=0.0), Limits(yes=True)])
def test_any_of_them_is_enough(limits: Limits) -> None:
    check_limits("ibm:least_busy", limits)


def test_an_unknown_backend_is_named() -> None:
    for call in (lambda: check_limits("ibn:ibm_fez", None), lambda: open_backend("ibn:ibm_fez", shots=None, seed=0)):
        with pytest.raises(UnknownBackendError, match="ibn:ibm_fez"):
            call()


def test_limits_are_asked_for_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders do not even exist."""
    monkeypatch.setattr("training.fit.load_backbone", lambda *_: pytest.fail("the backbone was loaded"))
    config = FitConfig(data=tmp_path / "absent", backend="ibm:ibm_fez")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="--max-jobs"):
        fit(config, run, tmp_path / "cache")
    with pytest.raises(ConfigError, match="--max-jobs"):
        evaluate(tmp_path / "model", tmp_path / "data", backend="ibm:ibm_fez", cache_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["statevector", "aer", "fake_lima", "ibm:ibm_fez"])
@pytest.mark.parametrize("option", ["shots", "seed", "scope", "max_jobs", "max_qpu_seconds", "yes"])
def test_options_that_have_their_own_name(name: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be given as a backend option"):
        open_backend(name, shots=10, seed=0, options={option: 1})


class Paid:
    OPTIONS = frozenset({"shots", "seed", "scope", "max_jobs", "max_qpu_seconds", "yes", "twirling"})

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options


def test_limits_and_scope_reach_a_paid_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqtl_common.backends.hardware.HardwareBackend", Paid)
    limits = Limits(max_jobs=3, max_qpu_seconds=2.5)
    backend = open_backend("ibm:ibm_fez", shots=7, seed=5, options={"twirling": True}, limits=limits, scope="fit-1")
    expected = {"shots": 7, "seed": 5, "twirling": True, "max_jobs": 3, "max_qpu_seconds": 2.5, "yes": False, "scope": "fit-1"}
    assert backend.options == expected  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has no option twirlin"):
        open_backend("ibm:ibm_fez", shots=7, seed=5, options={"twirlin": True}, limits=limits)


def test_a_paid_backend_without_limits_is_refused_by_itself_too() -> None:
    with pytest.raises(ConfigError, match="costs money or queues"):
        open_backend("ibm:ibm_fez", shots=7, seed=5)


@pytest.mark.parametrize("name", ["statevector", "aer", "fake_lima", "pennylane:default.qubit"])
def test_a_seed_is_used_where_the_device_takes_one(name: str) -> None:
    assert open_backend(name, shots=10, seed=4, limits=Limits(max_jobs=1)).seed == 4
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        open_backend(name, shots=10, seed=-1)


def test_a_seed_is_left_out_where_the_device_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from hqtl_common.backends import pennylane

    monkeypatch.setattr(pennylane, "_takes_seed", lambda device: False)
    backend = open_backend("pennylane:default.qubit", shots=10, seed=4)
    assert (backend.shots, backend.seed) == (10, None)
    with pytest.raises(ConfigError, match="shots"):
        open_backend("pennylane:default.qubit", shots=-1, seed=4)


@pytest.mark.parametrize("name", ["statevector", "aer", "fake_lima", "pennylane:default.qubit"])
def test_unknown_options_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}' has no option shot_s; it knows .*shots"):
        open_backend(name, shots=10, seed=0, options={"shot_s": 3})


def test_what_is_not_about_the_seed_is_not_hidden() -> None:
    with pytest.raises(UnknownBackendError, match=r"default\.qubit"):
        open_backend("pennylane:no.such.device", shots=None, seed=0)


def test_every_paid_family_takes_limits_and_a_scope() -> None:
    from hqtl_common.backends.hardware import HardwareBackend

    assert [family.pattern for family in registry.FAMILIES if family.capabilities.paid] == ["ibm:NAME"]
    assert {"scope", "max_jobs", "max_qpu_seconds", "yes", "shots", "seed"} <= HardwareBackend.OPTIONS
