"""``hqtl-train export``, ``verify`` and ``inspect``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from training.cli.common import FOLDER, JSON_OPTION, PATH, reported

__all__ = ["export", "inspect", "verify"]


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("bundle", type=PATH)
@click.option("--fuse", is_flag=True, help="Add model.onnx: image tensor to logits through the exact head, in one file.")
@JSON_OPTION
@reported
def export(run: Path, bundle: Path, fuse: bool, as_json: bool) -> None:
    """Write the best model of RUN as the folder BUNDLE, and check it against torch."""
    from training.export import export_run

    files = export_run(run, bundle, fused=fuse).manifest.files
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "files": {name: entry.model_dump() for name, entry in files.items()}}))
    else:
        click.echo(f"{bundle}: {len(files) + 1} files, {sum(entry.size for entry in files.values()) / 1e6:.1f} MB")


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--images", type=FOLDER, help="Photographs to compare on.  [default: synthetic ones]")
@JSON_OPTION
@reported
def verify(bundle: Path, images: Path | None, as_json: bool) -> int:
    """Check BUNDLE: hashes, exact set of files, and each computation against an independent one."""
    from training.verify import verify_bundle

    checks = verify_bundle(bundle, images)
    passed = all(check.passed for check in checks)
    if as_json:
        rows = [
            {
                "name": check.name,
                "difference": check.difference if math.isfinite(check.difference) else None,  # JSON has no infinity
                "tolerance": check.tolerance,
                "passed": check.passed,
            }
            for check in checks
        ]
        click.echo(json.dumps({"bundle": str(bundle), "passed": passed, "checks": rows}))
    else:
        click.echo("passed  files: names, SHA-256, schema, no external data")
        for check in checks:
            click.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.difference:.1e} (at most {check.tolerance:.0e})")
    return 0 if passed else 1


@click.command()
@click.argument("model", type=FOLDER, metavar="RUN_OR_BUNDLE")
@JSON_OPTION
@reported
def inspect(model: Path, as_json: bool) -> None:
    """Print what a run or a bundle says about itself, and draw its circuit."""
    from training.inspection import describe

    description = describe(model)
    if as_json:
        click.echo(json.dumps(description.values))
    else:
        click.echo(json.dumps(description.values, indent=2, ensure_ascii=False))
        click.echo(description.drawing)
