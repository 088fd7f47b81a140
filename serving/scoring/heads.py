"""The head of a run: one evaluation per chunk, and a second one elsewhere for the answers that are in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import Backend
from hqtl_common.classifier import HybridClassifier
from hqtl_common.records import ExecutionRecord, InferenceBatch, Prediction

__all__ = ["HeadRunner", "Part", "parts_of"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of one picture until the head runs: angles (E,), and its familiarity where the bundle knows it."""

    angles: F32
    familiarity: np.float32 | None


def parts_of(classifier: HybridClassifier, pixels: F32) -> list[Part]:
    """Pixels (B, 3, S, S) → what the head needs of each."""
    batch = classifier.featurize(InferenceBatch(pixels=pixels))
    assert batch.angles is not None
    known = [None] * len(pixels) if batch.familiarity is None else batch.familiarity
    return [Part(*pair) for pair in zip(batch.angles, known, strict=True)]


@dataclass(frozen=True, slots=True)
class HeadRunner:
    """Runs the head, and again on ``refiner`` where the first answer is in doubt.

    Args:
        classifier: Bundle and backend.
        max_shots: See :meth:`hqtl_common.classifier.HybridClassifier.run`.
        refiner: Where answers in doubt are found again.
        refine_threshold: Threshold of those answers.
    """

    classifier: HybridClassifier
    max_shots: int | None = None
    refiner: Backend | None = None
    refine_threshold: float | None = None

    def run(self, parts: Sequence[Part], stream: int) -> tuple[list[Prediction], ExecutionRecord | None, ExecutionRecord | None]:
        """One answer per part, and what ran the head the first and the second time.

        Args:
            parts: What the head needs.
            stream: Which independent noise to draw.

        Raises:
            BackendError: The head could not be run.
        """
        if not parts:
            return [], None, None
        first = self.evaluate(parts, stream)
        answers, execution = first.predictions(), first.execution
        doubtful = [index for index, answer in enumerate(answers) if answer.margin < 0]
        if self.refiner is None or not doubtful:
            return answers, execution, None
        again = self.classifier.run(
            _batch_of([parts[index] for index in doubtful]), stream=stream, backend=self.refiner, threshold=self.refine_threshold
        )
        for index, answer in zip(doubtful, again.predictions(), strict=True):
            answers[index] = answer
        return answers, execution, again.execution

    def evaluate(self, parts: Sequence[Part], stream: int) -> InferenceBatch:
        """The first answers, all stages of them.

        Args:
            parts: What the head needs; at least one.
            stream: Which independent noise to draw.

        Raises:
            BackendError: The head could not be run.
        """
        return self.classifier.run(_batch_of(parts), stream=stream, max_shots=self.max_shots)


def _batch_of(parts: Sequence[Part]) -> InferenceBatch:
    known = [part.familiarity for part in parts if part.familiarity is not None]
    return InferenceBatch(angles=np.stack([part.angles for part in parts]), familiarity=np.stack(known) if known else None)
