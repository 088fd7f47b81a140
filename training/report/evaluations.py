"""What else was measured with a model: printed by ``hqtl-train evaluate --json``, and calibrations in a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hqtl_common import ModelBundle
from hqtl_common.calibration import Calibration
from hqtl_common.errors import InputError

__all__ = ["read_calibration", "read_evaluations"]

_NEEDED = ("data", "subset", "num_images", "accuracy", "accuracy_interval", "balanced_accuracy", "recall", "precision", "loss", "execution")


def read_evaluations(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per file, in the order given.

    Raises:
        InputError: A file cannot be read or is no evaluation.
    """
    return [_read(path) for path in paths]


def read_calibration(bundle: Path | None) -> tuple[Calibration, ...]:
    """The calibrations that a bundle holds.

    Raises:
        BundleError: It cannot be used.
    """
    return () if bundle is None else ModelBundle.load(bundle).manifest.calibration


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    missing = [name for name in _NEEDED if name not in values] if isinstance(values, dict) else list(_NEEDED)
    if missing:
        raise InputError(f"{str(path)!r} is not what hqtl-train evaluate --json prints: {', '.join(missing)} is missing")
    return {"data_name": Path(values["data"]).name, **values}
