"""``hqtl-train compare`` and ``report``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from training.cli.common import FOLDER, JSON_OPTION, LIMIT_OPTIONS, PARTLY, PATH, options, reported

__all__ = ["compare", "report"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["auto", "local", "process", "ray"]),
        default="auto",
        show_default=True,
        help="Where runs are trained: here one by one, in processes, on Ray. auto: Ray if an address is given, else processes.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Runs at the same time on this machine.  [default: one per core]"),
    click.option("--retries", type=click.IntRange(min=0), default=1, show_default=True, help="Try again so often where a worker dies."),
    click.option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster.  [default: $RAY_ADDRESS, else one on this machine]"),
    click.option("--cpus", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Cores that Ray sets aside for a task."),
    click.option("--gpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Graphics processors for a task on Ray."),
)


@click.command()
@click.argument("config", type=_FILE, metavar="CONFIG.toml")
@click.option("--out", type=PATH, metavar="FOLDER", help="What is made, or gone on with.  [default: the name of CONFIG.toml, here]")
@click.option("--data", "data", type=PATH, multiple=True, metavar="FOLDER", help="Images, in place of [data]; repeatable.")
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Replace a value, as base.epochs=5; repeatable.")
@options(_ENGINE_OPTIONS, LIMIT_OPTIONS)
@click.option("--cache-dir", type=PATH, help="Where features are cached.  [default: $HQTL_CACHE or ~/.cache/hqtl]")
@click.option("--dry-run", is_flag=True, help="Check every run and show what it would take; write nothing.")
@click.option("--verbose", is_flag=True, help="Say more.")
@JSON_OPTION
@reported
def compare(
    config: Path,
    out: Path | None,
    data: tuple[Path, ...],
    settings: tuple[str, ...],
    engine: str,
    workers: int | None,
    retries: int,
    ray_address: str | None,
    cpus: float,
    gpus: float,
    max_jobs: int | None,
    max_qpu_seconds: float | None,
    yes: bool,
    cache_dir: Path | None,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """Train every combination of the options that CONFIG.toml lists, and set the results side by side.

    All combinations are checked before the first one runs. The same command goes on where it was stopped, tries failed runs
    again (exit code 3 if any is left) and never repeats a finished one. Limits hold for all runs together.
    """
    from hqtl_common.backends.opening import Limits
    from training.compare.experiment import compare as run_comparison
    from training.compare.experiment import plan_comparison
    from training.compare.local_engines import EngineOptions
    from training.compare.options import read_config
    from training.features import default_cache_folder

    limits = Limits(max_jobs, max_qpu_seconds, yes)
    planned = plan_comparison(read_config(config, settings, data), limits)
    if dry_run:
        if as_json:
            runs = [{"run": run.name, **plan} for run, plan in zip(planned.runs, planned.plans, strict=True)]
            click.echo(json.dumps({"runs": runs}))
        else:
            from training.compare.screen import print_planned

            print_planned(planned)
        return 0
    place = out or Path(config.stem)
    chosen = EngineOptions(workers, retries, ray_address, cpus, gpus)
    done = run_comparison(
        planned, place, cache_dir or default_cache_folder(), engine=engine, options=chosen, limits=limits, verbose=verbose
    )
    from training.report.compare_page import write_compare_report

    write_compare_report(done, place)
    if as_json:
        click.echo(json.dumps({"out": str(place), **dataclasses.asdict(done)}))
    else:
        from training.compare.screen import print_comparison

        print_comparison(done, place)
    return PARTLY if done.failures else 0


@click.command()
@click.argument("path", type=FOLDER, metavar="RUN_OR_COMPARISON")
@click.option("--out", type=PATH, metavar="FILE", help="The page.  [default: report.html in the folder]")
@click.option(
    "--evaluation",
    "evaluations",
    type=_FILE,
    multiple=True,
    help="What `evaluate --json` printed, to be set beside the run, for example on another backend; repeatable.",
)
@click.option("--bundle", type=FOLDER, help="The run's bundle, whose calibrations are shown.")
@reported
def report(path: Path, out: Path | None, evaluations: tuple[Path, ...], bundle: Path | None) -> None:
    """Write one self-contained HTML page about a run, or about a comparison.

    It shows accuracy with intervals beside the classical twins, data, curves, confusion, wrong answers, circuit, cost, versions, and
    the command that repeats it. Pictures are inside; the page asks nothing of the network.
    """
    if (path / "compare.json").is_file():
        from training.compare.experiment import read_comparison
        from training.report.compare_page import write_compare_report

        if evaluations or bundle:
            raise click.UsageError("--evaluation and --bundle belong to a run, not to a comparison")
        click.echo(write_compare_report(read_comparison(path), path, out))
        return
    from training.report.run_page import write_report

    click.echo(write_report(path, out, evaluations, bundle))
