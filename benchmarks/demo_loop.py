"""An epoch in the protocol of the paper's figure 6: ours beside the loop of the demonstration that the paper builds on.

``python benchmarks/demo_loop.py`` trains with ResNet18, 856 training and 184 validation images, L = 1 and batches of 4. The peer
does what the demonstration does (Mari et al. 2020): in every epoch every image passes the backbone in torch again, and its
four angles go through a PennyLane QNode on default.qubit, image by image, differentiated by backprop. Decoding of files is left
out for both. A whole epoch of the peer takes a minute or more, so by default it trains on some batches only and its time is
scaled by the number of images; both start from the same values and take the same batches, and their losses are printed. For the
time of a whole epoch of ours the features of these images are repeated up to 856.

Ours is the training loop of ``hqtl-train fit`` with all it does: the classical twins, validation, metrics and checkpoints. Its
features are computed once for all epochs; that time is printed too. The last line is the time of ten seeds beside one.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pennylane as qml
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hqtl_common.backends.pennylane import make_device, queue_head
from hqtl_common.specs import HeadSpec, PreprocessSpec
from training.backbones import Backbone, load_backbone
from training.config import FitConfig
from training.head import make_head
from training.model import HybridModel, build_model
from training.runs import RunFolder
from training.stack import make_lineup
from training.synth import SynthSpec, synth_patch
from training.trainer import EpochReport, Trainer, TrainingData

BATCH_SIZE, TRAIN, VAL = 4, 856, 184


@dataclass(frozen=True)
class Images:
    """Pixels (N, 3, 224, 224) float32, made when asked for, and labels (N,)."""

    grey: list[np.ndarray]
    truth: Tensor

    def pixels(self, index: Tensor) -> Tensor:
        spec = PreprocessSpec()
        grey = torch.from_numpy(np.stack([self.grey[i] for i in index.tolist()])).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
        return (grey[:, None] - mean) / std


def synthetic(count: int) -> Images:
    """Half of them with a crack."""
    patches = [synth_patch(SynthSpec(), np.random.default_rng([0, i]), i % 2 == 0)[0] for i in range(count)]
    grey = [np.asarray(patch if patch.ndim == 2 else patch[..., 0], dtype=np.uint8) for patch in patches]
    return Images(grey, torch.arange(count) % 2)


class DemoModel(nn.Module):
    """Backbone, pre_net, one QNode call per image, post_net."""

    def __init__(self, backbone: Backbone, model: HybridModel) -> None:
        super().__init__()
        spec = model.head.spec

        @qml.qnode(make_device("default.qubit", spec.num_qubits), interface="torch", diff_method="backprop")
        def node(angles: Tensor, weights: Tensor) -> list[Any]:
            queue_head(spec, weights, angles)
            return [qml.expval(qml.Z(wire)) for wire in range(spec.num_qubits)]

        self.backbone, self.node = backbone.network, node
        self.pre_net, self.post_net = model.pre_net, model.post_net
        self.weights = nn.Parameter(model.head.weights.detach().clone())

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(pixels)
        angles = self.pre_net(features).double()
        return self.post_net(torch.stack([torch.stack(self.node(row, self.weights)) for row in angles]))


def batches(count: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The order that a run of ours takes."""
    yield from torch.split(torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count)), BATCH_SIZE)


def demo_epoch(model: DemoModel, config: FitConfig, train: Images, val: Images) -> dict[str, float]:
    """Train and validate once; figures, and seconds per image of both phases (the median over batches)."""
    parameters = [*model.pre_net.parameters(), model.weights, *model.post_net.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    total, times, val_times = 0.0, [], []
    for batch in batches(len(train.truth), config.seed, 0):
        pixels, truth = train.pixels(batch), train.truth[batch]
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels), truth)
        loss.backward()
        optimizer.step()
        times.append((time.perf_counter() - started) / len(batch))
        total += loss.item() * len(batch)
    logits = []
    with torch.no_grad():
        for batch in torch.split(torch.arange(len(val.truth)), BATCH_SIZE):
            pixels = val.pixels(batch)
            started = time.perf_counter()
            logits.append(model(pixels))
            val_times.append((time.perf_counter() - started) / len(batch))
    return {
        "train_loss": total / len(train.truth),
        **scores(torch.cat(logits), val.truth),
        "train_seconds_per_image": statistics.median(times),
        "val_seconds_per_image": statistics.median(val_times),
    }


def scores(logits: Tensor, truth: Tensor) -> dict[str, float]:
    return {"val_loss": cross_entropy(logits, truth).item(), "val_accuracy": (logits.argmax(1) == truth).double().mean().item()}


def our_epochs(data: TrainingData, seeds: range, epochs: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each epoch, and the figures of the first run's first."""
    reports: list[list[EpochReport]] = []
    configs = [FitConfig(data=Path("none"), seed=seed, epochs=epochs) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        runs = [RunFolder(Path(folder) / str(seed)) for seed in seeds]
        for config, run in zip(configs, runs, strict=True):
            run.start(config)
        models = [build_model(data.train[0].shape[-1], 2, config.head_spec, seed=config.seed) for config in configs]
        head = make_head(HeadSpec(), torch.stack([model.head.weights.detach() for model in models]))
        times = [time.perf_counter()]

        def on_epoch(found: list[EpochReport]) -> None:
            reports.append(found)
            times.append(time.perf_counter())

        Trainer(make_lineup(models, head, list(seeds)), configs, runs).train([data] * len(seeds), on_epoch)
    return [after - before for before, after in itertools.pairwise(times)], reports[0][0].figures


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


@torch.no_grad()
def features_of(backbone: Backbone, images: Images) -> Tensor:
    return torch.cat([backbone.network(images.pixels(index)) for index in torch.split(torch.arange(len(images.truth)), 32)])


@click.command()
@click.option("--peer-batches", default=50, show_default=True, help="Batches of 4 that the peer trains on; 214 are a whole epoch.")
@click.option("--peer-val", default=60, show_default=True, help="Images that the peer validates with, of 184.")
@click.option("--epochs", default=6, show_default=True, help="Epochs of ours; the first is not counted.")
@click.option("--weights", default="none", show_default=True, help="Of ResNet18: none or imagenet.")
@click.option("--json", "as_json", is_flag=True)
def main(peer_batches: int, peer_val: int, epochs: int, weights: str, as_json: bool) -> None:
    """Time an epoch of both."""
    part, peer_val = min(peer_batches * BATCH_SIZE, TRAIN), min(peer_val, VAL)
    backbone = load_backbone("resnet18", weights, 0)
    images = synthetic(part + peer_val)
    train, val = (Images(images.grey[chosen], images.truth[chosen]) for chosen in (slice(part), slice(part, None)))
    feature_seconds, (features, val_features) = timed(lambda: (features_of(backbone, train), features_of(backbone, val)))
    feature_seconds *= (TRAIN + VAL) / (part + peer_val)
    peer = demo_epoch(DemoModel(backbone, build_model(backbone.feature_width, 2, HeadSpec())), FitConfig(data=Path("none")), train, val)
    same = TrainingData((features, train.truth), (val_features, val.truth))
    _, figures = our_epochs(same, range(1), 1)
    rows, val_rows = torch.arange(TRAIN) % part, torch.arange(VAL) % peer_val
    whole = TrainingData((features[rows], train.truth[rows]), (val_features[val_rows], val.truth[val_rows]))
    one, ten = (statistics.median(our_epochs(whole, range(count), epochs)[0][1:]) for count in (1, 10))
    demo = TRAIN * peer["train_seconds_per_image"] + VAL * peer["val_seconds_per_image"]
    result = {
        "peer_images": part,
        "peer_seconds_per_epoch": demo,
        "our_seconds_per_epoch": one,
        "ratio": demo / one,
        "feature_seconds": feature_seconds,
        "ratio_with_features_over_100_epochs": 100 * demo / (feature_seconds + 100 * one),
        "ten_seeds_by_one": ten / one,
        **{f"peer_{key}": peer[key] for key in ("train_loss", "val_loss", "val_accuracy")},
        **{f"our_{key}": figures[key] for key in ("train_loss", "val_loss", "val_accuracy")},
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for who in ("peer", "our"):
        click.echo(
            f"after {part // BATCH_SIZE} batches, {who:4s}: training loss {result[f'{who}_train_loss']:.6f}, validation loss "
            f"{result[f'{who}_val_loss']:.6f}, validation accuracy {result[f'{who}_val_accuracy']:.4f}"
        )
    click.echo(f"epoch of the demonstration's loop {demo:8.2f} s ({part} of {TRAIN} and {peer_val} of {VAL} images)")
    click.echo(f"epoch of ours                     {one:8.2f} s, twins included: {demo / one:.0f} times as fast")
    click.echo(
        f"features, once for all epochs     {feature_seconds:8.2f} s; with them, over 100 epochs: "
        f"{result['ratio_with_features_over_100_epochs']:.0f} times as fast"
    )
    click.echo(f"epoch of ten seeds together       {ten:8.2f} s: {ten / one:.2f} times one seed")


if __name__ == "__main__":
    main()
