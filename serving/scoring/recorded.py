"""The rows of a finished run as the answers they were made of, file by file, in constant memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from hqtl_common.errors import InputError
from hqtl_common.records import ExecutionRecord, Prediction
from hqtl_common.tiles import TileGrid, tile_grid
from serving.scoring.answers import Facts, Failure, StackPart, Tiled
from serving.scoring.rows import PART_COLUMNS
from serving.scoring.state import JSONL, TILES, State

__all__ = ["RecordedFile", "recorded_files"]

_FACTS = tuple(field.name for field in dataclasses.fields(Facts))


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """The rows of one file.

    Args:
        path: Relative path.
        answers: One per row.
        facts: One per row.
        tiled: One per row; None where it has no tiles of its own.
        stack: Which part of the file each row is about; None for a file of one picture.
        copied: Whether it has the answers of an earlier file.
    """

    path: bytes
    answers: tuple[Prediction | Failure, ...]
    facts: tuple[Facts, ...]
    tiled: tuple[Tiled | None, ...]
    stack: tuple[StackPart | None, ...]
    copied: bool


def recorded_files(out: Path, state: State, positive: str) -> Iterator[RecordedFile]:
    """Every file of a complete run in the order of its list.

    Args:
        out: The output folder.
        state: Its record.
        positive: The positive label.

    Raises:
        InputError: A file was changed or cannot be read.
    """
    tiles = _rows(out / TILES, state.position.tiles)
    try:
        for path, group in groupby(_rows(out / JSONL, state.position.jsonl), key=lambda row: row["path"]):
            rows = list(group)
            tiled = tuple(_tiled(row, tiles, state, positive) for row in rows)
            yield RecordedFile(
                path.encode("utf-8", "surrogateescape"),
                tuple(_answer(row, state, positive) for row in rows),
                tuple(Facts(**{name: row[name] for name in _FACTS}) for row in rows),
                tiled,
                tuple(_part(row, number, len(rows)) for number, row in enumerate(rows)),
                rows[0]["duplicate_of"] is not None,
            )
    except (KeyError, TypeError, IndexError) as error:
        raise _changed(out / JSONL) from error


def _rows(path: Path, length: int) -> Iterator[dict[str, Any]]:
    """The rows of the first ``length`` bytes of JSON Lines."""
    if not length:
        return
    try:
        with path.open("rb") as file:
            while length > 0 and (line := file.readline()):
                length -= len(line)
                yield json.loads(line)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise _changed(path) from error
    if length:
        raise _changed(path)


def _answer(row: dict[str, Any], state: State, positive: str) -> Prediction | Failure:
    """The answer of a row of files or tiles; what a row of tiles does not hold is empty."""
    if row.get("error") is not None:
        return Failure(row["error"]["code"], row["error"]["message"])
    record = ExecutionRecord(row["backend"], row["backend"], row["shots"], row.get("seed"), num_rows=0)
    answer = Prediction(
        label=row["label"],
        probability=row["probability"],
        probabilities=row["probabilities"],
        interval=None if row["interval"] is None else (row["interval"][0], row["interval"][1]),
        angles=np.array(row.get("angles") or ()),
        expvals=np.array(row["expvals"]),
        expval_stds=None if row["expval_stds"] is None else np.array(row["expval_stds"]),
        logits=np.array(row.get("logits") or ()),
        execution=record,
        calibration=row.get("calibration"),
        familiarity=row["familiarity"],
        unfamiliar="unfamiliar" in row["review"],
    )
    for boundary in _boundaries(answer.label == positive, state):
        found = dataclasses.replace(answer, boundary=boundary)
        if list(found.review) == row["review"]:
            return found
    raise InputError(f"the row of {row['path']!r} was changed since it was written; score its part again")


def _boundaries(is_positive: bool, state: State) -> list[float | None]:
    """The probability from which a label is given, by the first backend or by the one that looks again."""
    thresholds = [state.options.threshold, state.options.refine_threshold]
    given = [threshold if is_positive else 1 - threshold for threshold in thresholds if threshold is not None]
    return [*given] or [None]


def _tiled(row: dict[str, Any], tiles: Iterator[dict[str, Any]], state: State, positive: str) -> Tiled | None:
    """The tiles of a row, the next ones; a duplicate has none of its own."""
    about = row["tiles"]
    if about is None or row["duplicate_of"] is not None:
        return None
    grid = tile_grid(row["width"], row["height"], about["size"], about["stride"], edges="pad")
    own = list(islice(tiles, about["count"]))
    if [_place(tile) for tile in own] != [(row["path"], *(row[name] for name in PART_COLUMNS), x, y) for x, y in grid]:
        raise InputError(f"the tiles of {row['path']!r} were changed since they were written; score its part again")
    answers = [_answer(tile, state, positive) for tile in own]
    predictions = tuple(answer for answer in answers if isinstance(answer, Prediction))
    return Tiled(grid, about["stride"], predictions, _index(grid, about["x"], about["y"]))


def _place(tile: dict[str, Any]) -> tuple[Any, ...]:
    return (tile["path"], *(tile[name] for name in PART_COLUMNS), tile["x"], tile["y"])


def _index(grid: TileGrid, x: int, y: int) -> int:
    return grid.ys.index(y) * len(grid.xs) + grid.xs.index(x)


def _part(row: dict[str, Any], number: int, count: int) -> StackPart | None:
    kind, index, time_s = (row[name] for name in PART_COLUMNS)
    return None if kind is None else StackPart(kind, index, time_s, number, count)


def _changed(path: Path) -> InputError:
    return InputError(f"{str(path)!r} was changed since it was written; score its part again")
