"""``hqtl-train backbones`` and ``explain``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from training.cli.common import FOLDER, JSON_OPTION, PARTLY, PATH, reported

__all__ = ["backbones", "explain"]


@click.command()
@click.argument("name", required=False)
@JSON_OPTION
@reported
def backbones(name: str | None, as_json: bool) -> None:
    """List the networks that can be a backbone, or those whose name holds NAME; no network is built."""
    from training.architectures import describe_backbones
    from training.tables import print_backbones

    found = [each for each in describe_backbones() if name is None or name in each["name"]]
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_backbones(found)


@click.command()
@click.argument("model", type=FOLDER, metavar="RUN_OR_BUNDLE")
@click.argument("images", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder to make for the pictures.")
@click.option("--class", "target", metavar="LABEL", help="The class that the heat speaks for.  [default: each image's label]")
@JSON_OPTION
@reported
def explain(model: Path, images: tuple[Path, ...], out: Path, target: str | None, as_json: bool) -> int:
    """Draw where the backbone looks in IMAGES (files or folders): Grad-CAM through the head's own gradient, one PNG each."""
    from training.console import progress_bar, warn
    from training.explain import as_record
    from training.explain import explain as look

    with progress_bar("images", len(images), "images") as advance:
        done, errors = look(model, images, out, target=target, progress=advance)
    for path, message in errors.items():
        warn(f"left out {path}: {message}")
    if as_json:
        click.echo(json.dumps([as_record(each) for each in done]))
    else:
        for each in done:
            click.echo(f"{each.picture}  {each.label}  P({each.target}) = {each.probability:.3f}")
    return PARTLY if errors else 0
