"""MODEL_CARD.md of a bundle: what it is, what it was measured on, what stands beside it, where it ends."""

from __future__ import annotations

from typing import Any

from hqtl_common.circuit import circuit_drawing
from hqtl_common.manifest import Manifest

__all__ = ["model_card"]

_TEMPLATE = """# {title}

A hybrid quantum transfer-learning classifier: {backbone} (frozen, weights: {weights}) → Linear({width}, {angles}) and tanh·π/2 →
{qubits}-qubit variational circuit with {layers} layer(s) and {num_weights} trained rotations → Linear({qubits}, {classes}).
Classes in the order of the logits: {labels}. Precision, recall and the threshold {threshold} speak of `{positive}`.

Method: Mari et al. 2020 (arXiv:1912.08278), Geng et al. 2023 (arXiv:2307.16723).

## Measured

Test split, no image of which was used for training or for choosing the epoch.

| | accuracy | 95 % interval | balanced accuracy | precision | recall | F1 | ROC AUC | images |
|---|---|---|---|---|---|---|---|---|
| this model (head on {backend}, {sampling}) | {test} |
| classical reference: logistic regression on the same features | {reference} |

The classical reference sees the same frozen features and the same split. Where its interval overlaps the model's, the quantum
head shows no advantage in accuracy.

## Data

{data}

Split {recipe}, seed {seed}, grouped by {group_by}; SHA-256 of the split `{split_hash}`, of the data `{data_hash}`.

## Training

{epochs} epochs of Adam (step {lr}, weight decay {weight_decay}, batches of {batch_size}), epoch {best_epoch} taken by validation loss;
gradient by {diff_method}.

## Circuit

```
{drawing}
```

## Limits

- Probabilities are not calibrated (temperature 1).
- Figures hold for photographs like those of the data set. On other surfaces, cameras and lighting the accuracy can fall far; measure it
  with `hqtl-train evaluate` before relying on it.
- The whole image is judged at {size} × {size} pixels; a thin crack in a large photograph is lost by this: cut it into patches first.
"""


def model_card(manifest: Manifest, result: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        manifest: Of the bundle.
        result: What ``result.json`` of the run holds.
    """
    training, spec, shots = manifest.training, manifest.head_spec, manifest.training["shots"]  # those really made
    return _TEMPLATE.format(
        title=" / ".join(manifest.labels),
        backbone=manifest.backbone.name,
        weights=manifest.backbone.weights,
        width=manifest.backbone.feature_width,
        angles=spec.num_angles,
        qubits=spec.num_qubits,
        layers=spec.num_layers,
        num_weights=spec.num_weights,
        classes=len(manifest.labels),
        labels=", ".join(f"`{label}`" for label in manifest.labels),
        threshold=manifest.threshold,
        positive=manifest.positive_label,
        backend=training["backend"],
        sampling="exact" if shots is None else f"{shots} shots",
        test=_row(result["test"]),
        reference=_row(result["logistic_regression"]),
        data=_counts(manifest.split.counts),
        recipe=manifest.split.recipe,
        seed=manifest.split.seed,
        group_by=manifest.split.group_by,
        split_hash=manifest.split.sha256,
        data_hash=training["data_sha256"],
        epochs=result["epochs"],
        lr=training["lr"],
        weight_decay=training["weight_decay"],
        batch_size=training["batch_size"],
        best_epoch=result["best_epoch"],
        diff_method=result["diff_method"],
        drawing=circuit_drawing(spec),
        size=manifest.preprocess_spec.size,
    )


def _row(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    auc = "–" if figures["roc_auc"] is None else f"{figures['roc_auc']:.3f}"
    names = ("balanced_accuracy", "precision", "recall", "f1")
    rest = " | ".join(f"{figures[name]:.3f}" for name in names)
    return f"{figures['accuracy']:.3f} | {low:.3f} – {high:.3f} | {rest} | {auc} | {figures['num_images']}"


def _counts(counts: dict[str, dict[str, int]]) -> str:
    labels = list(next(iter(counts.values()), {}))
    lines = [f"| | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(by_label[label]) for label in labels)} |" for name, by_label in counts.items()]
    return "\n".join(lines)
