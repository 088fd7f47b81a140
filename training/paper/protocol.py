"""What is run: the options of the study, and its parts, each a group of trainings that differ only in their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hqtl_common.errors import ConfigError
from training.config import FitConfig

__all__ = ["DEVICES", "DEVICE_SPLIT", "MAIN_SPLIT", "SPLIT_SEED", "Device", "Part", "Protocol", "TwinData"]

MAIN_SPLIT, DEVICE_SPLIT = "70/15/15", "4/4/92"  # the paper's table 4
SPLIT_SEED = 0  # the runs of a part share one split; only what training draws at random differs

Count = Annotated[int, Field(ge=1)]
FullPath = Annotated[Path, AfterValidator(Path.absolute)]


@dataclass(frozen=True, slots=True)
class Device:
    """One of the paper's devices and what runs in its place.

    Args:
        name: The paper's name.
        backend: Ours.
        sampled: True where it takes shots; these are stand-ins for what no longer exists.
        note: What runs instead, said wherever its figures appear; completes a sentence that begins with the name.
    """

    name: str
    backend: str
    sampled: bool
    note: str

    @property
    def label(self) -> str:
        """What runs, for pictures: ``stand-in fake_lima``, or ``here statevector``."""
        return f"{'stand-in' if self.sampled else 'here'} {self.backend}"

    @property
    def shown(self) -> str:
        """The name with what runs."""
        return f"{self.name} ({self.label})"


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("PennyLane simulator", "statevector", False, "is replaced by the exact simulator statevector, which gives the same values"),
        Device("qasm_simulator", "aer", True, "was retired on 2024-05-15; Aer's sampler without noise stands in for it"),
        Device("ibmq_kolkata", "fake_kolkata", True, "was retired on 2024-04-01; its snapshot of 2021-12-09 stands in for it"),
        Device(
            "ibmq_ehningen",
            "paper:ehningen",
            True,
            "has no snapshot; a machine with the averages of the paper's table 2 on every qubit stands in for it",
        ),
        Device("ibmq_lima", "fake_lima", True, "was retired on 2023-09-26; its snapshot of 2021-03-15 stands in for it"),
    )
}


@dataclass(frozen=True, slots=True)
class Part:
    """A group of trainings.

    Args:
        name: Names its folder.
        title: For people.
        configs: Options of each training; they differ in nothing but the seed.
    """

    name: str
    title: str
    configs: tuple[FitConfig, ...]

    def folders(self, out: Path) -> list[Path]:
        """The run folder of each training."""
        return [out / "runs" / self.name / f"seed-{config.seed}" for config in self.configs]


class TwinData(BaseModel):
    """A data set of the comparison with the twins.

    Args:
        path: Its folder.
        name: For people.
        grouped: True where the photograph is known that a patch comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: FullPath
    name: str
    grouped: bool


class Protocol(BaseModel):
    """The options of a study; the defaults are the paper's, or derived from it where its text has lost them.

    Args:
        data: The data set of all tables and figures.
        data_name: Its name for people.
        twin_data: Data sets on which the hybrid is compared with its classical twins.
        weights: ``imagenet`` or ``none`` by backbone; random ones are named in every picture.
        seeds: Trainings per box: ten in the paper's figures 6 and 9.
        epochs: 100, from section 5.4.
        batch_size: 4, as in the demonstration that the paper builds on (Mari et al. 2020); the paper does not say.
        layers: L of figure 9 and table 6.
        backbones: Of figure 9 and table 6; the first is that of everything else.
        shots: 1024, PennyLane-Qiskit's default; the paper's number is lost.
        device_epochs: Of table 5; the paper's number is lost.
        device_seeds: Trainings per device in table 5; one in the paper.
        twin_seeds: Splits, with one training each, per data set of the comparison with the twins.
        group_by: See :class:`training.config.FitConfig`; the paper splits patches without grouping them.
        twin_group_by: The same for the comparison with the twins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: FullPath
    data_name: str
    twin_data: tuple[TwinData, ...]
    weights: dict[str, str]
    seeds: Count = 10
    epochs: Count = 100
    batch_size: Count = 4
    layers: tuple[Count, ...] = (1, 2, 3, 4, 5, 6)
    backbones: tuple[str, ...] = ("resnet18", "vgg16")
    shots: Count = 1024
    device_epochs: Count = 20
    device_seeds: Count = 3
    twin_seeds: Count = 5
    group_by: str = "none"
    twin_group_by: str = "source"

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Protocol:
        """Check options.

        Raises:
            ConfigError: Names each option that is unknown or out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}; got {p['input']!r}" for p in error.errors())
            ) from error

    def part(self, name: str, title: str, seeds: Sequence[int], **options: Any) -> Part:
        """Trainings with these seeds, on one split unless ``split_seed`` is None."""
        backbone = options.get("backbone", self.backbones[0])
        common = {
            "data": self.data,
            "backbone": backbone,
            "weights": self.weights[backbone],
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "group_by": self.group_by,
            "split_seed": SPLIT_SEED,
        }
        return Part(name, title, tuple(FitConfig.parse({**common, **options, "seed": seed}) for seed in seeds))

    def main_part(self, backbone: str, num_layers: int, diff_method: str = "backprop") -> Part:
        """The trainings behind figures 6 and 9 and table 6: exact simulator, 70/15/15, all seeds."""
        name = f"{backbone}-L{num_layers}-{diff_method}"
        title = f"{backbone}, L = {num_layers}, {diff_method}"
        options = {"backbone": backbone, "num_layers": num_layers, "diff_method": diff_method, "split": MAIN_SPLIT}
        return self.part(name, title, range(self.seeds), **options)

    def random_weights(self, backbone: str) -> bool:
        """True where a backbone's weights are random."""
        return self.weights[backbone] == "none"
