"""``state.json``: how far a run is, replaced in one step; everything behind the recorded lengths is cut off on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hqtl_common.errors import InputError
from serving.scoring.listing import Done, Segment
from serving.scoring.options import Options
from serving.scoring.storage import replace_file
from serving.scoring.tally import PathText, Tally

__all__ = ["CSV", "JSONL", "STATE", "SUMMARY", "TILES", "TILES_CSV", "Position", "State", "holds_only_a_start", "load_state", "save_state"]

STATE = "state.json"
JSONL = "scores.jsonl"
CSV = "scores.csv"
TILES = "tiles.jsonl"
TILES_CSV = "tiles.csv"
SUMMARY = "summary.json"

_OF_A_START = frozenset({f".{STATE}.partial"})

Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Position(_Strict):
    """What is done: whole pieces only, which are chunks but for those with files of several pictures.

    Args:
        files: Number of files whose rows are complete.
        rows: Number of rows.
        chunks: Number of chunks.
        listing: Where the next chunk, or the one in work, begins in the list, bytes.
        within: What is done of that chunk.
        jsonl: Length of scores.jsonl, bytes.
        csv: Length of scores.csv, bytes; 0 = without its header.
        tiles: Length of tiles.jsonl, bytes.
        tiles_csv: Length of tiles.csv, bytes.
    """

    files: Count = 0
    rows: Count = 0
    chunks: Count = 0
    listing: Count = 0
    within: Done = Done()
    jsonl: Count = 0
    csv: Count = 0
    tiles: Count = 0
    tiles_csv: Count = 0

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        """Runs recorded before files could hold several pictures have a row per file."""
        return {"rows": values.get("files", 0), **values} if isinstance(values, dict) else values


class State(_Strict):
    """A run as recorded.

    Args:
        schema_: Always ``hqtl-score/2`` (key ``schema``).
        folder: What is scored, absolute.
        bundle_sha256: Of the bundle's manifest.json, which holds the hashes of all other files.
        versions: Packages that decide the last digits.
        options: Options in effect.
        segments: The list of files; see :mod:`serving.scoring.listing`.
        skipped: Entries of the folder that are not scored, by kind, at the last look.
        position: What is done.
        tally: Counts over what is done.
        published: Which pages and maps were made of the complete rows; None = none since the last row.
        truth: What the comparison with truth gave; None without one.
    """

    schema_: Annotated[Literal["hqtl-score/2"], Field(alias="schema")] = "hqtl-score/2"
    folder: PathText
    bundle_sha256: str
    versions: dict[str, str]
    options: Options
    segments: tuple[Segment, ...] = ()
    skipped: dict[str, int] = {}
    position: Position = Position()
    tally: Tally = Tally()
    published: dict[str, Any] | None = None
    truth: dict[str, Any] | None = None

    @property
    def total(self) -> int:
        """Files in the list."""
        return sum(segment.files for segment in self.segments)

    @property
    def complete(self) -> bool:
        """True when every listed file has its row."""
        return bool(self.segments and self.position.csv) and self.position.files == self.total


def load_state(out: Path) -> State | None:
    """The record of an earlier run in ``out``, or None where none was started.

    Raises:
        InputError: There is one, but it cannot be used.
    """
    try:
        return State.model_validate(json.loads((out / STATE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{str(out / STATE)!r} cannot be used: {error}; give another output folder") from error


def save_state(out: Path, state: State) -> None:
    """Replace the record in one step, durably.

    Raises:
        OutputError: The file system refused.
    """
    replace_file(out / STATE, (json.dumps(state.model_dump(by_alias=True), indent=1, sort_keys=True) + "\n").encode("ascii"))


def holds_only_a_start(out: Path) -> bool:
    """True if ``out`` is missing, empty, or holds no more than a run leaves that was killed in its first moment."""
    return not out.exists() or (out.is_dir() and {entry.name for entry in out.iterdir()} <= _OF_A_START)
