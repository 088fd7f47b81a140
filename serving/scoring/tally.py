"""Counts of a run: labels, errors, answers that deserve a second look, and what ran the head. All of bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator

from hqtl_common.records import ExecutionRecord, Prediction
from serving.scoring.answers import Answer, Failure, ScoredChunk
from serving.scoring.rows import part_text, text_of

__all__ = ["NAMED", "Copies", "PathText", "Tally", "add_chunk", "sum_executions"]

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
        parts: Rows of parts of files, per kind.
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
    parts: dict[str, int] = {}
    executions: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Copies:
    """Counts of the rows of duplicates; they count, but are never named.

    Args:
        files: Duplicates.
        labels: Their rows per label.
        errors: Their rows per error code.
        reasons: Their rows per reason to look again.
        parts: Their rows of parts of files, per kind.
    """

    files: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        if row["error"] is None:
            self.labels[row["label"]] += 1
        else:
            self.errors[row["error"]["code"]] += 1
        self.reasons.update(row["review"] or ())
        self.parts.update([row["part_kind"]] if row.get("part_kind") else [])


def add_chunk(tally: Tally, chunk: ScoredChunk, copies: Copies | None = None) -> Tally:
    """The tally with one more chunk.

    Args:
        tally: So far.
        chunk: The chunk.
        copies: What its duplicates add.
    """
    copies = copies or Copies()
    labels, errors = Counter(tally.labels), Counter(tally.errors)
    labels.update(answer.label for answer in chunk.answers if isinstance(answer, Prediction))
    errors.update(answer.code for answer in chunk.answers if isinstance(answer, Failure))
    labels.update(copies.labels)
    errors.update(copies.errors)
    reasons = copies.reasons
    tiles = Counter(tally.tiles)
    tiles.update(tile.label for tiled in chunk.tiled if tiled is not None for tile in tiled.answers)
    answered = [(answer, name) for name, answer in _pairs(chunk) if isinstance(answer, Prediction)]
    doubtful = [(answer.margin, path) for answer, path in answered if answer.margin < 0]
    strangers = [(answer.familiarity or 0.0, path) for answer, path in answered if answer.unfamiliar]
    known = tally.unfamiliar is not None or any(answer.familiarity is not None for answer, _ in answered)
    failed = [name for name, answer in _pairs(chunk) if isinstance(answer, Failure)]
    parts = copies.parts + Counter(part.kind for part in chunk.stack if part is not None)
    return Tally(
        labels=dict(labels),
        errors=dict(errors),
        doubtful=tally.doubtful + len(doubtful) + reasons["close"] + reasons["interval"],
        unfamiliar=(tally.unfamiliar or 0) + len(strangers) + reasons["unfamiliar"] if known else None,
        review=tuple(sorted([*tally.review, *doubtful])[:NAMED]),
        strangers=tuple(sorted([*tally.strangers, *strangers])[:NAMED]),
        failed=(*tally.failed, *failed)[:NAMED],
        calibrations=tuple(sorted({*tally.calibrations, *(answer.calibration for answer, _ in answered if answer.calibration)})),
        duplicates=tally.duplicates + copies.files,
        tiles=dict(tiles),
        parts=dict(sorted((Counter(tally.parts) + parts).items())),
        executions=_merge(_merge(tally.executions, chunk.execution), chunk.refined),
    )


def _pairs(chunk: ScoredChunk) -> Iterator[tuple[str, Answer]]:
    """How each picture is called, and its answer."""
    stack = chunk.stack or (None,) * len(chunk.paths)
    for path, part, answer in zip(chunk.paths, stack, chunk.answers, strict=True):
        yield text_of(path) if part is None else f"{text_of(path)}, {part_text(part.kind, part.index, part.time_s)}", answer


def sum_executions(executions: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Entries of :attr:`Tally.executions`, those that are the same but for their sums as one."""
    total: tuple[dict[str, Any], ...] = ()
    for execution in executions:
        total = _add(total, execution)
    return total


def _merge(executions: tuple[dict[str, Any], ...], record: ExecutionRecord | None) -> tuple[dict[str, Any], ...]:
    if record is None:
        return executions
    return _add(executions, {name: _ordered(value) for name, value in sorted(record.to_dict().items()) if name != "wall_seconds"})


def _add(executions: tuple[dict[str, Any], ...], new: dict[str, Any]) -> tuple[dict[str, Any], ...]:
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
