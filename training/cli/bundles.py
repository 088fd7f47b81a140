"""``hqtl-train export``, ``calibrate``, ``verify`` and ``inspect``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from training.cli.common import BACKEND_OPTIONS, FOLDER, JSON_OPTION, LIMIT_OPTIONS, MACHINE_OPTIONS, PARTLY, PATH, options, reported

__all__ = ["calibrate", "export", "inspect", "verify"]

_RULE_OPTIONS = (
    click.option("--recall", type=float, metavar="SHARE", help="Choose the threshold that finds this share of the positive images."),
    click.option("--cost-miss", type=float, metavar="COST", help="Choose the threshold by costs: of a positive image missed …"),
    click.option("--cost-false-alarm", type=float, metavar="COST", help="… and of a false alarm."),
)


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("bundle", type=PATH)
@click.option("--fuse", is_flag=True, help="Add model.onnx: image tensor to logits through the exact head, in one file.")
@options(_RULE_OPTIONS)
@click.option(
    "--familiarity-level",
    "level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="Share of images like those of the training that may be called unfamiliar.",
)
@options(MACHINE_OPTIONS)
@JSON_OPTION
@reported
def export(
    run: Path,
    bundle: Path,
    fuse: bool,
    recall: float | None,
    cost_miss: float | None,
    cost_false_alarm: float | None,
    level: float,
    device: str | None,
    cache_dir: Path | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Write the best model of RUN as the folder BUNDLE, and check it against torch.

    Temperature, threshold and what images look familiar come from the images of RUN, whose features are taken from the cache.
    """
    from training.calibration import ThresholdRule
    from training.export import export_run

    rule = ThresholdRule(recall, cost_miss, cost_false_alarm)
    made = export_run(run, bundle, fused=fuse, rule=rule, level=level, cache_folder=cache_dir, device=device or "auto")
    files = made.manifest.files
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "files": {name: entry.model_dump() for name, entry in files.items()}}))
        return
    from training.calibration_tables import print_calibrations

    print_calibrations(made.manifest.calibration)
    click.echo(f"{bundle}: {len(files) + 1} files, {sum(entry.size for entry in files.values()) / 1e6:.1f} MB")


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("data", type=FOLDER)
@click.option("--out", type=PATH, required=True, metavar="NEW", help="The new bundle's folder; BUNDLE stays as it is.")
@options(BACKEND_OPTIONS, LIMIT_OPTIONS)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@options(_RULE_OPTIONS)
@click.option(
    "--subset",
    type=click.Choice(["all", "val", "test"]),
    default="val",
    show_default=True,
    help="Images to fit on. val: the validation split of the folder that the model was trained on.",
)
@JSON_OPTION
@reported
def calibrate(
    bundle: Path,
    data: Path,
    out: Path,
    backend: str | None,
    shots: int | None,
    backend_options: tuple[str, ...],
    max_jobs: int | None,
    max_qpu_seconds: float | None,
    yes: bool,
    seed: int,
    recall: float | None,
    cost_miss: float | None,
    cost_false_alarm: float | None,
    subset: str,
    as_json: bool,
) -> int:
    """Fit temperature and threshold of BUNDLE to a backend's own answers to DATA, and write it as NEW.

    DATA is a folder with one folder of images per class. What NEW says of other backends stays as it is.
    """
    from hqtl_common.backends.opening import Limits, parse_options
    from training.calibration import ThresholdRule
    from training.recalibrate import recalibrate

    entry, errors = recalibrate(
        bundle,
        data,
        out,
        ThresholdRule(recall, cost_miss, cost_false_alarm),
        backend=backend or "statevector",
        shots=shots,
        seed=seed,
        backend_options=parse_options(backend_options),
        limits=Limits(max_jobs, max_qpu_seconds, yes),
        subset=subset,
    )
    if as_json:
        click.echo(json.dumps({"bundle": str(out), "calibration": entry.model_dump(mode="json"), "errors": errors}))
    else:
        from training.calibration_tables import print_calibrations

        print_calibrations([entry])
    return PARTLY if errors else 0


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
