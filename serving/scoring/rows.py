"""One row per file: JSON Lines (nested) and CSV (flat). No times, no job order: the same run gives the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hqtl_common.records import Prediction
from hqtl_common.specs import HeadSpec
from serving.scoring.answers import Facts, Failure, StackPart, Tiled

__all__ = [
    "PART_COLUMNS",
    "TILES_SUMMED",
    "copied_row",
    "csv_columns",
    "csv_line",
    "csv_values",
    "jsonl_line",
    "make_row",
    "part_of",
    "part_text",
    "text_of",
]

_FIELDS = (
    *("label", "probability", "probabilities", "interval", "angles", "expvals", "expval_stds", "logits"),
    *("calibration", "familiarity", "review"),
)
PART_COLUMNS = ("part_kind", "part", "time_s")
_FACTS = tuple(field.name for field in dataclasses.fields(Facts))
TILES_SUMMED = ("count", "positive", "doubtful", "unfamiliar", "x", "y", "size", "stride")


def text_of(path: bytes) -> str:
    """A path as text; bytes that are not UTF-8 become surrogates, so that ``os.fsencode`` gives them back."""
    return path.decode("utf-8", "surrogateescape")


def part_of(part: StackPart | None) -> dict[str, Any]:
    """What a row says of the part of the file that it is about; null for a file of one picture."""
    values = (None, None, None) if part is None else (part.kind, part.index, part.time_s)
    return dict(zip(PART_COLUMNS, values, strict=True))


def part_text(kind: str, index: int | None, time_s: float | None) -> str:
    """A part of a file in words, for example ``frame 250 at 0:10.000``."""
    number = "(which one is not known)" if index is None else f"{index:,}"
    if time_s is None:
        return f"{kind} {number}"
    minutes, milliseconds = divmod(round(time_s * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{kind} {number} at {clock}:{milliseconds / 1000:06.3f}"


def make_row(
    path: bytes,
    answer: Prediction | Failure,
    facts: Facts | None = None,
    tiled: Tiled | None = None,
    positive: str = "",
    part: StackPart | None = None,
) -> dict[str, Any]:
    """The JSON-ready row of one picture; the same keys in every row, null where there is nothing.

    Args:
        path: Relative path.
        answer: A prediction, or why there is none.
        facts: What the file says about itself.
        tiled: Its tiles, None where it was scored whole.
        positive: The positive label, by which tiles are counted.
        part: Which part of the file the picture is; None where it is the only one.
    """
    name = {"path": text_of(path), **part_of(part)}
    about = dataclasses.asdict(facts or Facts())
    about |= {"tiles": None if tiled is None else _summed(tiled, positive), "duplicate_of": None}
    if isinstance(answer, Failure):
        empty = dict.fromkeys(_FIELDS)
        error = {"code": answer.code, "message": answer.message}
        return {**name, **empty, "backend": None, "shots": None, "seed": None, **about, "error": error}
    record = answer.execution
    shots = record.shots if answer.shots_used is None else answer.shots_used
    origin = {"backend": record.backend_used, "shots": shots, "seed": record.seed}
    fields = {name: value for name, value in answer.to_dict().items() if name != "shots_used"}
    return {**name, **fields, **origin, **about, "error": None}


def copied_row(path: bytes, first: dict[str, Any]) -> dict[str, Any]:
    """A row of a file with the bytes of an earlier one, which has the row ``first``."""
    return {**first, "path": text_of(path), "duplicate_of": first["path"]}


def jsonl_line(row: dict[str, Any]) -> bytes:
    """One line of pure ASCII; names that are not UTF-8 are held by escaped surrogates."""
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def csv_columns(labels: Sequence[str], head: HeadSpec) -> list[str]:
    """Column names: one per label, qubit and angle where a row of the JSON Lines nests them."""
    qubits = range(head.num_qubits)
    return [
        *("path", "label", "probability", "interval_low", "interval_high", "familiarity", "review"),
        *(f"probability_{label}" for label in labels),
        *(f"expval_{qubit}" for qubit in qubits),
        *(f"expval_std_{qubit}" for qubit in qubits),
        *(f"angle_{angle}" for angle in range(head.num_angles)),
        *(f"logit_{label}" for label in labels),
        *("backend", "shots", "seed", "calibration"),
        *_FACTS,
        *(f"tiles_{name}" for name in TILES_SUMMED),
        *("duplicate_of", "error_code", "error_message"),
        *PART_COLUMNS,
    ]


def csv_line(values: Iterable[Any]) -> bytes:
    """One CSV record (RFC 4180 quoting, line feed at its end; a quoted name may hold line feeds); None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)  # a terminator of both kinds makes it quote both in names
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def csv_values(row: dict[str, Any], labels: Sequence[str], head: HeadSpec) -> list[Any]:
    """A row in the order of :func:`csv_columns`; several reasons of a review are parted by spaces."""
    none = [None] * head.num_qubits
    low, high = row["interval"] or (None, None)
    probabilities = row["probabilities"] or {}
    tiles = row["tiles"] or {}
    error = row["error"] or {"code": None, "message": None}
    return [
        *(row["path"], row["label"], row["probability"], low, high, row["familiarity"], " ".join(row["review"] or ()) or None),
        *(probabilities.get(label) for label in labels),
        *(row["expvals"] or none),
        *(row["expval_stds"] or none),
        *(row["angles"] or [None] * head.num_angles),
        *(row["logits"] or [None] * len(labels)),
        *(row["backend"], row["shots"], row["seed"], row["calibration"]),
        *(row[name] for name in _FACTS),
        *(tiles.get(name) for name in TILES_SUMMED),
        *(row["duplicate_of"], error["code"], error["message"]),
        *(row.get(name) for name in PART_COLUMNS),
    ]


def _summed(tiled: Tiled, positive: str) -> dict[str, int]:
    """Counts of the tiles of an image, where the deciding one lies, and how they were cut."""
    grid, answers = tiled.grid, tiled.answers
    columns = grid.shape[1]
    return {
        "count": len(answers),
        "positive": sum(answer.label == positive for answer in answers),
        "doubtful": sum(answer.margin < 0 for answer in answers),
        "unfamiliar": sum(answer.unfamiliar for answer in answers),
        "x": grid.xs[tiled.deciding % columns],
        "y": grid.ys[tiled.deciding // columns],
        "size": grid.size,
        "stride": tiled.stride,
    }
