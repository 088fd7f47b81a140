"""What must behave identically offline and online: preprocessing, circuit, backends, bundle, classifier.

The names in ``__all__`` are the Python interface; everything else is internal. They are imported when first used,
so that ``import hqtl_common`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqtl_common.backends import backend_capabilities, backend_names, get_backend
    from hqtl_common.bundle import ModelBundle
    from hqtl_common.classifier import HybridClassifier
    from hqtl_common.errors import HqtlError
    from hqtl_common.records import Evaluation, ExecutionRecord, InferenceBatch, Prediction
    from hqtl_common.specs import HeadSpec, PreprocessSpec

__version__ = "0.1.0"

_EXPORTS = {
    "Evaluation": "records",
    "ExecutionRecord": "records",
    "HeadSpec": "specs",
    "HqtlError": "errors",
    "HybridClassifier": "classifier",
    "InferenceBatch": "records",
    "ModelBundle": "bundle",
    "Prediction": "records",
    "PreprocessSpec": "specs",
    "backend_capabilities": "backends",
    "backend_names": "backends",
    "get_backend": "backends",
}

__all__ = [
    "Evaluation",
    "ExecutionRecord",
    "HeadSpec",
    "HqtlError",
    "HybridClassifier",
    "InferenceBatch",
    "ModelBundle",
    "Prediction",
    "PreprocessSpec",
    "backend_capabilities",
    "backend_names",
    "get_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
