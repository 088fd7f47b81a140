"""The service starts light: importing it brings no torch, nothing of training and no quantum package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "torchvision",
    "training",
    "pennylane",
    "qiskit",
    "qiskit_aer",
    "qiskit_ibm_runtime",
    "sklearn",
    "scipy",
    "matplotlib",
    "gradio",
}


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


EARLY = """
import asyncio
from serving.service import HybridService
sent = []
async def send(message): sent.append(message)
scope = {"type": "http", "path": "/schema.json", "method": "GET", "headers": [], "query_string": b""}
asyncio.run(HybridService.to_asgi()(scope, None, send))
assert sent[0]["status"] == 503, sent
"""


def test_before_the_service_is_made_nothing_of_bentoml_answers() -> None:
    loaded_by(f"exec({EARLY!r})")


@pytest.mark.parametrize("module", ["serving.app", "serving.predictor", "serving.http_errors", "serving.intake", "serving.decoder_process"])
def test_what_a_worker_imports_is_free_of_torch_and_of_the_backends(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


def test_a_decoder_holds_little_more_than_numpy_and_pillow() -> None:
    loaded = loaded_by("import serving.decoder_process")
    assert {"numpy", "PIL"} <= loaded
    assert not loaded & {"bentoml", "fastapi", "starlette", "onnxruntime", "onnx", "pydantic", "asyncio", "multiprocessing", "subprocess"}
