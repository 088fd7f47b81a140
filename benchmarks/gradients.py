"""A parameter-shift step on the exact simulator: ours beside our own backprop, and beside PennyLane looping over the batch.

``python benchmarks/gradients.py`` prints milliseconds per forward and backward pass of the head and the ratios, for L = 1 and 6.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import pennylane as qml
import torch

from hqtl_common.backends.pennylane import make_device, queue_head
from hqtl_common.specs import HeadSpec
from training.head import Head, make_head


def pass_of(head: Head, angles: torch.Tensor) -> Callable[[], None]:
    """Forward and backward through a head of ours."""

    def step() -> None:
        head.zero_grad()
        head(angles.clone().requires_grad_()).sum().backward()

    return step


def pennylane_loop(spec: HeadSpec, weights: torch.Tensor, angles: torch.Tensor) -> Callable[[], None]:
    """PennyLane's parameter-shift, image by image: on a broadcast batch with trainable angles it is not implemented."""

    @qml.qnode(make_device("default.qubit", spec.num_qubits), interface="torch", diff_method="parameter-shift")
    def node(row: torch.Tensor, values: torch.Tensor) -> list[object]:
        queue_head(spec, values, row)
        return [qml.expval(qml.Z(wire)) for wire in range(spec.num_qubits)]

    def step() -> None:
        values = weights.clone().requires_grad_()
        rows = angles.clone().requires_grad_()
        torch.stack([torch.stack(node(row, values)) for row in rows]).sum().backward()

    return step


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """Median over repeats, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


@click.command()
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repeats", default=50, show_default=True)
def main(batch_size: int, repeats: int) -> None:
    """Time the head."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for num_layers in (1, 6):
        spec = HeadSpec(num_layers=num_layers)
        weights = torch.from_numpy(rng.normal(size=spec.weights_shape))
        angles = torch.from_numpy(rng.normal(size=(batch_size, spec.num_angles)))
        backprop = milliseconds(pass_of(make_head(spec, weights), angles), repeats)
        shift = milliseconds(pass_of(make_head(spec, weights, diff_method="parameter-shift"), angles), repeats)
        loop = milliseconds(pennylane_loop(spec, weights, angles), 1)
        click.echo(f"L={num_layers} batch={batch_size}: our backprop {backprop:.2f} ms")
        click.echo(f"L={num_layers} batch={batch_size}: our parameter-shift {shift:.2f} ms = {shift / backprop:.2f} × backprop")
        click.echo(f"L={num_layers} batch={batch_size}: PennyLane's parameter-shift, looped {loop:.0f} ms = {loop / shift:.0f} × ours")


if __name__ == "__main__":
    main()
