"""One row per run, as Parquet and CSV."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from hqtl_common.classifier import softmax
from hqtl_common.durable import replace_file
from training.compare.folder import CompareFolder
from training.compare.grid import PlannedRun
from training.reliability import reliability_figures
from training.runs import RunFolder
from training.twins import TWINS

__all__ = ["result_rows", "write_table"]

_FIGURES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "loss")


def result_rows(runs: Sequence[PlannedRun], folder: CompareFolder) -> list[dict[str, Any]]:
    """A row per run, in order: its varied options, how it ended, every figure, what it cost, with which versions.

    All rows have the same columns; what a run does not have is None. ``seconds`` is the training time of the run, which runs of
    one stack share: their times do not add up.
    """
    rows = [_row(run, folder) for run in runs]
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def write_table(folder: CompareFolder, name: str, rows: Sequence[dict[str, Any]], *, parquet: bool = False) -> None:
    """Write rows as ``NAME.csv``, and as ``NAME.parquet``; a column of mixed or nested values is text."""
    import pyarrow as pa
    from pyarrow import csv
    from pyarrow import parquet as pq

    table = pa.table({key: _column(pa, [row[key] for row in rows]) for key in rows[0]})
    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    replace_file(folder.path / f"{name}.csv", buffer.getvalue())
    if parquet:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        replace_file(folder.path / f"{name}.parquet", buffer.getvalue())


def _row(run: PlannedRun, folder: CompareFolder) -> dict[str, Any]:
    files = RunFolder(folder.runs / run.name)
    result, outcome = files.result(), folder.outcome(run.name) or {}
    status = "finished" if result else outcome.get("status", "pending")
    error = outcome.get("error") if status == "failed" else None
    row: dict[str, Any] = {"run": run.name, "group": run.group, **{key: _cell(value) for key, value in run.varied.items()}}
    row |= {"status": status, "error": error and f"{error['type']}: {error['message']}"}
    if result:
        row |= _figures(result) | {"test_ece": _calibration_error(files.predictions(), result["positive"])}
        metrics = files.metrics()
        row |= {"seconds": sum(line["seconds"] for line in metrics), "trained_together": result["runs"]}
        row |= {key: result[key] for key in ("diff_method", "shots", "parameter_sets", "jobs", "qpu_seconds")}
        row |= {f"planned_{key}": result["planned"][key] for key in ("parameter_sets", "jobs")}
        data = files.data() or {}
        row |= {key: data.get(key) for key in ("data_sha256", "split_sha256", "backbone_sha256")}
        row |= outcome.get("environment", {})
    return row


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    test, val = result["test"], result["val"]
    low, high = test["accuracy_interval"]
    found = {f"test_{name}": test[name] for name in _FIGURES}
    found |= {"test_accuracy_low": low, "test_accuracy_high": high, "test_images": test["num_images"]}
    found |= {"val_accuracy": val["accuracy"], "val_loss": val["loss"]}
    for twin in TWINS:
        figures = result["twins"][twin]
        found |= {f"{twin}_{name}": figures["test"][name] for name in ("accuracy", "loss")}
        found[f"{twin}_mcnemar_p"] = result["mcnemar"][twin]["p_value"]
    found["logistic_regression_accuracy"] = result["logistic_regression"]["accuracy"]
    return found | {"epochs": result["epochs"], "best_epoch": result["best_epoch"]}


def _calibration_error(predictions: dict[str, Any] | None, positive: str) -> float | None:
    """Of the probabilities of the test split as trained."""
    if predictions is None:
        return None
    part = predictions["test"]
    probabilities = softmax(np.array(part["logits"]["hybrid"]))
    return reliability_figures(probabilities, np.array(part["truth"]), predictions["labels"].index(positive))["ece"]


def _cell(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _column(pa: Any, values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers and words in one grid
        return pa.array([None if value is None else str(value) for value in values])
