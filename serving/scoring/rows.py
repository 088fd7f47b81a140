"""One row per file: JSON Lines (nested) and CSV (flat). No times, no job order: the same run gives the same bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from serving.scoring.pipeline import Answer, Failure

__all__ = ["csv_columns", "csv_line", "csv_values", "jsonl_line", "make_row", "text_of"]


def text_of(path: bytes) -> str:
    """A path as text; bytes that are not UTF-8 become surrogates, so that ``os.fsencode`` gives them back."""
    return path.decode("utf-8", "surrogateescape")


def make_row(path: bytes, answer: Answer) -> dict[str, Any]:
    """The JSON-ready row of one file; the same keys in every row, null where there is nothing.

    Args:
        path: Relative path.
        answer: A prediction, or why there is none.
    """
    if isinstance(answer, Failure):
        empty = dict.fromkeys(("label", "probability", "probabilities", "interval", "angles", "expvals", "expval_stds", "logits"))
        error = {"code": answer.code, "message": answer.message}
        return {"path": text_of(path), **empty, "backend": None, "shots": None, "seed": None, "error": error}
    record = answer.execution
    shots = record.shots if answer.shots_used is None else answer.shots_used
    origin = {"backend": record.backend_used, "shots": shots, "seed": record.seed}
    fields = {name: value for name, value in answer.to_dict().items() if name != "shots_used"}
    return {"path": text_of(path), **fields, **origin, "error": None}


def jsonl_line(row: dict[str, Any]) -> bytes:
    """One line of pure ASCII; names that are not UTF-8 are held by escaped surrogates."""
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def csv_columns(labels: Sequence[str], num_qubits: int) -> list[str]:
    """Column names: one per label and per qubit where a row of the JSON Lines nests them."""
    qubits = range(num_qubits)
    return [
        *("path", "label", "probability", "interval_low", "interval_high"),
        *(f"probability_{label}" for label in labels),
        *(f"expval_{qubit}" for qubit in qubits),
        *(f"expval_std_{qubit}" for qubit in qubits),
        *(f"angle_{qubit}" for qubit in qubits),
        *(f"logit_{label}" for label in labels),
        *("backend", "shots", "seed", "error_code", "error_message"),
    ]


def csv_line(values: Iterable[Any]) -> bytes:
    """One CSV record (RFC 4180 quoting, line feed at its end; a quoted name may hold line feeds); None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # a terminator of both kinds makes it quote both in names
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def csv_values(row: dict[str, Any], labels: Sequence[str], num_qubits: int) -> list[Any]:
    """A row in the order of :func:`csv_columns`."""
    none = [None] * num_qubits
    low, high = row["interval"] or (None, None)
    probabilities = row["probabilities"] or {}
    error = row["error"] or {"code": None, "message": None}
    return [
        *(row["path"], row["label"], row["probability"], low, high),
        *(probabilities.get(label) for label in labels),
        *(row["expvals"] or none),
        *(row["expval_stds"] or none),
        *(row["angles"] or none),
        *(row["logits"] or [None] * len(labels)),
        *(row["backend"], row["shots"], row["seed"], error["code"], error["message"]),
    ]
