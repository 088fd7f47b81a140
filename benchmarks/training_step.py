"""One training step on cached features: our head beside PennyLane's, in one run.

``python benchmarks/training_step.py`` prints milliseconds per step (ResNet18's 512 features, 4 qubits, Adam) and the ratios:
the exact head in torch, PennyLane's default.qubit with backprop on the broadcast batch, and the same image by image,
as in the demonstration that the paper builds on (Mari et al. 2020).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hqtl_common.specs import HeadSpec
from training.head import Head, make_head
from training.model import HybridModel, build_model

FEATURES = 512


class OneByOne(nn.Module):
    """A head that is called once per image."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, angles: Tensor) -> Tensor:
        return torch.cat([self.head(row[None]) for row in angles])


def step_of(model: nn.Module, batch_size: int) -> Callable[[], None]:
    features = torch.randn(batch_size, FEATURES, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(batch_size) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(features), truth).backward()
        optimizer.step()

    return step


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """Median over repeats, after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def peers(num_layers: int) -> dict[str, HybridModel]:
    spec = HeadSpec(num_layers=num_layers)
    ours = build_model(FEATURES, 2, spec)
    broadcast = ours.with_head(make_head(spec, ours.head.weights, backend="pennylane:default.qubit"))
    one_by_one = ours.with_head(make_head(spec, ours.head.weights, backend="pennylane:default.qubit"))
    one_by_one.head = OneByOne(one_by_one.head)  # type: ignore[assignment]
    return {"ours": ours, "PennyLane, broadcast": broadcast, "PennyLane, image by image": one_by_one}


@click.command()
@click.option("--num-layers", default=1, show_default=True)
@click.option("--batch-size", "batch_sizes", multiple=True, type=int, default=(4, 64), show_default=True)
@click.option("--repeats", default=30, show_default=True)
def main(num_layers: int, batch_sizes: tuple[int, ...], repeats: int) -> None:
    """Time one optimiser step."""
    torch.set_num_threads(1)
    for batch_size in batch_sizes:
        times = {name: milliseconds(step_of(model, batch_size), repeats) for name, model in peers(num_layers).items()}
        for name, value in times.items():
            ratio = value / times["ours"]
            click.echo(f"L={num_layers} batch={batch_size:4d}  {name:26s} {value:9.2f} ms/step  {ratio:7.1f} × ours")


if __name__ == "__main__":
    main()
