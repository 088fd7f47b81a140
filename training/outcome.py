"""What a trained stack is worth: answers of the best epochs, their figures, and the paired tests against the twins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.classifier import decide, softmax
from training.metrics import classification_metrics
from training.prepare import PreparedData
from training.significance import mcnemar
from training.stack import CONTENDERS
from training.twins import TWINS

__all__ = ["MEASURED", "figures_of", "predictions_of"]

MEASURED = ("val", "test")


def predictions_of(data: PreparedData, logits: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """What ``predictions.json`` holds.

    Args:
        data: Of the run.
        logits: (M, B, C) of the contenders for ``val`` and ``test``.
    """
    splits = {
        name: {
            "paths": data.record["split"][name],
            "truth": data.tensors(name)[1].tolist(),
            "logits": dict(zip(CONTENDERS, logits[name].tolist(), strict=True)),
        }
        for name in MEASURED
    }
    return {"labels": data.record["labels"], **splits}


def figures_of(predictions: dict[str, Any], positive: str) -> dict[str, Any]:
    """Figures of the hybrid by split, of the twins by name and split, and McNemar's test on the test split by twin.

    Args:
        predictions: Of :func:`predictions_of`.
        positive: The positive class.
    """
    labels = predictions["labels"]

    def measured(name: str, contender: str) -> dict[str, Any]:
        part = predictions[name]
        return classification_metrics(np.array(part["truth"]), softmax(np.array(part["logits"][contender])), labels, positive)

    hybrid = {name: measured(name, "hybrid") for name in MEASURED}
    twins = {twin: {name: measured(name, twin) for name in MEASURED} for twin in TWINS}
    right = {name: _right(predictions["test"], name, labels.index(positive), len(labels) == 2) for name in CONTENDERS}
    return {**hybrid, "twins": twins, "mcnemar": {twin: mcnemar(right["hybrid"], right[twin]) for twin in TWINS}}


def _right(part: dict[str, Any], contender: str, positive: int, binary: bool) -> NDArray[np.bool_]:
    answers = decide(softmax(np.array(part["logits"][contender])), positive, 0.5 if binary else None)
    right: NDArray[np.bool_] = answers == np.array(part["truth"])
    return right
