"""``hqtl-score``: the command line of folder scoring, and the only place that knows exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from hqtl_common import __version__

if TYPE_CHECKING:
    from serving.scoring import Outcome

__all__ = ["main"]

# 2, a wrong command line, is click's.
_OK, _FAILED, _SOME_FAILED, _BUDGET, _INTERRUPTED = 0, 1, 3, 4, 130

_EPILOG = """\b
Exit codes:
  0    every image has an answer
  1    failed; the reason is on standard error
  2    wrong command line
  3    some images have an error in their row; the rest is done
  4    the budget of the backend is reached; go on with --resume
  130  interrupted; go on with --resume
"""


@click.command("hqtl-score", epilog=_EPILOG)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The exported model.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results; new, or with --resume an earlier one.")
@click.option("--backend", help="Where the head runs, for example aer or pennylane:default.qubit.  [default: statevector]")
@click.option("--shots", type=click.IntRange(min=1), help="Repetitions per image.  [default: exact where the backend can]")
@click.option(
    "--max-shots",
    type=click.IntRange(min=1),
    help="Repeat images whose label is in doubt up to so often; others stop at --shots, with at most 5 % wrong labels by stopping early.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the sampling.  [default: 0]")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images computed together.  [default: 32]")
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    help="Images of one evaluation of the head, one job on hardware.  [default: 32; 1 with --tiles]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes that decode images, or chunks at once on Ray.  [default: all cores]")
@click.option(
    "--providers",
    metavar="LIST",
    help="Where the backbone computes, the preferred one first: cpu, cuda, tensorrt.  [default: cpu]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Work in this process, or on a Ray cluster; the results are the same, and a run may change it by --resume.",
)
@click.option("--ray-address", help="HOST:PORT of the cluster.  [default: RAY_ADDRESS, else one is started on this machine]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability from which the positive label is given; two classes only.  [default: the bundle's]",
)
@click.option(
    "--backend-option",
    "backend_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend by its own name, for example mitigation=readout; repeatable.",
)
@click.option(
    "--tiles",
    is_flag=False,
    flag_value=0,
    type=click.IntRange(min=0),
    metavar="[SIZE]",
    help="Cut images into tiles of SIZE pixels (the model's input where it is left out), read window by window; also writes OUT/tiles.csv "
    "and OUT/tiles.jsonl.",
)
@click.option("--overlap", type=click.IntRange(min=0), help="Pixels that neighbouring tiles share.  [default: a quarter of a tile]")
@click.option(
    "--tile-quantile",
    type=click.FloatRange(0, 1, min_open=True),
    help="Which tile decides about its image: 1 the one most probably positive, 0.99 leaves one in a hundred above.  [default: 1]",
)
@click.option(
    "--every",
    metavar="N|SECONDSs",
    help="Frames of a video that are scored: every N-th, or with an s one per span of time, for example 0.5s.  [default: 1s]",
)
@click.option("--refine-with", metavar="BACKEND", help="Run images or tiles that are in doubt again there, those of a chunk as one job.")
@click.option("--refine-shots", type=click.IntRange(min=1), help="Repetitions of --refine-with.  [default: its own]")
@click.option("--refine-option", "refine_options", multiple=True, metavar="KEY=VALUE", help="An option of --refine-with; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out files with such a path, e.g. '*_mask.png'; repeatable.")
@click.option("--shard", metavar="I/N", help="Score the I-th of N parts of FOLDER, the same parts on every machine.")
@click.option(
    "--merge",
    multiple=True,
    metavar="OUT",
    help="Score nothing: join the results of all parts made with --shard, whose folders are named by repeating this, or by one pattern.",
)
@click.option("--report/--no-report", default=None, help="Write OUT/report.html, *.geojson and coco.json.  [default: --report]")
@click.option("--maps/--no-maps", default=None, help="With --tiles, draw OUT/maps: where each image is suspicious.  [default: --maps]")
@click.option("--parquet", is_flag=True, default=None, help="Also write OUT/scores.parquet and, with --tiles, OUT/tiles.parquet.")
@click.option(
    "--truth",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare with a folder of masks named like the images, or of one folder per class; can be added later with --resume.",
)
@click.option("--max-jobs", type=click.IntRange(min=1), help="Stop (exit code 4) before more jobs than this are submitted.")
@click.option("--max-qpu-seconds", type=click.FloatRange(min=0), help="Stop (exit code 4) before more QPU seconds are spent.")
@click.option("--yes", is_flag=True, help="Let a paid backend run without a limit.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its options are taken from there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else.")
@click.version_option(__version__, prog_name="hqtl-score")
@click.pass_context
def main(
    context: click.Context,
    /,
    folder: Path,
    bundle: Path,
    out: Path,
    workers: int | None,
    providers: str | None,
    engine: str,
    ray_address: str | None,
    merge: tuple[str, ...],
    max_jobs: int | None,
    max_qpu_seconds: float | None,
    yes: bool,
    report: bool | None,
    maps: bool | None,
    parquet: bool | None,
    truth: Path | None,
    resume: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Score every image below FOLDER: one row per image in OUT/scores.csv and OUT/scores.jsonl, and a page in OUT/report.html.

    Images are found at any depth by their suffix (PNG, JPEG, TIFF, BMP, WebP); links and hidden entries are left out. Videos, TIFF
    files of several pages and volumes (.npy, .nii, .nii.gz) have one row per frame, page or slice.
    A run that was stopped or killed goes on with --resume and ends with the same files.
    """
    again = _command_again(context)
    with _StopSignals() as stop:
        try:
            outputs = {"report": report, "maps": maps, "parquet": parquet, "truth": truth}
            places = tuple(name.strip() for name in (providers or "cpu").split(","))
            where = {"workers": workers, "providers": places, "engine": engine, "ray_address": ray_address}
            code = _score(folder, bundle, out, given, outputs, (max_jobs, max_qpu_seconds, yes), resume, where, merge, as_json, stop, again)
        except KeyboardInterrupt:
            code = _report_error("Interrupted", "interrupted", as_json, _INTERRUPTED, again)
    sys.exit(code)


def _command_again(context: click.Context) -> str:
    """The command as it was given, with --resume."""
    words = ["hqtl-score"]
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        value = True if name == "resume" else context.params.get(name) if given else None
        if value is False and parameter.secondary_opts:
            words.append(parameter.secondary_opts[0])
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and one is not False:
                words += [parameter.opts[0]] if isinstance(parameter, click.Option) else []
                words += [] if one is True else [str(one)]
    return shlex.join(words)


def _score(
    folder: Path,
    bundle: Path,
    out: Path,
    given: dict[str, Any],
    outputs: dict[str, Any],
    limits: tuple[int | None, float | None, bool],
    resume: bool,
    where: dict[str, Any],
    merge: tuple[str, ...],
    as_json: bool,
    stop: _StopSignals,
    again: str,
) -> int:
    import warnings

    from hqtl_common.backends.opening import Limits, parse_options
    from hqtl_common.errors import BudgetExceededError, HqtlError
    from serving.report import publish_outcome, wanted_outputs
    from serving.scoring import Request, merge_runs, score_folder
    from serving.scoring.progress import reporter_for

    warnings.filterwarnings("ignore", module="PIL")  # oddities of files that decode all the same
    try:
        options = {name: parse_options(given[name]) or None for name in ("backend_options", "refine_options")}
        given = {**given, **options, "exclude": given["exclude"] or None}
        request = Request(**given)
        wanted = wanted_outputs(out, outputs)
        with reporter_for(sys.stderr) as reporter:
            common: dict[str, Any] = {"resume": resume, "reporter": reporter, "should_stop": stop.asked}
            if merge:
                outcome = merge_runs(folder, bundle, out, _matching(merge), request, **common)
            else:
                outcome = score_folder(folder, bundle, out, request, limits=Limits(*limits), isolated=True, **where, **common)
            outcome = publish_outcome(outcome, bundle, wanted, should_stop=stop.asked, tell=reporter.note)
    except BudgetExceededError as error:
        return _report_error(type(error).__name__, str(error), as_json, _BUDGET, again)
    except HqtlError as error:
        return _report_error(type(error).__name__, str(error), as_json, _FAILED, None)
    return _report(outcome, as_json, again)


def _matching(patterns: tuple[str, ...]) -> list[str]:
    """Folders by their names, or by patterns of names."""
    from glob import glob

    found = (([pattern] if Path(pattern).exists() else sorted(glob(pattern)) or [pattern]) for pattern in patterns)  # noqa: PTH207 (from /)
    return [name for names in found for name in names]


def _report(outcome: Outcome, as_json: bool, again: str) -> int:
    if as_json:
        _print_json(outcome.to_dict())
    else:
        from rich.console import Console

        from serving.scoring.screen import print_summary

        print_summary(outcome, Console())
    if not outcome.complete:
        click.echo(f"stopped; go on with: {again}", err=True)
        return _INTERRUPTED
    if not outcome.summary["images"]:
        click.echo("no image was found: looked for .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp, videos and volumes at any depth", err=True)
    return _SOME_FAILED if outcome.failures else _OK


def _report_error(kind: str, message: str, as_json: bool, code: int, again: str | None) -> int:
    if as_json:
        _print_json({"error": {"code": kind, "message": message}})
    click.echo(f"hqtl-score: {' '.join(message.split())}", err=True)
    if again:
        click.echo(f"go on with: {again}", err=True)
    return code


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


class _StopSignals:
    """Ctrl-C and SIGTERM ask to stop after the current chunk; the second one stops at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """True once a signal came."""
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        os.write(2, b"\nstopping after the images in work; once more to stop at once\n")


if __name__ == "__main__":
    main()
