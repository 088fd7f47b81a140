"""``hqtl-train export``, ``calibrate``, ``verify`` and ``inspect``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.cli.common import BACKEND_OPTIONS, FOLDER, JSON_OPTION, LIMIT_OPTIONS, MACHINE_OPTIONS, PARTLY, PATH, options, reported

if TYPE_CHECKING:
    from training.precision_check import PrecisionReport

__all__ = ["calibrate", "export", "inspect", "verify"]

_GAIN = 1.05  # times as fast; less is noise

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
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="What the backbone computes with. int8 gains on processors that multiply bytes (VNNI), fp16 on graphics cards.",
)
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Loss of accuracy on the validation split that is accepted for less precision (one image always is).",
)
@options(MACHINE_OPTIONS)
@JSON_OPTION
@reported
def export(
    run: Path,
    bundle: Path,
    fuse: bool,
    precision: str,
    max_accuracy_drop: float,
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
    With --precision the backbone in fp32 stays in BUNDLE beside the one that runs; what changes is measured and printed.
    """
    from training.calibration import ThresholdRule
    from training.export import export_run

    rule = ThresholdRule(recall, cost_miss, cost_false_alarm)
    made = export_run(
        run,
        bundle,
        fused=fuse,
        rule=rule,
        level=level,
        precision=precision,
        max_accuracy_drop=max_accuracy_drop,
        cache_folder=cache_dir,
        device=device or "auto",
    )
    from training.precision_check import check_precision

    files, report = made.manifest.files, check_precision(bundle)
    if as_json:
        sizes = {name: entry.model_dump() for name, entry in files.items()}
        click.echo(json.dumps({"bundle": str(bundle), "files": sizes, "precision": report and report.to_dict()}))
        return
    from training.calibration_tables import print_calibrations

    print_calibrations(made.manifest.calibration)
    _print_precision(report)
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
@click.option(
    "--data",
    type=FOLDER,
    help="Labelled photographs, one folder per class: measure there what less precision changes. Without it: what the export measured.",
)
@JSON_OPTION
@reported
def verify(bundle: Path, images: Path | None, data: Path | None, as_json: bool) -> int:
    """Check BUNDLE: hashes, exact set of files, and each computation against an independent one.

    A backbone of less precision is compared with the one in fp32: accuracy, labels, probabilities, and the speed of both on this machine.
    """
    from training.precision_check import check_precision
    from training.verify import verify_bundle

    checks, report = verify_bundle(bundle, images), check_precision(bundle, data)
    passed = all(check.passed for check in checks) and (report is None or report.refused is None)
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
        click.echo(json.dumps({"bundle": str(bundle), "passed": passed, "checks": rows, "precision": report and report.to_dict()}))
    else:
        click.echo("passed  files: names, SHA-256, schema, no external data; stages: names, shapes, any number of rows")
        for check in checks:
            click.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.difference:.1e} (at most {check.tolerance:.0e})")
        _print_precision(report)
    return 0 if passed else 1


def _print_precision(report: PrecisionReport | None) -> None:
    if report is None:
        return
    for where, change in report.changes.items():
        click.echo(
            f"{report.name} against fp32 on {change.num_images} images of {where}: accuracy {change.accuracy:.3f} (fp32 "
            f"{change.accuracy_fp32:.3f}), {change.changed_labels} other labels, probabilities differ by at most {change.max_change:.3f}"
        )
    speed = report.speed
    click.echo(
        f"{report.name} backbone on the processor of this machine: {speed.reduced:.1f} images/s, fp32 {speed.fp32:.1f}: "
        f"{speed.ratio:.2f} times as fast{'' if speed.ratio > _GAIN else '; it gains nothing here'}"
    )
    if report.refused is not None:
        click.echo(f"FAILED  {report.refused}")


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
