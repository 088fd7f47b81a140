"""A step of the head: what each gradient method evaluates and takes on the exact simulator, and what its short cuts cost elsewhere.

``python benchmarks/gradients.py`` prints milliseconds per forward and backward pass of the head and the ratios, for L = 1 and 6:
parameter-shift beside our own backprop, and beside PennyLane looping over the batch; ten runs as one head beside one run; the
parameter sets of a step by method, lean-shift and the ansatz commuting beside parameter-shift; and how far the gradients of the
methods with a shared shifted point are from parameter-shift's on a snapshot, raw and with readout mitigation.
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


def compare_evaluations(batch_size: int, repeats: int) -> None:
    """Parameter sets and milliseconds of a step, and the largest difference between the methods' gradients."""
    commuting = [HeadSpec(n, num_layers=layers, ansatz="commuting") for n, layers in ((4, 1), (4, 2), (8, 8))]
    for spec in (HeadSpec(), HeadSpec(num_layers=2), *commuting):
        weights, angles = numbers(spec, batch_size)
        own = "commuting" if spec.ansatz == "commuting" else "lean-shift"
        heads = {method: make_head(spec, weights, diff_method=method) for method in ("parameter-shift", own)}
        gradients, rows = {}, {}
        for method, head in heads.items():
            gradients[method] = gradient_of(head, angles)
            rows[method] = head.num_rows
        times = {method: milliseconds(pass_of(head, angles), repeats) for method, head in heads.items()}
        error = (gradients[own] - gradients["parameter-shift"]).abs().max().item()
        name = f"{spec.ansatz} n={spec.num_qubits} L={spec.num_layers} batch={batch_size}"
        click.echo(
            f"{name}: parameter sets {rows['parameter-shift']:,} by parameter-shift, {rows[own]:,} by {own} "
            f"({rows['parameter-shift'] / rows[own]:.1f} × fewer); {times['parameter-shift']:.2f} and {times[own]:.2f} ms; "
            f"gradients differ by {error:.0e}"
        )


def compare_noise(batch_size: int) -> None:
    """Relative distance to parameter-shift's exact noisy gradient, where a shared point does not cancel constant errors."""
    for spec in (HeadSpec(), HeadSpec(ansatz="commuting")):
        weights, angles = numbers(spec, batch_size)
        own = "commuting" if spec.ansatz == "commuting" else "lean-shift"
        for options in ({}, {"mitigation": "readout"}):
            found, wanted = (
                gradient_of(make_head(spec, weights, backend="fake_kolkata", diff_method=method, backend_options=options), angles)
                for method in (own, "parameter-shift")
            )
            distance = ((found - wanted).norm() / wanted.norm()).item()
            click.echo(f"fake_kolkata {options.get('mitigation', 'raw')}: {own} is {100 * distance:.1f} % from parameter-shift")


def numbers(spec: HeadSpec, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights (L, n) and angles (batch, E)."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=spec.weights_shape)), torch.from_numpy(rng.normal(size=(batch_size, spec.num_angles)))


def gradient_of(head: Head, angles: torch.Tensor) -> torch.Tensor:
    """Of the sum of all ⟨Z_i⟩, by the angles and then the weights."""
    rows = angles.clone().requires_grad_()
    return torch.cat([part.flatten() for part in torch.autograd.grad(head(rows).sum(), (rows, head.weights))])


@click.command()
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repeats", default=50, show_default=True)
def main(batch_size: int, repeats: int) -> None:
    """Time the head."""
    torch.set_num_threads(1)
    for num_layers in (1, 6):
        spec = HeadSpec(num_layers=num_layers)
        weights, angles = numbers(spec, batch_size)
        backprop = milliseconds(pass_of(make_head(spec, weights), angles), repeats)
        shift = milliseconds(pass_of(make_head(spec, weights, diff_method="parameter-shift"), angles), repeats)
        loop = milliseconds(pennylane_loop(spec, weights, angles), 1)
        ten = milliseconds(pass_of(make_head(spec, weights.expand(10, -1, -1)), angles.expand(10, -1, -1)), repeats)
        click.echo(f"L={num_layers} batch={batch_size}: our backprop {backprop:.2f} ms; ten runs as one head {ten:.2f} ms")
        click.echo(f"L={num_layers} batch={batch_size}: our parameter-shift {shift:.2f} ms = {shift / backprop:.2f} × backprop")
        click.echo(f"L={num_layers} batch={batch_size}: PennyLane's parameter-shift, looped {loop:.0f} ms = {loop / shift:.0f} × ours")
    compare_evaluations(batch_size, repeats)
    compare_noise(batch_size)


if __name__ == "__main__":
    main()
