"""``summary.json``: what a run says about itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.scoring.state import SUMMARY, State
from serving.scoring.storage import replace_file

__all__ = ["summary_of", "write_summary"]


def summary_of(state: State, labels: Sequence[str]) -> dict[str, Any]:
    """The JSON-ready summary of what is done. It holds no times: runs that give the same rows give the same summary.

    Args:
        state: The record of the run.
        labels: The bundle's.
    """
    tally = state.tally
    return {
        "schema": "hqtl-score-summary/1",
        "folder": state.folder,
        "bundle_sha256": state.bundle_sha256,
        "options": state.options.model_dump(),
        "versions": state.versions,
        "images": state.total + state.position.rows - state.position.files,
        "labels": {label: tally.labels.get(label, 0) for label in labels},
        "errors": dict(sorted(tally.errors.items())),
        "doubtful": tally.doubtful,
        "unfamiliar": tally.unfamiliar,
        "duplicates": tally.duplicates,
        **({"tiles": {label: tally.tiles.get(label, 0) for label in labels}} if state.options.tiles else {}),
        **({"files": state.total, "parts": dict(tally.parts)} if tally.parts else {}),
        "calibration": list(tally.calibrations),
        "skipped": state.skipped,
        "executions": list(tally.executions),
        **({} if state.truth is None else {"truth": state.truth}),
    }


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, unless it stands there already.

    Raises:
        OutputError: The file system refused.
    """
    path, data = out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode("ascii")
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)
