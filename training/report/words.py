"""Figures as sentences that claim no more than the figures do."""

from __future__ import annotations

from typing import Any

from training.compare.summary import TWIN_NAMES

__all__ = ["headline", "twin_verdict"]

_ALPHA = 0.05


def headline(test: dict[str, Any], leaked: int = 0) -> str:
    """What the model does with the images of the test split, in one sentence.

    Args:
        test: Of :func:`training.metrics.classification_metrics`.
        leaked: How many images of the validation and test split equal one that was trained on.
    """
    count, right = test["num_images"], round(test["accuracy"] * test["num_images"])
    unseen = "" if leaked else " that it had never seen"
    text = f"{right} of {_images(count)}{unseen} were answered correctly"
    if len(test["labels"]) != 2:
        return f"{text}."
    positive = test["labels"].index(test["positive"])
    row = test["confusion"][positive]
    missed, false_alarms = row[1 - positive], test["confusion"][1 - positive][positive]
    return f"{text}; of {sum(row)} with {test['positive']} it missed {missed or 'none'}, and it raised {_alarms(false_alarms)}."


def twin_verdict(twin: str, result: dict[str, Any]) -> str:
    """Whether the hybrid is better than a twin, as McNemar's test on the test split allows to say.

    Args:
        twin: Name in ``result["twins"]``.
        result: What ``result.json`` holds.
    """
    test, mine, theirs = result["mcnemar"][twin], result["test"]["accuracy"], result["twins"][twin]["test"]["accuracy"]
    name, differing = TWIN_NAMES[twin], test["only_model"] + test["only_twin"]
    if not differing:
        return f"The quantum head and {name} are right about the same images: no difference can be seen."
    facts = (
        f"of {_images(differing)} on which only one of them is right, the quantum head has {test['only_model']} and {name} "
        f"{test['only_twin']} (McNemar's exact test: p {_p_value(test['p_value'])})"
    )
    if test["p_value"] >= _ALPHA:
        return f"The quantum head cannot be told apart from {name} by these images: {facts}."
    return f"The quantum head is {'better' if mine > theirs else 'worse'} than {name}, by more than chance explains: {facts}."


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _alarms(count: int) -> str:
    return "no false alarm" if not count else "1 false alarm" if count == 1 else f"{count} false alarms"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
