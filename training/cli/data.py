"""``hqtl-train data …`` and ``quickstart``."""

from __future__ import annotations

from pathlib import Path

import click

from training.cli.common import PATH, reported

__all__ = ["data", "quickstart"]


@click.group()
def data() -> None:
    """Make data sets."""


@data.command()
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder to make, with crack/ and no_crack/.")
@click.option("--num-images", type=click.IntRange(min=2), default=600, show_default=True, help="Patches in all, half of them cracked.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same images.")
@click.option("--masks", type=PATH, metavar="DIR", help="Also write the crack pixels as PNG masks there.")
@reported
def synth(out: Path, num_images: int, seed: int, masks: Path | None) -> None:
    """Generate patches of concrete with pores, stains and thin cracks."""
    from training.console import progress_bar
    from training.synth import write_dataset

    with progress_bar("patches", num_images, "images") as advance:
        write_dataset(out, num_images, seed, masks=masks, progress=advance)
    click.echo(f"{out}: {num_images} patches")


@click.command()
@click.option(
    "--out", type=PATH, default=Path("quickstart-out"), show_default=True, metavar="DIR", help="Folder made anew for all results."
)
@reported
def quickstart(out: Path) -> int:
    """Make photographs, train, export, verify, score a folder, serve, ask over HTTP: the main job end to end."""
    from training.quickstart import run_quickstart

    return 0 if run_quickstart(out) else 1
