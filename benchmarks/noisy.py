"""The head on a snapshot's noise: ours beside PennyLane's ``qiskit.remote``, and exact noisy values beside sampling them.

``python benchmarks/noisy.py`` prints the time per parameter set of the paper's head (4 qubits) with 1024 shots on fake_kolkata:
ours (a whole table in one call), the same drawn by Aer's SamplerV2 (one PUB), and PennyLane circuit by circuit. Then the
exact noisy ⟨Z⟩ beside Aer's shots until their standard error is 1e-3. Targets: 50 times, and 100 times.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import click
import numpy as np

from hqtl_common import HeadSpec, get_backend

MACHINE, DEVICE = "fake_kolkata", "FakeKolkataV2"
STANDARD_ERROR = 1e-3


def table(spec: HeadSpec, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of their own for every row, as the shifts of a training step have."""
    rng = np.random.default_rng(0)
    return rng.uniform(-np.pi, np.pi, (rows, *spec.weights_shape)), rng.uniform(-np.pi / 2, np.pi / 2, (rows, spec.num_angles))


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median over repeats, after one that is not counted where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[repeats > 1 :])


def ours(spec: HeadSpec, rows: int, shots: int | None, method: str, repeats: int) -> float:
    """Seconds per parameter set."""
    backend = get_backend(MACHINE, shots=shots, seed=None if shots is None else 0, method=method)
    weights, angles = table(spec, rows)
    backend.run(spec, weights[:1], angles[:1])  # transpiles
    return seconds(lambda: backend.run(spec, weights, angles), repeats) / rows


def pennylane(spec: HeadSpec, circuits: int, shots: int) -> float:
    """Seconds per circuit of the ordinary route: every circuit is transpiled and submitted."""
    import pennylane as qml
    from qiskit_ibm_runtime import fake_provider

    from hqtl_common.backends.pennylane import queue_head

    device = qml.device("qiskit.remote", wires=spec.num_qubits, backend=getattr(fake_provider, DEVICE)())

    @qml.set_shots(shots)
    @qml.qnode(device, diff_method=None)
    def head(angles: np.ndarray, weights: np.ndarray) -> list[object]:
        queue_head(spec, weights, angles)
        return [qml.expval(qml.Z(wire)) for wire in range(spec.num_qubits)]

    weights, angles = table(spec, circuits + 1)
    head(angles[0], weights[0])  # not counted
    started = time.perf_counter()
    for row in range(1, circuits + 1):
        head(angles[row], weights[row])
    return (time.perf_counter() - started) / circuits


def needed_shots(spec: HeadSpec, rows: int) -> int:
    """Shots after which the standard error of the worst ⟨Z⟩ is small enough."""
    expvals = get_backend(MACHINE).run(spec, *table(spec, rows)).expvals
    return int(np.ceil((1 - np.square(expvals).min()) / STANDARD_ERROR**2))


def show(label: str, value: float, reference: float | None = None) -> None:
    ratio = "" if reference is None else f"  {value / reference:10.1f} × ours"
    click.echo(f"  {label:44s} {1e3 * value:12.4f} ms/set{ratio}")


@click.command()
@click.option("--num-layers", default=1, show_default=True)
@click.option("--rows", default=833, show_default=True, help="Parameter sets of a table: 49 images, 17 points each.")
@click.option("--shots", default=1024, show_default=True)
@click.option("--circuits", default=3, show_default=True, help="Circuits of PennyLane's, a few seconds each.")
@click.option("--aer-rows", default=50, show_default=True, help="Parameter sets of Aer's SamplerV2.")
@click.option("--repeats", default=5, show_default=True)
def main(num_layers: int, rows: int, shots: int, circuits: int, aer_rows: int, repeats: int) -> None:
    """Time the noisy head."""
    warnings.simplefilter("ignore")  # local mode warns of every option it ignores
    spec = HeadSpec(num_layers=num_layers)
    click.echo(f"{MACHINE}, {spec.num_qubits} qubits, L={num_layers}, {shots} shots")
    fast = ours(spec, rows, shots, "density-matrix", repeats)
    show(f"ours, {rows} sets", fast)
    show(f"Aer's SamplerV2, one PUB, {aer_rows} sets", ours(spec, aer_rows, shots, "aer", 1), fast)
    show(f"PennyLane qiskit.remote, {circuits} circuits", pennylane(spec, circuits, shots), fast)
    exact_shots = needed_shots(spec, 2)
    click.echo(f"⟨Z⟩ to {STANDARD_ERROR:g} ({exact_shots:,} shots)")
    exact = ours(spec, rows, None, "density-matrix", repeats)
    show(f"ours, exact, {rows} sets", exact)
    show("Aer's SamplerV2, 2 sets", ours(spec, 2, exact_shots, "aer", 1), exact)
    show(f"our own draw of as many shots, {rows} sets", ours(spec, rows, exact_shots, "density-matrix", repeats), exact)


if __name__ == "__main__":
    main()
