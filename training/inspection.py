"""What a run or a bundle says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.bundle import ModelBundle
from hqtl_common.circuit import circuit_drawing
from training.runs import RunFolder, is_run

__all__ = ["Description", "describe"]


@dataclass(frozen=True, slots=True)
class Description:
    """JSON-ready values, and the circuit drawn as text."""

    values: dict[str, Any]
    drawing: str


def describe(path: Path) -> Description:
    """Describe a run folder or a bundle.

    Raises:
        InputError: A damaged run.
        BundleError: Neither a run nor a legal bundle.
    """
    if not is_run(path):
        bundle = ModelBundle.load(path)
        return Description(bundle.manifest.model_dump(mode="json", by_alias=True), circuit_drawing(bundle.head))
    run = RunFolder(path)
    config, metrics = run.config(), run.metrics()
    values = {
        "config": json.loads(config.model_dump_json()),
        "epochs_done": len(metrics),
        "counts": (run.data() or {}).get("counts"),
        "result": run.result(),
    }
    return Description(values, circuit_drawing(config.head_spec))
