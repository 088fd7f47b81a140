"""Figures of merit from probabilities and true labels; scikit-learn and SciPy compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as sk

from hqtl_common.classifier import decide
from hqtl_common.errors import ConfigError, InputError

__all__ = ["classification_metrics", "find_positive", "wilson_interval"]

_POSITIVE_NAMES = ("crack", "cracks", "cracked", "positive", "defect", "defective", "damaged", "1")


def find_positive(labels: Sequence[str], wanted: str | None = None) -> str:
    """The positive class: ``wanted``, else a class named like a crack, else the last (scikit-learn's habit).

    Raises:
        ConfigError: ``wanted`` is not a class.
    """
    if wanted is not None:
        if wanted not in labels:
            raise ConfigError(f"positive must be one of the classes {', '.join(labels)}; got {wanted!r}")
        return wanted
    return next((label for label in labels if label.lower() in _POSITIVE_NAMES), labels[-1])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def classification_metrics(
    truth: NDArray[np.intp], probabilities: NDArray[np.float64], labels: Sequence[str], positive: str, threshold: float | None = 0.5
) -> dict[str, Any]:
    """Everything that is reported about N answers, JSON-ready.

    With two classes precision, recall, F1 and ROC AUC are those of the positive class, with more they are macro
    averages; ROC AUC is None where a class is absent. Rows of ``confusion`` are true classes, columns answers.

    Args:
        truth: (N,) positions in ``labels``.
        probabilities: (N, C).
        labels: C class names.
        positive: One of them.
        threshold: Probability from which the positive class is given; two classes only.

    Raises:
        InputError: No image.
    """
    if not len(truth):
        raise InputError("there is no usable image to evaluate")
    binary = len(labels) == 2
    index = list(labels).index(positive)
    answers = decide(probabilities, index, threshold if binary else None)
    correct = int((answers == truth).sum())
    averaging: dict[str, Any] = {"labels": range(len(labels)), "average": "macro"}
    if binary:
        averaging = {"pos_label": index, "average": "binary"}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, answers, zero_division=0.0, **averaging)
    confusion = sk.confusion_matrix(truth, answers, labels=range(len(labels)))
    present = confusion.sum(axis=1) > 0
    return {
        "num_images": len(truth),
        "labels": list(labels),
        "positive": positive,
        "accuracy": correct / len(truth),
        "accuracy_interval": list(wilson_interval(correct, len(truth))),
        "balanced_accuracy": float(np.mean(np.diag(confusion)[present] / confusion.sum(axis=1)[present])),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": _roc_auc(truth, probabilities, index) if present.all() else None,
        "mean_score": float(probabilities[:, index].mean()),
        "loss": float(sk.log_loss(truth, probabilities, labels=range(len(labels)))),
        "confusion": confusion.tolist(),
    }


def _roc_auc(truth: NDArray[np.intp], probabilities: NDArray[np.float64], positive: int) -> float:
    if probabilities.shape[1] == 2:
        return float(sk.roc_auc_score(truth == positive, probabilities[:, positive]))
    return float(sk.roc_auc_score(truth, probabilities, multi_class="ovr"))
