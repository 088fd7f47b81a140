"""``hqtl-train fit`` and ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hqtl_common.errors import ConfigError
from training.cli.common import (
    BACKEND_OPTIONS,
    FIT_OPTIONS,
    FOLDER,
    JSON_OPTION,
    LIMIT_OPTIONS,
    MACHINE_OPTIONS,
    PARTLY,
    PATH,
    options,
    reported,
)

__all__ = ["evaluate", "fit"]

_OUTSIDE = ("device", "tensorboard")
_NEEDS = {"augment_variants": "augment", "backbone_lr": "unfreeze", "backbone_epochs": "unfreeze"}


@click.command()
@click.argument("data", type=FOLDER, required=False)
@click.option("--out", type=PATH, metavar="RUN", help="Run folder to make (needed unless --resume RUN names one).")
@options(FIT_OPTIONS, LIMIT_OPTIONS, MACHINE_OPTIONS)
@click.option("--seeds", metavar="0-9", help="One run for each seed (0-9 or 0,3,7), trained together; RUN holds a folder for each.")
@click.option("--tensorboard", is_flag=True, flag_value=True, default=None, help="Write event files for TensorBoard too.")
@click.option("--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Go on with a stopped run: --resume RUN, or with --out RUN.")
@JSON_OPTION
@reported
def fit(
    out: Path | None,
    seeds: str | None,
    max_jobs: int | None,
    max_qpu_seconds: float | None,
    yes: bool,
    cache_dir: Path | None,
    verbose: bool,
    resume: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Train on DATA, a folder with one folder of images per class.

    The run folder holds options, metrics per epoch, curves, confusion matrix and checkpoint. Two classical twins are trained
    beside the model on the same features and compared with it. A killed run goes on with --resume and ends as if it had not been
    killed. On a paid backend every job is recorded first and never paid twice.

    With --seeds, or --folds without --fold, RUN holds one run folder for each seed and fold, and a summary of all.
    """
    path, values = _run_and_values(out, resume, given, seeds)
    from hqtl_common.backends.opening import Limits
    from training.config import FitConfig
    from training.features import default_cache_folder

    folds = values.pop("folds", None) if values is not None and "fold" not in values else None
    config = None if values is None else FitConfig.parse(values)
    outside = {name: given[name] for name in _OUTSIDE if given[name] is not None}  # may differ from what the run was begun with
    work: dict[str, Any] = {
        "cache_folder": cache_dir or default_cache_folder(),
        "limits": Limits(max_jobs, max_qpu_seconds, yes),
        "verbose": verbose,
    }
    from training.series import fit_series, is_series, open_series, parse_seeds

    if seeds is not None or folds is not None or is_series(path):
        series = open_series(path, config, parse_seeds(seeds) if seeds else None, folds, resume=resume is not None)
        summary = fit_series(series.changed(outside), **work)
        _show("print_series", path, summary, as_json)
    else:
        from training.fit import fit as train
        from training.fit import open_run

        run, config = open_run(path, config, resume=resume is not None)
        _show("print_fit", path, train(config.model_copy(update=outside), run, **work), as_json)


@click.command()
@click.argument("model", type=FOLDER, metavar="RUN_OR_BUNDLE")
@click.argument("data", type=FOLDER)
@options(BACKEND_OPTIONS, LIMIT_OPTIONS)
@click.option("--max-shots", type=click.IntRange(min=1), help="Repeat images in doubt up to so often; others stop at --shots.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--subset",
    type=click.Choice(["auto", "all", "train", "val", "test"]),
    default="auto",
    show_default=True,
    help="auto: the test split of the folder that the model was trained on, all images of any other folder.",
)
@click.option("--out", type=PATH, metavar="FOLDER", help="Write evaluation.json and the reliability diagram into this new folder.")
@options(MACHINE_OPTIONS)
@JSON_OPTION
@reported
def evaluate(
    model: Path,
    data: Path,
    backend: str | None,
    shots: int | None,
    backend_options: tuple[str, ...],
    max_jobs: int | None,
    max_qpu_seconds: float | None,
    yes: bool,
    max_shots: int | None,
    seed: int,
    subset: str,
    out: Path | None,
    device: str | None,
    cache_dir: Path | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Measure a run or a bundle on DATA, a folder with one folder of images per class."""
    from hqtl_common.backends.opening import Limits, parse_options
    from training.evaluate import evaluate as measure
    from training.features import default_cache_folder

    result = measure(
        model,
        data,
        backend=backend or "statevector",
        shots=shots,
        max_shots=max_shots,
        seed=seed,
        backend_options=parse_options(backend_options),
        limits=Limits(max_jobs, max_qpu_seconds, yes),
        subset=subset,
        cache_folder=cache_dir or default_cache_folder(),
        device=device or "auto",
        verbose=verbose,
        out=out,
    )
    if as_json:
        click.echo(json.dumps(result))
    else:
        from training.calibration_tables import print_reliability
        from training.tables import print_confusion, print_figures

        print_figures({f"{result['subset']} ({result['num_images']} images)": result})
        print_confusion(result)
        print_reliability(result)
    return PARTLY if result["errors"] else 0


def _show(printer: str, path: Path, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"run": str(path), **result}))
    else:
        from training import tables

        getattr(tables, printer)(path, result)


def _run_and_values(out: Path | None, resume: str | None, values: dict[str, Any], seeds: str | None) -> tuple[Path, dict[str, Any] | None]:
    """The run folder, and the options that were given (None where a run is resumed without any)."""
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    if pairs := given.pop("backend_options", None):
        from hqtl_common.backends.opening import parse_options

        given["backend_options"] = parse_options(pairs)
    path = Path(resume) if resume else out
    if path is None:
        raise click.UsageError("give the run folder: --out RUN, or --resume RUN")
    if resume and out is not None and out != path:
        raise click.UsageError(f"--resume took {resume!r} as the run folder, but --out names {str(out)!r}; put --resume last or name one")
    if seeds is not None and "seed" in given:
        raise click.UsageError("give --seed or --seeds, not both")
    for name, needed in _NEEDS.items():
        if name in given and needed not in given and "data" in given:
            raise click.UsageError(f"--{name.replace('_', '-')} would have no effect without --{needed}")
    if "data" not in given:
        if resume is None:
            raise click.UsageError("give DATA, the folder of images")
        if fixed := sorted({*given, *(["seeds"] if seeds is not None else [])} - set(_OUTSIDE)):
            raise ConfigError(f"--resume without DATA takes every option from the run; leave out {', '.join(fixed)}")
        return path, None
    return path, given
