"""Chunks as plain bytes between machines: arrays (NumPy's own format, nothing pickled) and JSON beside them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common import errors as common_errors
from hqtl_common.errors import HqtlError
from hqtl_common.records import ExecutionRecord, InferenceBatch
from hqtl_common.tiles import TileGrid
from serving import errors as serving_errors
from serving.errors import NotReadyError
from serving.scoring.answers import Duplicate, Facts, Failure, StackPart
from serving.scoring.heads import Part
from serving.scoring.unscored import Unscored

__all__ = ["Packed", "error_of", "pack", "pack_error", "unpack"]

_JSON = "json"
_ALREADY_SENT = frozenset({"pixels", "features", "angles", "familiarity"})  # or too large, and of no use any more
_KINDS = {"grid": TileGrid, "failure": Failure, "duplicate": Duplicate}

Grid = TileGrid | Failure | Duplicate | None


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """What comes back of a chunk.

    Args:
        chunk: The files; None where there is an error.
        result: What the head gave for their parts; None where it runs elsewhere, or has no part.
        notes: What is worth knowing, one line each.
        error: Name of the class and message of the error that ends the run.
    """

    chunk: Unscored | None = None
    result: InferenceBatch | None = None
    notes: tuple[str, ...] = ()
    error: tuple[str, str] | None = None


def pack(chunk: Unscored, result: InferenceBatch | None, notes: Sequence[str] = ()) -> bytes:
    """See :class:`Packed`."""
    known = [part.familiarity for part in chunk.parts if part.familiarity is not None]
    arrays = {"angles": np.stack([part.angles for part in chunk.parts])} if chunk.parts else {}
    arrays |= {"familiarity": np.stack(known)} if known else {}
    about: dict[str, Any] = {"chunk": chunk.chunk, "listing_end": chunk.listing_end, "notes": list(notes)}
    about["paths"] = [path.hex() for path in chunk.paths]
    about["facts"] = [dataclasses.asdict(facts) for facts in chunk.facts]
    about["stack"], about["ends"] = [None if part is None else dataclasses.asdict(part) for part in chunk.stack], chunk.ends
    about["grids"] = [None if grid is None else [_kind(grid), dataclasses.asdict(grid)] for grid in chunk.grids]
    if result is not None and result.execution is not None:
        names = {field.name for field in dataclasses.fields(result)} - _ALREADY_SENT - {"execution"}
        values = {name: getattr(result, name) for name in sorted(names)}
        arrays |= {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        about["result"] = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        about["execution"] = result.execution.to_dict()
    return _to_bytes(about, arrays)


def pack_error(error: Exception) -> bytes:
    """See :class:`Packed`."""
    return _to_bytes({"error": [type(error).__name__, str(error)]}, {})


def unpack(data: bytes) -> Packed:
    """The reverse of :func:`pack` and :func:`pack_error`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays: dict[str, NDArray[Any]] = dict(file)
    about = json.loads(arrays.pop(_JSON).tobytes())
    if "error" in about:
        return Packed(error=tuple(about["error"]))
    angles, known = arrays.get("angles", ()), arrays.get("familiarity")
    parts = tuple(Part(one, None if known is None else known[index]) for index, one in enumerate(angles))
    paths, facts = tuple(map(bytes.fromhex, about["paths"])), tuple(Facts(**facts) for facts in about["facts"])
    stack = tuple(None if part is None else StackPart(**part) for part in about["stack"])
    grids = tuple(map(_grid, about["grids"]))
    chunk = Unscored(about["chunk"], about["listing_end"], paths, facts, grids, parts, stack, about["ends"])
    result = None
    if "execution" in about:
        execution = ExecutionRecord(**_with_tuples(about["execution"]))
        result = InferenceBatch(**_with_tuples(about["result"]) | arrays, execution=execution)
    return Packed(chunk, result, tuple(about["notes"]))


def error_of(name: str, message: str) -> HqtlError:
    """The error of a class of this name, which another process has raised."""
    kind: type[Exception] = getattr(common_errors, name, getattr(serving_errors, name, NotReadyError))
    try:
        error = kind(message)
    except TypeError:  # it takes more than a message
        error = NotReadyError(message)
    assert isinstance(error, HqtlError)
    return error


def _to_bytes(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_JSON: np.frombuffer(json.dumps(about).encode("ascii"), np.uint8), **arrays})
    return file.getvalue()


def _kind(grid: TileGrid | Failure | Duplicate) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(grid, kind))


def _grid(packed: tuple[str, dict[str, Any]] | None) -> Grid:
    if packed is None:
        return None
    found: TileGrid | Failure | Duplicate = _KINDS[packed[0]](**_with_tuples(packed[1]))
    return found


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
