"""What the commands of ``hqtl-train`` share: options, and errors as exit codes.

Exit codes: 0 ok · 1 failed · 2 usage · 3 some images failed, the rest done · 4 budget reached, resumable · 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from hqtl_common.errors import BudgetExceededError, HqtlError
from hqtl_common.specs import Ansatz, Embedding, Entangler

__all__ = [
    "BACKEND_OPTIONS",
    "FIT_OPTIONS",
    "FOLDER",
    "JSON_OPTION",
    "LIMIT_OPTIONS",
    "MACHINE_OPTIONS",
    "PARTLY",
    "PATH",
    "options",
    "reported",
]

_OK, _FAILED, PARTLY, _BUDGET, _INTERRUPTED = 0, 1, 3, 4, 130

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else there.")
BACKEND_OPTIONS = (
    click.option("--backend", metavar="NAME", help="Where the head runs; hqtl-train backends lists the names.  [default: statevector]"),
    click.option("--shots", type=click.IntRange(min=1), metavar="N", help="Repetitions per parameter set; without it exact values."),
    click.option(
        "--backend-option",
        "backend_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of the backend by its own name, for example optimization_level=3 or twirling=true; repeatable.",
    ),
)
LIMIT_OPTIONS = (
    click.option("--max-jobs", type=click.IntRange(min=1), help="Stop (exit code 4) before more jobs than this are submitted."),
    click.option("--max-qpu-seconds", type=click.FloatRange(min=0), help="Stop (exit code 4) before more QPU seconds are spent."),
    click.option("--yes", is_flag=True, help="Let a paid backend run without a limit."),
)
MACHINE_OPTIONS = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where torch computes features.  [default: auto]"),
    click.option("--cache-dir", type=PATH, help="Where features are cached.  [default: $HQTL_CACHE or ~/.cache/hqtl]"),
    click.option("--verbose", is_flag=True, help="Say more, for example where the feature cache is and how large."),
)
FIT_OPTIONS = (
    click.option("--backbone", metavar="NAME", help="Feature extractor; hqtl-train backbones lists the names.  [default: resnet18]"),
    click.option("--weights", metavar="imagenet|none|PATH", help="Weights of the backbone.  [default: imagenet]"),
    click.option("--input-size", type=click.IntRange(8, 4096), metavar="N", help="Resize images to N × N.  [default: the backbone's size]"),
    click.option("--depth", type=click.IntRange(1, 4096), metavar="N", help="Resample volumes to N slices.  [default: 16]"),
    click.option(
        "--augment",
        metavar="none|all|PARTS",
        help="Alter training images: flips,rotations,tilt,brightness,contrast,noise or some of them.  [default: none]",
    ),
    click.option("--augment-variants", type=click.IntRange(2, 1000), help="Cached copies of each training image.  [default: 8]"),
    click.option("--unfreeze", metavar="PARTS|all", help="Train parts of the backbone first, for example layer4 or layer3,layer4."),
    click.option("--backbone-lr", type=float, help="Step of Adam for those parts.  [default: 1e-5]"),
    click.option("--backbone-epochs", type=click.IntRange(min=1), help="Passes in which they are trained.  [default: 10]"),
    click.option("--num-qubits", type=click.IntRange(2, 16), help="Qubits of the head.  [default: 4]"),
    click.option("--embedding", type=click.Choice(get_args(Embedding)), help="How the angles enter the circuit.  [default: angle]"),
    click.option("--entangler", type=click.Choice(get_args(Entangler)), help="Which CX gates stand in a layer.  [default: pairwise]"),
    click.option("--ansatz", type=click.Choice(get_args(Ansatz)), help="What a layer rotates.  [default: real_amplitudes]"),
    click.option("--num-layers", type=click.IntRange(min=1), help="Variational layers L of the head.  [default: 1]"),
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training split.  [default: 100]"),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images per optimiser step.  [default: 4]"),
    click.option("--lr", type=float, help="Step of Adam.  [default: 4e-4]"),
    click.option("--weight-decay", type=float, help="L2 penalty.  [default: 2e-3]"),
    click.option("--patience", type=click.IntRange(min=1), help="Stop after this many epochs without a better validation loss."),
    click.option("--split", metavar="TRAIN/VAL/TEST", help="Shares in percent; folders train, val, test count first.  [default: 70/15/15]"),
    click.option("--folds", type=click.IntRange(min=3), metavar="K", help="Divide into K parts instead; each tests once."),
    click.option("--fold", type=click.IntRange(min=1), metavar="I", help="Train on the I-th of them only, from 1."),
    click.option("--split-seed", type=click.IntRange(min=0), help="Seed of the split and of random weights.  [default: --seed]"),
    click.option("--group-by", metavar="none|source|REGEX", help="Keep the patches of one photograph in one split.  [default: none]"),
    *BACKEND_OPTIONS,
    click.option(
        "--diff-method",
        help="auto, backprop, adjoint, parameter-shift, lean-shift (fewer parameter sets), commuting (of that ansatz), finite-diff "
        "(central), finite-diff-forward or spsa.  [default: auto]",
    ),
    click.option("--diff-step", type=float, help="Step of a finite difference or of spsa, radians.  [default: 0.01, 0.1]"),
    click.option("--seed", type=click.IntRange(min=0), help="Seed of initial weights, batches, sampling, and split.  [default: 0]"),
    click.option("--positive", metavar="LABEL", help="The class that precision and recall speak of.  [default: a name like crack]"),
)


def options(*groups: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order given."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def reported(command: Callable[..., int | None]) -> Callable[..., None]:
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
