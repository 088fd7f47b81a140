"""Which weight decay by default: mean test accuracy over grouped splits, beside the twins and logistic regression on the same features.

``python benchmarks/weight_decay.py DATA [DATA …]`` with folders as ``hqtl-train fit`` takes them; features are cached.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from training.config import FitConfig
from training.features import default_cache_folder
from training.series import fit_series, open_series


def summary_of(config: FitConfig, seeds: int) -> dict[str, Any]:
    """What is said about all seeds; each has its own split."""
    with tempfile.TemporaryDirectory() as folder:
        return fit_series(open_series(Path(folder) / "series", config, range(seeds), None, resume=False), default_cache_folder())


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seeds", default=4, show_default=True)
@click.option("--epochs", default=60, show_default=True)
@click.option("--weight-decay", "decays", multiple=True, type=float, default=(0.0, 1e-3, 2e-3, 3e-3, 1e-2), show_default=True)
def main(data: tuple[Path, ...], seeds: int, epochs: int, decays: tuple[float, ...]) -> None:
    """Train with each weight decay on each folder and seed."""
    for folder in data:
        for decay in decays:
            summary = summary_of(FitConfig(data=folder, group_by="source", epochs=epochs, weight_decay=decay), seeds)
            accuracies = {
                **{f"{name} twin": figures["test"]["accuracy"]["mean"] for name, figures in summary["twins"].items()},
                "logistic regression": summary["logistic_regression"]["accuracy"]["mean"],
            }
            others = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
            ours = summary["test"]["accuracy"]["mean"]
            click.echo(f"{folder.name}: weight decay {decay:g}: test accuracy {ours:.4f} ({others}), {seeds} seeds")


if __name__ == "__main__":
    main()
