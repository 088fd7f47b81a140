"""A small training through the stand-in of IBM's platform: what is submitted, and what is made anew.

``python benchmarks/hardware.py`` prints optimiser steps, calls of the head, jobs submitted and executed, executions, and how
often the circuit was transpiled. A call is one job and the circuit is transpiled once, else the command fails.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from qiskit.transpiler import StagedPassManager
from torch.nn.functional import cross_entropy

from hqtl_common.backends.opening import Limits
from hqtl_common.ledger import Ledger
from hqtl_common.specs import HeadSpec
from training.emulator import EmulatorOptions, emulated_environment, start
from training.head import make_head
from training.model import HybridModel, build_model

FEATURES = 16


def counted(calls: list[float]) -> Callable[..., Any]:
    """The ``run`` of the transpiler's pass manager, with the seconds of each call."""
    original = StagedPassManager.run

    def run(self: StagedPassManager, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = original(self, *args, **options)
        calls.append(time.perf_counter() - started)
        return result

    return run


def train(model: HybridModel, images: int, batch_size: int, epochs: int) -> tuple[int, int]:
    """Optimiser steps, and calls of the head: one a step, and one validation an epoch."""
    features = torch.randn(images, FEATURES, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(images) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    steps = calls = 0
    for _ in range(epochs):
        for batch in torch.arange(images).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(model(features[batch]), truth[batch]).backward()
            optimizer.step()
            steps, calls = steps + 1, calls + 1
        with torch.no_grad():
            model(features)
        calls += 1
    return steps, calls


@click.command()
@click.option("--machine", default="ibm_kolkata", show_default=True, help="The machine to stand in for.")
@click.option("--images", default=12, show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--shots", default=256, show_default=True)
def main(machine: str, images: int, batch_size: int, epochs: int, shots: int) -> None:
    """Count jobs and transpilations of a training on emulated hardware."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the client's own
    torch.set_num_threads(1)
    transpilations: list[float] = []
    spec = HeadSpec()
    model = build_model(FEATURES, 2, spec)
    with start(EmulatorOptions(backends=(machine,))) as emulator, tempfile.TemporaryDirectory() as folder:
        os.environ |= emulated_environment(emulator, plan="pay-as-you-go")
        ledger = Path(folder) / "ledger.sqlite"
        options = {"ledger": ledger, "poll_s": 0.02, "max_poll_s": 0.1}
        head = make_head(
            spec, model.head.weights, backend=f"ibm:{machine}", shots=shots, backend_options=options, limits=Limits(yes=True), scope="b"
        )
        StagedPassManager.run, original = counted(transpilations), StagedPassManager.run  # type: ignore[method-assign]
        started = time.perf_counter()
        try:
            steps, calls = train(model.with_head(head), images, batch_size, epochs)
        finally:
            StagedPassManager.run = original  # type: ignore[method-assign]
        seconds = time.perf_counter() - started
        stats, entries = emulator.stats(), Ledger(ledger).find()
        head.close()
    submitted = (stats["submits_received"], stats["jobs_executed"], len(entries))
    click.echo(f"optimiser steps {steps}, calls of the head {calls} (a validation each epoch)")
    click.echo(f"jobs submitted {submitted[0]}, executed {submitted[1]}, recorded {submitted[2]}")
    click.echo(f"executions {sum(entry.num_rows * entry.shots for entry in entries):,}, billed {stats['qpu_seconds']:.1f} s")
    click.echo(f"transpilations {len(transpilations)} ({1e3 * sum(transpilations):.0f} ms of {seconds:.1f} s)")
    if submitted != (calls, calls, calls) or len(transpilations) != 1:
        raise click.ClickException("a call must be one job, and the circuit transpiled once")


if __name__ == "__main__":
    main()
