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


@click.command()
@click.argument("data", type=FOLDER, required=False)
@click.option("--out", type=PATH, metavar="RUN", help="Run folder to make (needed unless --resume RUN names one).")
@options(FIT_OPTIONS, LIMIT_OPTIONS, MACHINE_OPTIONS)
@click.option("--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Go on with a stopped run: --resume RUN, or with --out RUN.")
@JSON_OPTION
@reported
def fit(
    out: Path | None,
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

    The run folder holds options, metrics per epoch, curves, confusion matrix and checkpoint. A killed run goes on with
    --resume and ends as if it had not been killed. On a paid backend every job is recorded first and never paid twice.
    """
    path, config = _run_and_config(out, resume, given)
    from hqtl_common.backends.opening import Limits
    from training.features import default_cache_folder
    from training.fit import fit as train
    from training.fit import open_run

    run, config = open_run(path, config, resume=resume is not None)
    if given["device"] is not None:  # may differ from the one that the run was begun on
        config = config.model_copy(update={"device": given["device"]})
    limits = Limits(max_jobs, max_qpu_seconds, yes)
    result = train(config, run, cache_dir or default_cache_folder(), limits=limits, verbose=verbose)
    if as_json:
        click.echo(json.dumps({"run": str(path), **result}))
    else:
        from training.tables import print_fit

        print_fit(path, result)


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
    )
    if as_json:
        click.echo(json.dumps(result))
    else:
        from training.tables import print_confusion, print_figures

        print_figures({f"{result['subset']} ({result['num_images']} images)": result})
        print_confusion(result)
    return PARTLY if result["errors"] else 0


def _run_and_config(out: Path | None, resume: str | None, values: dict[str, Any]) -> tuple[Path, Any]:
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
    from training.config import FitConfig

    if "data" not in given:
        if resume is None:
            raise click.UsageError("give DATA, the folder of images")
        if fixed := sorted(set(given) - {"device"}):
            raise ConfigError(f"--resume without DATA takes every option from the run; leave out {', '.join(fixed)}")
        return path, None
    return path, FitConfig.parse(given)
