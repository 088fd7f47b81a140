"""Train parts of the backbone on a run's own images, before the head and its twins are trained on the features that it then gives.

The backbone is trained through a hybrid model of its own with the exact head, so nothing is sampled or paid for here. The epoch
with the lowest validation loss is kept; what follows is the ordinary training on cached features, which treats the hybrid and its
classical twins alike. Batch normalisation keeps its statistics and dropout stays off, so that the network that was trained is the one
that is exported, and batches of a few images do no harm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hqtl_common.errors import ConfigError, InputError
from training.augment import Augmentation, Variant
from training.backbones import Backbone, state_digest
from training.config import FitConfig
from training.console import progress_bar, say
from training.decode import decode_batches
from training.model import build_model
from training.prepare import PreparedData, add_variants, compute_features
from training.runs import Checkpoint, RunFolder

__all__ = ["load_tuned", "tune_backbone", "tune_features", "unfrozen_parameters"]

_FOLDER = "tuning"  # in the run folder: a checkpoint, metrics and a result of its own
_VALIDATION_BATCH = 32

Batches = Iterator[tuple[Tensor, Tensor]]


def unfrozen_parameters(network: nn.Module, unfreeze: str) -> dict[str, nn.Parameter]:
    """Parameters of the parts to be trained, by name.

    Args:
        network: The backbone.
        unfreeze: ``all``, or names of its parts with commas between, as in torchvision (``layer4``, ``features.28``).

    Raises:
        ConfigError: A name that is no part with parameters; the message lists the parts.
    """
    found = dict(network.named_parameters())
    if unfreeze == "all":
        return found
    parts = [part.strip() for part in unfreeze.split(",")]
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in found):
            known = [name for name, child in network.named_children() if any(True for _ in child.parameters())]
            raise ConfigError(
                f"the backbone has no part {part!r} to unfreeze; its parts are {', '.join(known)} (and parts of them), or all"
            )
    return {name: value for name, value in found.items() if name.startswith(tuple(f"{part}." for part in parts))}


def tune_backbone(config: FitConfig, run: RunFolder, backbone: Backbone, data: PreparedData, device: str = "cpu") -> Backbone:
    """The backbone with its unfrozen parts as they were in the best epoch; goes on where a killed tuning stopped.

    Args:
        config: Options of the run; ``unfreeze`` is given.
        run: The run folder.
        backbone: With the weights to begin from; it is not changed.
        data: The images and their split.
        device: torch's device.

    Raises:
        ConfigError: No part of that name, or the loss is no finite number any more.
        InputError: An image cannot be read any more, or the checkpoint is damaged.
    """
    tuner = _Tuner(config, RunFolder(run.path / _FOLDER), backbone, data, device)
    if not tuner.finished:
        say(f"tuning {config.unfreeze} of {backbone.name}: {tuner.num_weights:,} weights")
        with progress_bar("tuning", config.backbone_epochs, "epochs") as advance:
            advance(tuner.epoch)
            tuner.train(advance)
    return tuner.best_backbone()


def tune_features(
    config: FitConfig, run: RunFolder, backbone: Backbone, data: PreparedData, cache_folder: Path, device: str
) -> tuple[PreparedData, dict[str, Any]]:
    """Tune the backbone of a run; the data with the features that it gives then, and what the result says about it.

    Args:
        config: Options of the run; ``unfreeze`` is given.
        run: The run folder.
        backbone: With the weights to begin from.
        data: With its features.
        cache_folder: Where features are cached.
        device: torch's device.

    Raises:
        ConfigError: See :func:`tune_backbone`.
        InputError: See :func:`tune_backbone`.
    """
    tuned = tune_backbone(config, run, backbone, data, device)
    table = compute_features(data.source, tuned, config.preprocess_spec, cache_folder, device)
    progress = RunFolder(run.path / _FOLDER).load_checkpoint()
    assert progress is not None
    record = {
        "unfrozen": config.unfreeze,
        **progress.progress,
        "backbone_sha256": tuned.digest,
        "note": "the model and its twins were trained afresh on the features of the tuned backbone's best epoch",
    }
    return add_variants(config, replace(data, features=table.features), tuned, cache_folder, device), record


def load_tuned(path: Path, config: FitConfig, backbone: Backbone) -> Backbone:
    """The backbone of a finished run with ``unfreeze``.

    Args:
        path: The run folder.
        config: Its options.
        backbone: As it was before.

    Raises:
        InputError: What the tuning left is missing or damaged.
    """
    folder = RunFolder(path / _FOLDER)
    checkpoint = folder.load_checkpoint()
    if checkpoint is None or checkpoint.progress.get("epoch") != config.backbone_epochs:
        raise InputError(f"the tuned backbone of {str(path)!r} is missing; finish the run with: hqtl-train fit --resume {path}")
    return _with_values(backbone, checkpoint.part("best"), path)


def _with_values(backbone: Backbone, values: dict[str, Tensor], path: Path) -> Backbone:
    network = copy.deepcopy(backbone.network).cpu()
    try:
        foreign = network.load_state_dict(values, strict=False).unexpected_keys
    except RuntimeError as error:
        raise InputError(f"the tuned backbone of {str(path)!r} is another network; remove the run and train again") from error
    if foreign:
        raise InputError(f"the tuned backbone of {str(path)!r} is another network ({foreign[0]}); remove the run and train again")
    network.eval().requires_grad_(False)
    return replace(backbone, weights="tuned", digest=state_digest(network), network=network)


@dataclass(slots=True)
class _Progress:
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf


class _Tuner:
    """The loop: epochs of Adam on decoded images, with a checkpoint after each."""

    def __init__(self, config: FitConfig, folder: RunFolder, backbone: Backbone, data: PreparedData, device: str) -> None:
        assert config.unfreeze is not None
        self._config, self._folder, self._backbone, self._data, self._device = config, folder, backbone, data, device
        self._network = copy.deepcopy(backbone.network).to(device).eval()
        self._weights = unfrozen_parameters(self._network, config.unfreeze)
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._model = build_model(backbone.feature_width, len(data.source.dataset.labels), config.head_spec, seed=config.seed)
        groups = [
            {"params": list(self._model.parameters()), "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": list(self._weights.values()), "lr": config.backbone_lr},  # near where it began without a penalty
        ]
        self._optimizer = torch.optim.Adam(groups)
        self._progress = _Progress()
        self._best: dict[str, Tensor] = {}
        folder.path.mkdir(exist_ok=True)
        if (checkpoint := folder.load_checkpoint()) is not None:
            try:
                self._restore(checkpoint)
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                raise InputError(f"the checkpoint in {str(folder.path)!r} does not fit; remove the run and train again") from error
        folder.trim_metrics(self.epoch)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._progress.epoch

    @property
    def finished(self) -> bool:
        """All epochs are done."""
        return self.epoch >= self._config.backbone_epochs

    @property
    def num_weights(self) -> int:
        """Number of values that are trained in the backbone."""
        return sum(weight.numel() for weight in self._weights.values())

    def train(self, advance: Callable[[int, str], None]) -> None:
        """Run the epochs that are left."""
        while not self.finished:
            train_loss = self._train_epoch()
            val_loss, val_accuracy = self._validate()
            progress = self._progress
            progress.epoch += 1
            if not math.isfinite(train_loss + val_loss):
                raise ConfigError(
                    f"the loss is no finite number in tuning epoch {self.epoch}; begin a new run with a smaller --backbone-lr"
                )
            if val_loss < progress.best_loss:
                progress.best_loss, progress.best_epoch = val_loss, self.epoch
                self._best = {name: weight.detach().cpu().clone() for name, weight in self._weights.items()}
            figures = {"epoch": self.epoch, "train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
            self._folder.append_metrics(figures)
            self._folder.save_checkpoint(self._snapshot())
            advance(1, f"loss {train_loss:.3f}, validation {val_loss:.3f} / {100 * val_accuracy:.1f} %")

    def best_backbone(self) -> Backbone:
        """The backbone of the best epoch."""
        return _with_values(self._backbone, self._best, self._folder.path)

    def _train_epoch(self) -> float:
        train = np.asarray(self._data.split.train, dtype=np.intp)
        order = train[np.random.default_rng([self._config.seed, self.epoch]).permutation(len(train))]
        augmentation = Augmentation.parse(self._config.augment)
        copies = f"seed {self._config.seed} epoch {self.epoch + 1}"
        variant = None if augmentation is None else Variant(augmentation, self._config.preprocess_spec, copies)
        total = 0.0
        for pixels, truth in self._batches(order, self._config.batch_size, variant):
            self._optimizer.zero_grad()
            loss = cross_entropy(self._model(self._network(pixels.to(self._device)).cpu()), truth)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.item() * len(truth)
        return total / len(train)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy."""
        loss, right, val = 0.0, 0, np.asarray(self._data.split.val, dtype=np.intp)
        for pixels, truth in self._batches(val, _VALIDATION_BATCH, None):
            logits = self._model(self._network(pixels.to(self._device)).cpu())
            loss += cross_entropy(logits, truth, reduction="sum").item()
            right += int((logits.argmax(1) == truth).sum())
        return loss / len(val), right / len(val)

    def _batches(self, positions: np.ndarray[Any, np.dtype[np.intp]], size: int, variant: Variant | None) -> Batches:
        source = self._data.source

        def alter(index: int, pixels: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
            return pixels if variant is None else variant.apply(pixels, source.hashes[positions[index]])

        paths = [source.dataset.samples[position].path for position in positions]
        for batch in decode_batches(paths, self._config.preprocess_spec, size, alter):
            for index, message in batch.errors.items():
                raise InputError(f"{str(paths[index])!r} could be read before and cannot now: {message}")
            yield torch.from_numpy(batch.pixels), torch.from_numpy(self._data.truth[positions[batch.positions]].astype(np.int64))

    def _snapshot(self) -> Checkpoint:
        tensors = {f"model.{key}": value for key, value in self._model.state_dict().items()}
        tensors |= {f"backbone.{name}": weight.detach().cpu() for name, weight in self._weights.items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.cpu() for key, value in state.items()}
        progress = self._progress
        return Checkpoint(tensors, {"epoch": progress.epoch, "best_epoch": progress.best_epoch, "best_loss": progress.best_loss})

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        self._model.load_state_dict(checkpoint.part("model"))
        for name, value in checkpoint.part("backbone").items():
            self._weights[name].copy_(value)
        self._best = checkpoint.part("best")
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.part("optimizer").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})
        self._progress = _Progress(**checkpoint.progress)
