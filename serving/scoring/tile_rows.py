"""One row per tile, JSON Lines and CSV, in the order of the images and row by row within each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hqtl_common.specs import HeadSpec
from serving.scoring.answers import StackPart, Tiled
from serving.scoring.rows import PART_COLUMNS, part_of, text_of

__all__ = ["tile_columns", "tile_rows", "tile_values"]

_PLACE = ("x", "y", "width", "height")
_KEPT = ("label", "probability", "probabilities", "interval", "familiarity", "review", "expvals", "expval_stds")


def tile_rows(path: bytes, tiled: Tiled, part: StackPart | None = None) -> Iterator[dict[str, Any]]:
    """JSON-ready rows; width and height are those inside the image.

    Args:
        path: Relative path of the image.
        tiled: Its tiles.
        part: Which part of the file the image is; None where it is the only one.
    """
    grid, name = tiled.grid, {"path": text_of(path), **part_of(part)}
    for (x, y), answer in zip(grid, tiled.answers, strict=True):
        values, record = answer.to_dict(), answer.execution
        yield {
            **name,
            "x": x,
            "y": y,
            "width": min(grid.size, grid.width - x),
            "height": min(grid.size, grid.height - y),
            **{field: values[field] for field in _KEPT},
            "backend": record.backend_used,
            "shots": record.shots if answer.shots_used is None else answer.shots_used,
        }


def tile_columns(labels: Sequence[str], head: HeadSpec) -> list[str]:
    """Column names of the CSV."""
    qubits = range(head.num_qubits)
    return [
        *("path", *_PLACE, "label", "probability", "interval_low", "interval_high", "familiarity", "review"),
        *(f"probability_{label}" for label in labels),
        *(f"expval_{qubit}" for qubit in qubits),
        *(f"expval_std_{qubit}" for qubit in qubits),
        *("backend", "shots", *PART_COLUMNS),
    ]


def tile_values(row: dict[str, Any], labels: Sequence[str], head: HeadSpec) -> list[Any]:
    """A row in the order of :func:`tile_columns`."""
    low, high = row["interval"] or (None, None)
    return [
        *(row["path"], *(row[name] for name in _PLACE)),
        *(row["label"], row["probability"], low, high, row["familiarity"], " ".join(row["review"]) or None),
        *(row["probabilities"][label] for label in labels),
        *row["expvals"],
        *(row["expval_stds"] or [None] * head.num_qubits),
        *(row["backend"], row["shots"], *(row.get(name) for name in PART_COLUMNS)),
    ]
