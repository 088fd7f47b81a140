"""Every option of a training run, checked at the edge and recorded in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hqtl_common.errors import ConfigError
from hqtl_common.specs import HeadSpec, PreprocessSpec

__all__ = ["FitConfig"]


def _whole_path(path: Path) -> Path:
    str(path).encode()  # a name that is no text cannot be recorded: its ValueError becomes a message
    return path.absolute()


def _weights_name(weights: str) -> str:
    return weights if weights in ("imagenet", "none") else str(_whole_path(Path(weights)))


class FitConfig(BaseModel):
    """Options of ``hqtl-train fit``; the defaults and their reasons.

    Args:
        data: The image folder; recorded with its full path, like a file of weights, so that a run can be resumed anywhere.
        backbone: Frozen feature extractor.
        weights: ``imagenet``, ``none`` or the path of a state dict.
        num_layers: L; 1 is the paper's default.
        epochs: 100, as in the paper's figure 6.
        batch_size: 4, as in the transfer-learning demo that the paper builds on (Mari et al. 2020).
        lr: Adam's step, 4e-4 from the same source.
        weight_decay: L2 penalty. There are about 2,000 weights for a few hundred images; 2e-3 gave the best mean test
            accuracy of those tried by ``benchmarks/weight_decay.py`` (docs/decisions/0010).
        patience: Stop after this many epochs without a better validation loss; None trains all epochs.
        split: train/val/test in percent.
        group_by: ``none``, ``source`` or a regular expression; see :func:`training.data.group_keys`.
        backend: Where the head runs during training.
        diff_method: ``auto`` or a gradient method that is legal on the backend.
        diff_step: Step of a finite difference or of spsa, radians; None is the method's own.
        shots: Repetitions per parameter set; None = exact.
        backend_options: Options of the backend by its own names.
        seed: Seed of the split, the initial weights, the order of batches, and sampling.
        positive: The class that precision, recall and the threshold speak of; None finds a name like ``crack``.
        device: torch's device for the backbone: ``auto``, ``cpu`` or ``cuda``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Annotated[Path, AfterValidator(_whole_path)]
    backbone: str = "resnet18"
    weights: Annotated[str, AfterValidator(_weights_name)] = "imagenet"
    num_layers: Annotated[int, Field(ge=1, le=1000)] = 1
    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0, le=1000)] = 4e-4
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 2e-3
    patience: Annotated[int, Field(ge=1)] | None = None
    split: str = "70/15/15"
    group_by: str = "none"
    backend: str = "statevector"
    diff_method: str = "auto"
    diff_step: Annotated[float, Field(gt=0, le=10)] | None = None
    shots: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    backend_options: dict[str, Any] = {}
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    positive: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def head_spec(self) -> HeadSpec:
        """The head's structure."""
        return HeadSpec(num_layers=self.num_layers)

    @property
    def preprocess_spec(self) -> PreprocessSpec:
        """The preprocessing."""
        return PreprocessSpec()

    @classmethod
    def parse(cls, values: dict[str, Any]) -> FitConfig:
        """Check options.

        Raises:
            ConfigError: Names each option that is unknown or out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}; got {p['input']!r}" for p in error.errors()]
            raise ConfigError("; ".join(problems)) from error

    def differences(self, other: FitConfig) -> list[str]:
        """Options that differ, in words; where the data lies and the device do not count."""
        ignored = {"data", "device"}
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{key}: {mine[key]!r} here, {theirs[key]!r} there" for key in mine if key not in ignored and mine[key] != theirs[key]]

    def training_record(self) -> dict[str, Any]:
        """JSON-ready options without paths and device: what a bundle may say about its training."""
        record: dict[str, Any] = json.loads(self.model_dump_json(exclude={"data", "device"}))
        if record["weights"] not in ("imagenet", "none"):
            record["weights"] = Path(record["weights"]).name
        return record
