"""The service starts light: importing it brings no torch, nothing of training and no quantum package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "training", "pennylane", "qiskit", "qiskit_aer", "qiskit_ibm_runtime", "sklearn", "scipy", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages after running ``code`` in a new process without any setting of the service."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HQTL_")}
    script = f"{code}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True)
    return set(result.stdout.split())


def test_importing_the_service_needs_no_bundle_and_nothing_heavy() -> None:
    loaded = loaded_by("import serving.service")
    assert {"serving", "bentoml"} <= loaded
    assert not loaded & (HEAVY | {"onnx", "onnxruntime", "PIL"})


@pytest.mark.parametrize("module", ["serving.app", "serving.predictor", "serving.http_errors", "serving.intake"])
def test_what_a_worker_imports_is_free_of_torch_and_of_the_backends(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY
