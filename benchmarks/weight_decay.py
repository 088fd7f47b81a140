"""Which weight decay by default: mean test accuracy over grouped splits, beside logistic regression on the same features.

``python benchmarks/weight_decay.py DATA [DATA …]`` with folders as ``hqtl-train fit`` takes them; features are cached.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click

from training.config import FitConfig
from training.features import default_cache_folder
from training.fit import fit, open_run


def accuracies(config: FitConfig) -> tuple[float, float]:
    """Test accuracy of the hybrid model and of logistic regression."""
    with tempfile.TemporaryDirectory() as folder:
        run, config = open_run(Path(folder) / "run", config, resume=False)
        result = fit(config, run, default_cache_folder())
    return result["test"]["accuracy"], result["logistic_regression"]["accuracy"]


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seeds", default=4, show_default=True)
@click.option("--epochs", default=60, show_default=True)
@click.option("--weight-decay", "decays", multiple=True, type=float, default=(0.0, 1e-3, 2e-3, 3e-3, 1e-2), show_default=True)
def main(data: tuple[Path, ...], seeds: int, epochs: int, decays: tuple[float, ...]) -> None:
    """Train with each weight decay on each folder and seed."""
    for folder in data:
        for decay in decays:
            pairs = [
                accuracies(FitConfig(data=folder, group_by="source", seed=seed, epochs=epochs, weight_decay=decay)) for seed in range(seeds)
            ]
            ours, reference = (statistics.mean(column) for column in zip(*pairs, strict=True))
            click.echo(
                f"{folder.name}: weight decay {decay:g}: test accuracy {ours:.4f} (logistic regression {reference:.4f}), {seeds} seeds"
            )


if __name__ == "__main__":
    main()
