"""Every option of a training run, checked at the edge and recorded in the run folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hqtl_common.errors import ConfigError
from hqtl_common.specs import HeadSpec, PreprocessSpec
from training.augment import Augmentation

__all__ = ["FitConfig"]

_OUTSIDE = {"data", "device", "tensorboard"}  # what does not decide what a training gives


def _whole_path(path: Path) -> Path:
    str(path).encode()  # a name that is no text cannot be recorded: its ValueError becomes a message
    return path.absolute()


def _weights_name(weights: str) -> str:
    return weights if weights in ("imagenet", "none") else str(_whole_path(Path(weights)))


class FitConfig(BaseModel):
    """Options of ``hqtl-train fit``; the defaults and their reasons.

    Args:
        data: The image folder; recorded with its full path, like a file of weights, so that a run can be resumed anywhere.
        backbone: Feature extractor, a name of :func:`training.architectures.known_backbones`.
        weights: ``imagenet``, ``none`` or the path of a state dict.
        input_size: Edge length to which images are resized; None takes what the backbone's weights were made for.
        depth: Slices to which volumes are resampled; None takes 16, where the backbone takes volumes.
        augment: How training images are altered; see :class:`training.augment.Augmentation`.
        augment_variants: Copies of each training image whose features are cached, the unaltered one among them. While parts of
            the backbone are trained nothing is cached and every epoch has copies of its own.
        unfreeze: Parts of the backbone that are trained too, by their names in torchvision's network: ``layer4``, ``layer3,layer4``
            or ``all``; None keeps it frozen.
        backbone_lr: Adam's step for those parts.
        backbone_epochs: Passes over the training images in which they are trained, before the head and its twins are trained on
            the features of the best one; see :mod:`training.finetune`.
        num_qubits: Qubits n of the head; 4 in the paper.
        embedding: How angles enter the circuit; see :class:`hqtl_common.specs.HeadSpec`.
        entangler: Which CX gates stand in a layer.
        ansatz: What a layer rotates.
        num_layers: L; 1 is the paper's default.
        epochs: 100, as in the paper's figure 6.
        batch_size: 4, as in the transfer-learning demo that the paper builds on (Mari et al. 2020).
        lr: Adam's step, 4e-4 from the same source.
        weight_decay: L2 penalty. There are about 2,000 weights for a few hundred images; 2e-3 gave the best mean test
            accuracy of those tried by ``benchmarks/weight_decay.py`` (docs/decisions/0010).
        patience: Stop after this many epochs without a better validation loss; None trains all epochs.
        split: train/val/test in percent.
        folds: Divide into so many parts instead, for as many trainings; see :func:`training.splits.make_folds`.
        fold: Which of them this one is, from 1.
        split_seed: Seed of the split and of a random backbone; None takes ``seed``. Trainings that differ only in ``seed``
            then see the same images and features, as in the paper's figure 6.
        group_by: ``none``, ``source`` or a regular expression; see :func:`training.data.group_keys`.
        backend: Where the head runs during training.
        diff_method: ``auto`` or a gradient method that is legal on the backend.
        diff_step: Step of a finite difference or of spsa, radians; None is the method's own.
        shots: Repetitions per parameter set; None = exact.
        backend_options: Options of the backend by its own names.
        seed: Seed of the initial weights, the order of batches, sampling and, without ``split_seed``, of the split.
        positive: The class that precision, recall and the threshold speak of; None finds a name like ``crack``.
        device: torch's device for the backbone: ``auto``, ``cpu`` or ``cuda``.
        tensorboard: Write event files for TensorBoard into the run folder too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Annotated[Path, AfterValidator(_whole_path)]
    backbone: str = "resnet18"
    weights: Annotated[str, AfterValidator(_weights_name)] = "imagenet"
    input_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    depth: Annotated[int, Field(ge=1, le=4096)] | None = None
    augment: str = "none"
    augment_variants: Annotated[int, Field(ge=2, le=1000)] = 8
    unfreeze: str | None = None
    backbone_lr: Annotated[float, Field(gt=0, le=1000)] = 1e-5
    backbone_epochs: Annotated[int, Field(ge=1)] = 10
    num_qubits: Annotated[int, Field(ge=2, le=16)] = 4
    embedding: str = "angle"
    entangler: str = "pairwise"
    ansatz: str = "real_amplitudes"
    num_layers: Annotated[int, Field(ge=1, le=1000)] = 1
    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0, le=1000)] = 4e-4
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 2e-3
    patience: Annotated[int, Field(ge=1)] | None = None
    split: str = "70/15/15"
    folds: Annotated[int, Field(ge=3, le=1000)] | None = None
    fold: Annotated[int, Field(ge=1)] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    group_by: str = "none"
    backend: str = "statevector"
    diff_method: str = "auto"
    diff_step: Annotated[float, Field(gt=0, le=10)] | None = None
    shots: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    backend_options: dict[str, Any] = {}
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    positive: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False

    @property
    def head_spec(self) -> HeadSpec:
        """The head's structure.

        Raises:
            ConfigError: An embedding, entangler or ansatz that there is not.
        """
        return HeadSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(HeadSpec)})

    @property
    def split_recipe(self) -> str:
        """How the images are divided, as :func:`training.prepare.divide` reads it: ``70/15/15``, or ``fold 2 of 5``."""
        return self.split if self.folds is None else f"fold {self.fold} of {self.folds}"

    @property
    def data_seed(self) -> int:
        """Seed of what is fixed before training: the split and a random backbone."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def preprocess_spec(self) -> PreprocessSpec:
        """The preprocessing: that of the backbone.

        Raises:
            ConfigError: An unknown backbone, or a size that it cannot have.
        """
        from training.architectures import default_spec

        return default_spec(self.backbone, self.input_size, self.depth)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> FitConfig:
        """Check options.

        Raises:
            ConfigError: Names each option that is unknown or out of range.
        """
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}; got {p['input']!r}" for p in error.errors()]
            raise ConfigError("; ".join(problems)) from error
        if (config.folds is None) != (config.fold is None) or (config.folds or 0) < (config.fold or 0):
            raise ConfigError(f"fold: one of 1 to the number of folds, and both or none; got fold {config.fold} of {config.folds}")
        _ = config.head_spec, Augmentation.parse(config.augment)  # their own ranges
        return config

    def differences(self, other: FitConfig) -> list[str]:
        """Options that differ, in words; where the data lies, the device and the tracking do not count."""
        mine, theirs = self.model_dump(exclude=_OUTSIDE), other.model_dump(exclude=_OUTSIDE)
        return [f"{key}: {mine[key]!r} here, {theirs[key]!r} there" for key in mine if mine[key] != theirs[key]]

    def training_record(self) -> dict[str, Any]:
        """JSON-ready options without paths, device and tracking: what a bundle may say about its training."""
        record: dict[str, Any] = json.loads(self.model_dump_json(exclude=_OUTSIDE))
        if record["weights"] not in ("imagenet", "none"):
            record["weights"] = Path(record["weights"]).name
        return record
