"""Counts of a run: labels, errors, answers that deserve a second look, and what ran the head. All of bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator

from hqtl_common.records import ExecutionRecord, Prediction
from serving.scoring.pipeline import Answer, Failure, ScoredChunk
from serving.scoring.rows import text_of

__all__ = ["CLOSE", "NAMED", "PathText", "Tally", "add_chunk", "margin_of"]

CLOSE = 0.1  # an exact answer this close to the other label is called doubtful
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
        review: The most doubtful files, (margin, path).
        failed: The first files with errors.
        executions: What ran the head, one entry per distinct record, with sums of rows, jobs and billed seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, int] = {}
    errors: dict[str, int] = {}
    doubtful: int = 0
    review: tuple[tuple[float, PathText], ...] = ()
    failed: tuple[PathText, ...] = ()
    executions: tuple[dict[str, Any], ...] = ()


def add_chunk(tally: Tally, chunk: ScoredChunk, boundaries: dict[str, float]) -> Tally:
    """The tally with one more chunk.

    Args:
        tally: So far.
        chunk: What is added.
        boundaries: See :func:`margin_of`.
    """
    labels, errors = Counter(tally.labels), Counter(tally.errors)
    labels.update(answer.label for answer in chunk.answers if isinstance(answer, Prediction))
    errors.update(answer.code for answer in chunk.answers if isinstance(answer, Failure))
    doubtful = [item for item in _margins(chunk.paths, chunk.answers, boundaries) if item[0] < 0]
    failed = [text_of(path) for path, answer in zip(chunk.paths, chunk.answers, strict=True) if isinstance(answer, Failure)]
    return Tally(
        labels=dict(labels),
        errors=dict(errors),
        doubtful=tally.doubtful + len(doubtful),
        review=tuple(sorted([*tally.review, *doubtful])[:NAMED]),
        failed=(*tally.failed, *failed)[:NAMED],
        executions=_merge(tally.executions, chunk.execution),
    )


def margin_of(prediction: Prediction, boundaries: dict[str, float]) -> float:
    """How far the lower end of the answer stands above the other label; negative = doubtful.

    Args:
        prediction: The answer.
        boundaries: Probability from which each label is given, with two classes; empty with more.
    """
    low = prediction.probability - CLOSE if prediction.interval is None else prediction.interval[0]
    if boundaries:
        return low - boundaries[prediction.label]
    return low - sorted(prediction.probabilities.values())[-2]


def _margins(paths: Sequence[bytes], answers: Sequence[Answer], boundaries: dict[str, float]) -> list[tuple[float, str]]:
    pairs = zip(paths, answers, strict=True)
    return [(margin_of(answer, boundaries), text_of(path)) for path, answer in pairs if isinstance(answer, Prediction)]


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
