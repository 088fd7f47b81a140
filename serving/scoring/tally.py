"""Counts of a run: labels, errors, answers that deserve a second look, and what ran the head. All of bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator

from hqtl_common.records import ExecutionRecord, Prediction
from serving.scoring.answers import Answer, Failure, ScoredChunk
from serving.scoring.rows import text_of

__all__ = ["NAMED", "PathText", "Tally", "add_chunk"]

NAMED = 5  # doubtful and failed files that are named

_SUMS = ("num_rows", "num_jobs", "job_ids", "qpu_seconds")
_OPTION_SUMS = ("executions", "undecided")  # among the options where shots are adaptive


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text; got {value!r}")
    return value


PathText = Annotated[str, PlainValidator(_check_text)]  # pydantic's own str refuses the surrogates of names that are not UTF-8


class Tally(BaseModel):
    """Counts so far.

    Args:
        labels: Files per label.
        errors: Files per error code.
        doubtful: Files whose answer is close to another label: the 95 % interval reaches it, or the exact probability
            is within 0.1 of it.
        unfamiliar: Files that are unlike the training images; None if the bundle cannot tell.
        review: The most doubtful files, (margin, path).
        strangers: The least familiar of the unfamiliar files, (familiarity, path).
        failed: The first files with errors.
        calibrations: Which temperatures and thresholds were used, by name.
        duplicates: Files with the bytes of an earlier one.
        tiles: Tiles per label.
        executions: What ran the head, one entry per distinct record, with sums of rows, jobs and billed seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, int] = {}
    errors: dict[str, int] = {}
    doubtful: int = 0
    unfamiliar: int | None = None
    review: tuple[tuple[float, PathText], ...] = ()
    strangers: tuple[tuple[float, PathText], ...] = ()
    failed: tuple[PathText, ...] = ()
    calibrations: tuple[str, ...] = ()
    duplicates: int = 0
    tiles: dict[str, int] = {}
    executions: tuple[dict[str, Any], ...] = ()


def add_chunk(tally: Tally, chunk: ScoredChunk, copies: Sequence[dict[str, Any]] = ()) -> Tally:
    """The tally with one more chunk.

    Args:
        tally: So far.
        chunk: The chunk.
        copies: Rows of its duplicates; they count, but are never named.
    """
    labels, errors = Counter(tally.labels), Counter(tally.errors)
    labels.update(answer.label for answer in chunk.answers if isinstance(answer, Prediction))
    errors.update(answer.code for answer in chunk.answers if isinstance(answer, Failure))
    labels.update(row["label"] for row in copies if row["error"] is None)
    errors.update(row["error"]["code"] for row in copies if row["error"] is not None)
    reasons = Counter(reason for row in copies for reason in row["review"] or ())
    tiles = Counter(tally.tiles)
    tiles.update(tile.label for tiled in chunk.tiled if tiled is not None for tile in tiled.answers)
    answered = [(answer, text_of(path)) for path, answer in _pairs(chunk) if isinstance(answer, Prediction)]
    doubtful = [(answer.margin, path) for answer, path in answered if answer.margin < 0]
    strangers = [(answer.familiarity or 0.0, path) for answer, path in answered if answer.unfamiliar]
    known = tally.unfamiliar is not None or any(answer.familiarity is not None for answer, _ in answered)
    failed = [text_of(path) for path, answer in _pairs(chunk) if isinstance(answer, Failure)]
    return Tally(
        labels=dict(labels),
        errors=dict(errors),
        doubtful=tally.doubtful + len(doubtful) + reasons["close"] + reasons["interval"],
        unfamiliar=(tally.unfamiliar or 0) + len(strangers) + reasons["unfamiliar"] if known else None,
        review=tuple(sorted([*tally.review, *doubtful])[:NAMED]),
        strangers=tuple(sorted([*tally.strangers, *strangers])[:NAMED]),
        failed=(*tally.failed, *failed)[:NAMED],
        calibrations=tuple(sorted({*tally.calibrations, *(answer.calibration for answer, _ in answered if answer.calibration)})),
        duplicates=tally.duplicates + len(copies),
        tiles=dict(tiles),
        executions=_merge(_merge(tally.executions, chunk.execution), chunk.refined),
    )


def _pairs(chunk: ScoredChunk) -> Iterable[tuple[bytes, Answer]]:
    return zip(chunk.paths, chunk.answers, strict=True)


def _merge(executions: tuple[dict[str, Any], ...], record: ExecutionRecord | None) -> tuple[dict[str, Any], ...]:
    if record is None:
        return executions
    new = {name: _ordered(value) for name, value in sorted(record.to_dict().items()) if name != "wall_seconds"}
    merged = [_summed(known, new) if _same(known, new) else known for known in executions]
    return (*merged,) if any(_same(known, new) for known in executions) else (*merged, new)


def _ordered(value: Any) -> Any:
    """Options in the order in which the record of a run gives them back, so that a resumed run writes the same bytes."""
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return _fixed(one) == _fixed(other)


def _summed(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    options = {name: known["options"][name] + new["options"][name] for name in _OPTION_SUMS if name in new["options"]}
    return {**known, **{name: known[name] + new[name] for name in _SUMS}, "options": {**known["options"], **options}}


def _fixed(execution: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in execution["options"].items() if name not in _OPTION_SUMS}
    return {**{name: value for name, value in execution.items() if name not in _SUMS}, "options": options}
