"""Names, options and imports of the backends."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

import hqtl_common
from hqtl_common.backends import registry
from hqtl_common.backends.base import Capabilities
from hqtl_common.backends.registry import FAMILIES, backend_capabilities, backend_names, family_of, get_backend, is_installed
from hqtl_common.errors import BackendUnavailableError, CapabilityError, ConfigError, UnknownBackendError

NAMES = ("statevector", "pennylane:default.qubit", "aer")


@pytest.mark.parametrize(
    "name", ["", "state", "statevector2", "statevector:shots", "pennylane", "pennylane:", "Aer", "aer ", "ibm", "torch"]
)
def test_unknown_name_is_refused_and_the_known_ones_listed(name: str) -> None:
    for function in (get_backend, backend_capabilities, family_of):
        with pytest.raises(UnknownBackendError, match=r"known are statevector, .*aer"):
            function(name)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_refused_and_the_known_ones_listed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no option sed, shot; it knows .*seed, shots"):
        get_backend(name, shot=100, sed=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"shots": 0}, {"shots": -5}, {"shots": 2.5}, {"shots": 10**8}, {"shots": True}, {"seed": -1, "shots": 5}, {"seed": "a", "shots": 5}],
)
def test_value_out_of_range_is_refused_by_name(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be a whole number"):
        get_backend(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_made_backend_knows_its_name_and_options(name: str) -> None:
    backend = get_backend(name, shots=17, seed=3)
    assert (backend.name, backend.shots, backend.seed) == (name, 17, 3)
    backend.close()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.pattern)
def test_table_is_complete(family: registry.Family) -> None:
    assert family.pattern in backend_names()
    capabilities = backend_capabilities(family.pattern)
    assert isinstance(capabilities, Capabilities)
    assert capabilities.exact or capabilities.shots
    assert capabilities.summary
    assert capabilities.diff_methods


def test_no_name_belongs_to_two_families() -> None:
    for name in (*NAMES, "pennylane:aer", "pennylane:statevector"):
        assert sum(family.matches(name) for family in FAMILIES) == 1


def test_device_that_pennylane_does_not_have_is_unknown() -> None:
    with pytest.raises(UnknownBackendError, match=r"no.such.device.*it has .*default.qubit"):
        get_backend("pennylane:no.such.device")


def test_device_that_cannot_be_made_is_unavailable() -> None:
    with pytest.raises(BackendUnavailableError, match=r"qiskit\.remote"):
        get_backend("pennylane:qiskit.remote")


def test_device_that_only_samples_is_never_called_exact() -> None:
    """PennyLane answers shots=None of this device with 1024 samples and a warning."""
    with pytest.raises(CapabilityError, match="give shots"):
        get_backend("pennylane:qiskit.aer")
    with pytest.raises(ConfigError, match="takes no seed"):
        get_backend("pennylane:qiskit.aer", shots=100, seed=1)
    assert get_backend("pennylane:qiskit.aer", shots=100).seed is None


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(family_of("aer"), target="no_such_package.module:Backend")
    monkeypatch.setattr(registry, "FAMILIES", (absent,))
    with pytest.raises(BackendUnavailableError, match=r"no_such_package.*pip install 'hqtl\[quantum\]'"):
        get_backend("aer")


HEAVY = (
    "torch",
    "torchvision",
    "pennylane",
    "qiskit",
    "qiskit_aer",
    "qiskit_ibm_runtime",
    "bentoml",
    "click",
    "scipy",
    "pandas",
    "matplotlib",
)


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after ``code``."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


RUN_STATEVECTOR = """
import numpy as np
from hqtl_common import HeadSpec, get_backend
get_backend("statevector", shots=5).run(HeadSpec(), np.ones((1, 4)), np.ones((2, 4)))
"""


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import hqtl_common", ()),
        ("import hqtl_common; hqtl_common.backend_names(); hqtl_common.backend_capabilities('aer')", ()),
        (RUN_STATEVECTOR, ()),
        ("from hqtl_common import HybridClassifier, ModelBundle, PreprocessSpec", ()),
        ("from hqtl_common import get_backend; get_backend('aer')", ("qiskit", "qiskit_aer", "scipy", "pandas")),
    ],
)
def test_heavy_packages_are_loaded_only_where_needed(code: str, allowed: tuple[str, ...]) -> None:
    assert loaded_by(code) & set(HEAVY) <= set(allowed)


def test_import_of_the_package_costs_nothing() -> None:
    assert not loaded_by("import hqtl_common") & {"numpy", "PIL", "onnx", "onnxruntime", "pydantic"}


def test_public_names() -> None:
    for name in hqtl_common.__all__:
        assert getattr(hqtl_common, name).__doc__
    assert set(hqtl_common._EXPORTS) == set(hqtl_common.__all__)
    with pytest.raises(AttributeError, match="no attribute 'backends_names'"):
        hqtl_common.backends_names  # noqa: B018


def test_installed_is_known_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(is_installed(name) for name in ("statevector", "aer", "pennylane:default.qubit", "fake_kolkata", "ibm:ibm_fez"))
    monkeypatch.setattr("hqtl_common.backends.registry.find_spec", lambda package: None)
    assert [is_installed(name) for name in ("statevector", "aer", "paper:lima")] == [True, False, False]
    with pytest.raises(UnknownBackendError):
        is_installed("nowhere")
