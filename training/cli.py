"""``hqtl-train``: each command builds its objects, calls one function, prints one result.

Nothing heavy is imported before a command runs. Results go to standard output, everything else to standard error.
Exit codes: 0 ok · 1 failed · 2 usage · 3 some images failed, the rest done · 4 budget reached, resumable · 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hqtl_common import __version__
from hqtl_common.errors import BudgetExceededError, ConfigError, HqtlError

__all__ = ["main"]

_OK, _FAILED, _PARTLY, _BUDGET, _INTERRUPTED = 0, 1, 3, 4, 130

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else there.")
_backend_options = (
    click.option("--backend", metavar="NAME", help="Where the head runs: statevector, pennylane:DEVICE, aer.  [default: statevector]"),
    click.option("--shots", type=click.IntRange(min=1), metavar="N", help="Repetitions per parameter set; without it exact values."),
)
_machine_options = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where torch computes features.  [default: auto]"),
    click.option("--cache-dir", type=_PATH, help="Where features are cached.  [default: $HQTL_CACHE or ~/.cache/hqtl]"),
    click.option("--verbose", is_flag=True, help="Say more, for example where the feature cache is and how large."),
)


def _options(*groups: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order given."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def _reported(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn the command's answer and its errors into an exit code; the only place that does."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs) or _OK
        except HqtlError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            code = _BUDGET if isinstance(error, BudgetExceededError) else _FAILED
        except OSError as error:
            click.echo(f"error: {error}", err=True)
            code = _FAILED
        except KeyboardInterrupt:
            click.echo("interrupted; what was recorded is kept (hqtl-train fit --resume RUN goes on)", err=True)
            code = _INTERRUPTED
        sys.exit(code)

    return wrapper


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="hqtl-train")
def main() -> None:
    """Train, measure and export hybrid quantum transfer-learning classifiers."""


@main.command()
@click.argument("data", type=_FOLDER, required=False)
@click.option("--out", type=_PATH, metavar="RUN", help="Run folder to make (needed unless --resume RUN names one).")
@click.option("--backbone", help="Frozen feature extractor: resnet18 or vgg16.  [default: resnet18]")
@click.option("--weights", metavar="imagenet|none|PATH", help="Weights of the backbone.  [default: imagenet]")
@click.option("--num-layers", type=click.IntRange(min=1), help="Variational layers L of the head.  [default: 1]")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training split.  [default: 100]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per optimiser step.  [default: 4]")
@click.option("--lr", type=float, help="Step of Adam.  [default: 4e-4]")
@click.option("--weight-decay", type=float, help="L2 penalty.  [default: 2e-3]")
@click.option("--patience", type=click.IntRange(min=1), help="Stop after this many epochs without a better validation loss.")
@click.option("--split", metavar="TRAIN/VAL/TEST", help="Shares in percent; folders train, val, test count first.  [default: 70/15/15]")
@click.option("--group-by", metavar="none|source|REGEX", help="Keep the patches of one photograph in one split.  [default: none]")
@_options(_backend_options)
@click.option("--diff-method", help="auto, backprop, adjoint, parameter-shift, finite-diff or spsa.  [default: auto]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]")
@click.option("--positive", metavar="LABEL", help="The class that precision and recall speak of.  [default: a name like crack]")
@_options(_machine_options)
@click.option("--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Go on with a stopped run: --resume RUN, or with --out RUN.")
@_json_option
@_reported
def fit(out: Path | None, cache_dir: Path | None, verbose: bool, resume: str | None, as_json: bool, **options: Any) -> None:
    """Train on DATA, a folder with one folder of images per class.

    The run folder holds options, metrics per epoch, curves, confusion matrix and checkpoint. A killed run goes on with
    --resume and ends as if it had not been killed.
    """
    path, config = _run_and_config(out, resume, options)
    from training.features import default_cache_folder
    from training.fit import fit as train
    from training.fit import open_run

    run, config = open_run(path, config, resume=resume is not None)
    if options["device"] is not None:  # may differ from the one that the run was begun on
        config = config.model_copy(update={"device": options["device"]})
    result = train(config, run, cache_dir or default_cache_folder(), verbose=verbose)
    if as_json:
        click.echo(json.dumps({"run": str(path), **result}))
    else:
        from training.tables import print_fit

        print_fit(path, result)


@main.command()
@click.argument("model", type=_FOLDER, metavar="RUN_OR_BUNDLE")
@click.argument("data", type=_FOLDER)
@_options(_backend_options)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--subset",
    type=click.Choice(["auto", "all", "train", "val", "test"]),
    default="auto",
    show_default=True,
    help="auto: the test split of the folder that the model was trained on, all images of any other folder.",
)
@_options(_machine_options)
@_json_option
@_reported
def evaluate(
    model: Path,
    data: Path,
    backend: str | None,
    shots: int | None,
    seed: int,
    subset: str,
    device: str | None,
    cache_dir: Path | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Measure a run or a bundle on DATA, a folder with one folder of images per class."""
    from training.evaluate import evaluate as measure
    from training.features import default_cache_folder

    result = measure(
        model,
        data,
        backend=backend or "statevector",
        shots=shots,
        seed=seed,
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
    return _PARTLY if result["errors"] else _OK


@main.command()
@click.argument("run", type=_FOLDER)
@click.argument("bundle", type=_PATH)
@click.option("--fuse", is_flag=True, help="Add model.onnx: image tensor to logits through the exact head, in one file.")
@_json_option
@_reported
def export(run: Path, bundle: Path, fuse: bool, as_json: bool) -> None:
    """Write the best model of RUN as the folder BUNDLE, and check it against torch."""
    from training.export import export_run

    files = export_run(run, bundle, fused=fuse).manifest.files
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "files": {name: entry.model_dump() for name, entry in files.items()}}))
    else:
        click.echo(f"{bundle}: {len(files) + 1} files, {sum(entry.size for entry in files.values()) / 1e6:.1f} MB")


@main.command()
@click.argument("bundle", type=_FOLDER)
@click.option("--images", type=_FOLDER, help="Photographs to compare on.  [default: synthetic ones]")
@_json_option
@_reported
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
    return _OK if passed else _FAILED


@main.command()
@click.argument("model", type=_FOLDER, metavar="RUN_OR_BUNDLE")
@_json_option
@_reported
def inspect(model: Path, as_json: bool) -> None:
    """Print what a run or a bundle says about itself, and draw its circuit."""
    from training.inspection import describe

    description = describe(model)
    if as_json:
        click.echo(json.dumps(description.values))
    else:
        click.echo(json.dumps(description.values, indent=2, ensure_ascii=False))
        click.echo(description.drawing)


@main.group()
def data() -> None:
    """Make data sets."""


@data.command()
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="Folder to make, with crack/ and no_crack/.")
@click.option("--num-images", type=click.IntRange(min=2), default=600, show_default=True, help="Patches in all, half of them cracked.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same images.")
@click.option("--masks", type=_PATH, metavar="DIR", help="Also write the crack pixels as PNG masks there.")
@_reported
def synth(out: Path, num_images: int, seed: int, masks: Path | None) -> None:
    """Generate patches of concrete with pores, stains and thin cracks."""
    from training.console import progress_bar
    from training.synth import write_dataset

    with progress_bar("patches", num_images, "images") as advance:
        write_dataset(out, num_images, seed, masks=masks, progress=advance)
    click.echo(f"{out}: {num_images} patches")


@main.command()
@click.option(
    "--out", type=_PATH, default=Path("quickstart-out"), show_default=True, metavar="DIR", help="Folder made anew for all results."
)
@_reported
def quickstart(out: Path) -> int:
    """Make photographs, train, export, verify, score a folder, serve, ask over HTTP: the main job end to end."""
    from training.quickstart import run_quickstart

    return _OK if run_quickstart(out) else _FAILED


def _run_and_config(out: Path | None, resume: str | None, options: dict[str, Any]) -> tuple[Path, Any]:
    """The run folder, and the options that were given (None where a run is resumed without any)."""
    given = {name: value for name, value in options.items() if value is not None}
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


if __name__ == "__main__":
    main()
