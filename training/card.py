"""MODEL_CARD.md of a bundle: what it is, what it was measured on, what stands beside it, where it ends."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

from hqtl_common.calibration import Calibration
from hqtl_common.circuit import circuit_drawing
from hqtl_common.manifest import Manifest
from training.compare.summary import TWIN_NAMES
from training.report.words import twin_verdict

__all__ = ["model_card"]

_TEMPLATE = """\
# {{ manifest.labels | join(" / ") }}

A hybrid quantum transfer-learning classifier: {{ backbone.name }} ({{ origin }}) → \
Linear({{ backbone.feature_width }}, {{ spec.num_values }}) and {{ squash }} →
{{ spec.num_qubits }}-qubit variational circuit with {{ spec.num_layers }} layer(s) and {{ spec.num_weights }} trained rotations → \
Linear({{ spec.num_qubits }}, {{ manifest.labels | length }}).
Classes in the order of the logits: {{ labels }}. Precision, recall and the threshold speak of `{{ manifest.positive_label }}`.

Method: Mari et al. 2020 (arXiv:1912.08278), Geng et al. 2023 (arXiv:2307.16723).

## Measured

{% if test -%}
Test split, no image of which was used for training, for choosing the epoch, or for the calibration; the label is the most probable class.
{%- if training.leaked %}
**Leakage: {{ training.leaked }} images of the validation and test split are byte for byte equal to one that was trained on, \
so all figures look too good.**
{%- endif %}

| | accuracy | 95 % interval | balanced accuracy | precision | recall | F1 | ROC AUC | images |
|---|---|---|---|---|---|---|---|---|
{% for name, figures in rows -%}
| {{ name }} | {{ figures }} |
{% endfor %}
{% if verdicts -%}
The twins are trained like the model, on the same features, with the same seed and batches; they differ by what replaces the circuit.
{%- if backbone.weights == "tuned" %}
The backbone was tuned through the hybrid model, which may favour it over its twins.
{%- endif %}
{% for verdict in verdicts -%}
{{ verdict }}
{% endfor %}
{%- endif %}
The classical reference sees the same features and the same split. Where its interval overlaps the model's, the quantum
head shows no advantage in accuracy.
{%- else -%}
The bundle holds no figures.
{%- endif %}

{% if manifest.precision -%}
## Precision

The backbone computes in {{ manifest.precision.name }} ({{ manifest.precision.method }}); the figures above are those of the float32 \
model that was trained.
Temperature, threshold and familiarity are fitted to the answers of the {{ manifest.precision.name }} backbone. What it changes, with the \
exact head:

| split | accuracy | in fp32 | other labels | largest change of a probability | images |
|---|---|---|---|---|---|
{% for name, change in manifest.precision.changes.items() -%}
| {{ name }} | {{ "%.3f" % change.accuracy }} | {{ "%.3f" % change.accuracy_fp32 }} | {{ change.changed_labels }} \
| {{ "%.3f" % change.max_change }} | {{ change.num_images }} |
{% endfor %}
Whether it is faster depends on the machine: `hqtl-train verify` measures both.

{% endif -%}
## What the quantum head is

{{ head_words }}

```
{{ drawing }}
```

## Probabilities and threshold

{% if not manifest.calibration -%}
Probabilities are not calibrated (temperature 1). The threshold is {{ manifest.threshold }}.
{%- else -%}
Noise pulls every ⟨Z⟩ towards zero and the logits with it, so each backend has a temperature of its own, the divisor of the logits. It is
fitted on images that the model was not trained on; the figures below are of these same images, `hqtl-train evaluate` measures others.
A backend without an entry here is answered with the statevector's, and the answer says so.

| backend | fitted on | temperature | loss | ECE | 95 % interval | by chance | Brier |
|---|---|---|---|---|---|---|---|
{% for entry in manifest.calibration -%}
| {{ entry.label }} | {{ entry.subset }}, {{ entry.num_images }} images | {{ "%.3g" % entry.temperature }} \
| {{ change(entry, "nll") }} | {{ change(entry, "ece") }} | {{ "%.3f – %.3f" % (entry.after.ece_low, entry.after.ece_high) }} \
| {{ "%.3f" % entry.after.ece_chance }} | {{ change(entry, "brier") }} |
{% endfor %}
Loss, expected calibration error (ECE, 15 bins) and Brier score without → with the temperature. "By chance" is the ECE that so few images
show even if every probability is right.
{% for entry in manifest.calibration if entry.threshold is not none %}
- {{ entry.label }}: `{{ manifest.positive_label }}` is answered from a probability of {{ "%.4g" % entry.threshold }} on \
({{ entry.rule }}).\
{% if entry.recall %} It finds {{ "%.3f" % entry.recall.recall }} of {{ entry.recall.positives }} such images \
(95 % interval {{ "%.3f – %.3f" % entry.recall.interval }}), and calls {{ "%.3f" % entry.recall.false_alarms }} of the others so.{% endif %}
{%- endfor %}
{%- for note in notes %}
- Note: {{ note }}.
{%- endfor %}
{%- endif %}

## Unfamiliar images

{% if manifest.familiarity -%}
Each answer carries a familiarity, the share of {{ manifest.familiarity.num_held_out }} validation images that are at least \
as far from the training images ({{ manifest.familiarity.method }}).
Up to {{ manifest.familiarity.level }} an image is called unfamiliar, and is to be looked at by a person\
{% if "test" in manifest.familiarity.flagged %}; that happens to {{ "%.1f" % (100 * manifest.familiarity.flagged.test) }} % of the test \
split{% endif %}. It says that an image is
unlike the training set, not that its answer is wrong; and an image of another kind may look familiar.
{%- else -%}
The bundle cannot tell whether an image is unlike the training images.
{%- endif %}

## Data

{{ counts }}

Split {{ manifest.split.recipe }}, seed {{ manifest.split.seed }}, grouped by {{ manifest.split.group_by }}; SHA-256 of the split \
`{{ manifest.split.sha256 }}`, of the data `{{ training.data_sha256 or "unknown" }}`.

## Training

{{ training.epochs_done }} epochs of Adam (step {{ training.lr }}, weight decay {{ training.weight_decay }}, batches of \
{{ training.batch_size }}), epoch {{ training.best_epoch }} taken by validation loss;
gradient by {{ training.diff_method }}, head on {{ training.backend }}, {{ sampling }}.

## Limits

- Figures hold for photographs like those of the data set. On other surfaces, cameras and lighting the accuracy can fall far; measure it
  with `hqtl-train evaluate` before relying on it.
- Calibration and recall hold for the share of each class in the images they were fitted on, and for these backends.
- The whole image is judged at {{ size }} × {{ size }} pixels; a thin crack in a large photograph is lost by this: cut it into
  patches first.
"""

_ENVIRONMENT = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


def model_card(manifest: Manifest) -> str:
    """The card as Markdown.

    Args:
        manifest: Of the bundle.
    """
    training, spec = {**_UNKNOWN, **manifest.training}, manifest.head_spec
    shots = training["shots"]  # those really made
    return _ENVIRONMENT.from_string(_TEMPLATE).render(
        manifest=manifest,
        backbone=manifest.backbone,
        origin=_origin(manifest),
        spec=spec,
        squash="the amplitudes of a state" if spec.embedding == "amplitude" else "tanh·π/2",
        labels=", ".join(f"`{label}`" for label in manifest.labels),
        test=manifest.metrics.get("test"),
        rows=_rows(manifest.metrics),
        verdicts=_verdicts(manifest.metrics),
        head_words=_head_words(manifest),
        drawing=circuit_drawing(spec),
        change=_change,
        notes=list(dict.fromkeys(note for entry in manifest.calibration for note in entry.notes)),
        counts=_counts(manifest.split.counts),
        training=training,
        sampling="exact" if shots is None else f"{shots} shots",
        size=manifest.preprocess_spec.size,
    )


_UNKNOWN = dict.fromkeys(
    ("data_sha256", "epochs_done", "lr", "weight_decay", "batch_size", "best_epoch", "diff_method", "backend"), "unknown"
) | {"shots": None, "leaked": 0}


def _origin(manifest: Manifest) -> str:
    if manifest.backbone.weights != "tuned":
        return f"frozen, weights: {manifest.backbone.weights}"
    return f"weights: {manifest.training.get('weights', 'unknown')}, {manifest.training.get('unfreeze', 'parts')} tuned on these images"


def _rows(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = [("this model", metrics["test"])] if "test" in metrics else []
    rows += [(TWIN_NAMES[name], twin["test"]) for name, twin in metrics.get("twins", {}).items()]
    if "logistic_regression" in metrics:
        rows.append(("classical reference: logistic regression on the same features", metrics["logistic_regression"]))
    return [(name, _row(figures)) for name, figures in rows]


def _verdicts(metrics: dict[str, dict[str, Any]]) -> list[str]:
    return [twin_verdict(name, metrics) for name in metrics.get("mcnemar", {})]


def _head_words(manifest: Manifest) -> str:
    spec = manifest.head_spec
    text = (
        f"A circuit of {spec.num_qubits} qubits has {2**spec.num_qubits:,} amplitudes; its exact answer is a matrix product that any "
        "computer does in\nmicroseconds. It is a small trained function of the angles and no computation that needs a quantum computer."
    )
    if spec.num_layers == 1 and spec.embedding != "amplitude":
        text += (
            "\nWith one layer each ⟨Z_i⟩ is a short trigonometric polynomial of the angles, for the embedding is a product state and the "
            "CX gates only\npermute basis states."
        )
    return text + "\nWhatever it is worth stands in the table above, beside what classical twins reach on the same images."


def _change(entry: Calibration, name: str) -> str:
    return f"{getattr(entry.before, name):.3f} → {getattr(entry.after, name):.3f}"


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
