"""``manifest.json`` of a bundle: its schema, and its one canonical form on disk."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hqtl_common.calibration import Applied, Calibration, choose_calibration
from hqtl_common.errors import BundleFormatError, BundleIntegrityError, BundleVersionError
from hqtl_common.specs import HeadSpec, PreprocessSpec

__all__ = [
    "ALLOWED_FILES",
    "FAMILIARITY",
    "FP32",
    "MANIFEST",
    "REQUIRED_FILES",
    "SCHEMA",
    "BackboneInfo",
    "FamiliarityInfo",
    "FileEntry",
    "Manifest",
    "PrecisionChange",
    "PrecisionInfo",
    "SplitInfo",
]

SCHEMA = "hqtl-bundle/1"
MANIFEST = "manifest.json"
REQUIRED_FILES = frozenset({"backbone.onnx", "pre_net.onnx", "post_net.onnx", "head.json", "head.qasm", "MODEL_CARD.md"})
FAMILIARITY = "familiarity.onnx"
FP32 = "backbone_fp32.onnx"  # what backbone.onnx was made from, where that computes with less precision
ALLOWED_FILES = REQUIRED_FILES | {"model.onnx", FAMILIARITY, FP32}

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """Size and hash of one file."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class BackboneInfo(_Strict):
    """Which network gives the features.

    ``weights`` is ``imagenet``, ``kinetics``, ``none`` (random, from the run's seed), ``custom`` or ``tuned`` (on the run's images);
    ``weights_sha256`` is taken over the values.
    """

    name: str
    weights: str
    weights_sha256: Sha256
    feature_width: Annotated[int, Field(ge=1)]


class SplitInfo(_Strict):
    """How the data was divided, and the hash of the result."""

    recipe: str
    seed: int
    group_by: str
    sha256: Sha256
    counts: dict[str, dict[str, int]]


class FamiliarityInfo(_Strict):
    """What ``familiarity.onnx`` computes: features (B, F) → familiarity (B,), the share of held-out images that are as far off.

    Args:
        method: How the distance to the training images is measured.
        level: An image is called unfamiliar up to this familiarity.
        num_reference: Training images that distances are measured to.
        rank: Dimensions in which they are measured.
        num_held_out: Images of the validation split whose distances an image is compared with.
        flagged: Share of unfamiliar images per split.
    """

    method: str
    level: Annotated[float, Field(gt=0, lt=1)]
    num_reference: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=1)]
    num_held_out: Annotated[int, Field(ge=1)]
    flagged: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}


class PrecisionChange(_Strict):
    """What a backbone of less precision changes on some images, with the exact head and the bundle's temperature and threshold.

    Args:
        num_images: How many.
        accuracy: Of the bundle.
        accuracy_fp32: With the backbone that it was made from.
        changed_labels: Images that get another label.
        max_change: Largest change of a probability.
    """

    num_images: Annotated[int, Field(ge=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    accuracy_fp32: Annotated[float, Field(ge=0, le=1)]
    changed_labels: Annotated[int, Field(ge=0)]
    max_change: Annotated[float, Field(ge=0, le=1)]


class PrecisionInfo(_Strict):
    """How ``backbone.onnx`` was made from ``backbone_fp32.onnx``.

    Args:
        name: What it computes with.
        method: How it was made.
        max_accuracy_drop: The loss of accuracy that is accepted.
        changes: Per split of the run's own images.
    """

    name: Literal["fp16", "int8"]
    method: str
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)]
    changes: dict[str, PrecisionChange]


class Manifest(_Strict):
    """Everything a bundle says about itself; see the docstrings of the parts.

    Args:
        schema_: Always ``hqtl-bundle/1`` (key ``schema``).
        created: UTC time from SOURCE_DATE_EPOCH, or None, so that the same training gives the same bytes.
        labels: Class names in the order of the logits.
        positive_label: The class that precision, recall and ``threshold`` speak of.
        threshold: With two classes: the positive label is given from this probability on, where ``calibration`` says nothing.
        temperature: Divisor of the logits per backend name, where ``calibration`` says nothing; ``default`` for all others.
        calibration: Temperature and threshold per backend and number of shots; empty in bundles that were not calibrated.
        familiarity: What ``familiarity.onnx`` computes; None in bundles without it.
        precision: How ``backbone.onnx`` was made from ``backbone_fp32.onnx``; None where it is float32 itself.
        metrics: Per split, figures measured at training time.
        training: Data hash, versions, backend, diff_method and every option of the run.
        onnx: Opset and exporter.
        files: Size and SHA-256 of every other file.
    """

    schema_: Annotated[Literal["hqtl-bundle/1"], Field(alias="schema")] = "hqtl-bundle/1"
    created: str | None = None
    hqtl_version: str
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    positive_label: str
    preprocess: dict[str, Any]
    head: dict[str, Any]
    backbone: BackboneInfo
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: dict[str, Annotated[float, Field(gt=0)]] = {"default": 1.0}
    calibration: tuple[Calibration, ...] = ()
    familiarity: FamiliarityInfo | None = None
    precision: PrecisionInfo | None = None
    metrics: dict[str, dict[str, Any]] = {}
    split: SplitInfo
    training: dict[str, Any] = {}
    onnx: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels must differ from each other; got {list(labels)}")
        return labels

    @field_validator("temperature")
    @classmethod
    def _has_default(cls, temperature: dict[str, float]) -> dict[str, float]:
        if "default" not in temperature:
            raise ValueError("temperature needs an entry named default")
        return temperature

    @field_validator("head")
    @classmethod
    def _head_is_legal(cls, head: dict[str, Any]) -> dict[str, Any]:
        HeadSpec.from_dict(head)
        return head

    @field_validator("preprocess")
    @classmethod
    def _preprocess_is_legal(cls, preprocess: dict[str, Any]) -> dict[str, Any]:
        PreprocessSpec.from_dict(preprocess)
        return preprocess

    @field_validator("calibration")
    @classmethod
    def _one_entry_each(cls, entries: tuple[Calibration, ...]) -> tuple[Calibration, ...]:
        if len({entry.label for entry in entries}) != len(entries):
            raise ValueError(f"calibration needs one entry per backend and shots; got {[entry.label for entry in entries]}")
        return entries

    @model_validator(mode="after")
    def _labels_hold_the_positive_one(self) -> Self:
        if self.positive_label not in self.labels:
            raise ValueError(f"positive_label {self.positive_label!r} is not one of the labels {list(self.labels)}")
        return self

    @property
    def head_spec(self) -> HeadSpec:
        """The head's structure."""
        return HeadSpec.from_dict(self.head)

    @property
    def preprocess_spec(self) -> PreprocessSpec:
        """The preprocessing."""
        return PreprocessSpec.from_dict(self.preprocess)

    @property
    def precision_name(self) -> str:
        """What the backbone computes with: ``fp32``, ``fp16`` or ``int8``."""
        return "fp32" if self.precision is None else self.precision.name

    def applied_to(self, backend: str, shots: int | None, *, noise_free: bool) -> Applied:
        """Temperature and threshold for answers of a backend; see :func:`hqtl_common.calibration.choose_calibration`.

        Args:
            backend: Its name.
            shots: Its repetitions, None = exact.
            noise_free: It has no noise but that of sampling.
        """
        found, name = choose_calibration(self.calibration, backend, shots, noise_free=noise_free)
        binary = len(self.labels) == 2
        if found is not None:
            return Applied(found.temperature, (found.threshold or self.threshold) if binary else None, name)
        return Applied(self.temperature.get(backend, self.temperature["default"]), self.threshold if binary else None, name)

    def to_bytes(self) -> bytes:
        """The canonical file: sorted keys, and a hash of the rest in ``manifest_sha256``."""
        values = self.model_dump(mode="json", by_alias=True)
        return _dump({**values, "manifest_sha256": hashlib.sha256(_dump(values)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse and check the canonical file.

        Raises:
            BundleFormatError: Not JSON, or a field is missing, unknown or out of range.
            BundleVersionError: Another schema.
            BundleIntegrityError: A byte differs from what was written.
        """
        try:
            values = json.loads(data)
            found = values.pop("manifest_sha256", None)
            schema = values.get("schema")
            canonical = _dump({**values, "manifest_sha256": found})
            digest = hashlib.sha256(_dump(values)).hexdigest()
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise BundleFormatError(f"{MANIFEST} is not a JSON object of finite numbers and text: {error}") from error
        if isinstance(schema, str) and schema.startswith("hqtl-bundle/") and schema != SCHEMA:
            raise BundleVersionError(f"{MANIFEST} has the schema {schema!r}; this version reads {SCHEMA!r}: update hqtl or export again")
        if found != digest or data != canonical:
            raise BundleIntegrityError(f"{MANIFEST} was changed after it was written (its own hash does not match)")
        try:
            return cls.model_validate(values)
        except ValidationError as error:  # holds the ConfigErrors of the specs too
            problems = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'fields'}: {problem['msg']}" for problem in error.errors())
            raise BundleFormatError(f"{MANIFEST} does not fit the schema {SCHEMA}: {problems}") from error


def _dump(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
