"""``hqtl-train backends``, ``plan``, ``jobs`` and ``rehearse``: where the head can run, what it costs, what was paid."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from hqtl_common.errors import InputError
from training.cli.common import BACKEND_OPTIONS, FIT_OPTIONS, FOLDER, JSON_OPTION, LIMIT_OPTIONS, MACHINE_OPTIONS, PATH, options, reported

__all__ = ["backends", "jobs", "plan", "rehearse"]

_LEDGER = click.option("--ledger", type=PATH, help="The ledger's file.  [default: $HQTL_LEDGER or ~/.local/share/hqtl/ledger.sqlite]")
_PRICES = click.option("--prices", type=PATH, help="JSON file of US dollars per QPU second by plan.  [default: $HQTL_PRICES or built in]")


@click.command()
@click.option("--check", is_flag=True, help="Also log in to IBM and show machines, queues, calibration and what is left of the plan.")
@JSON_OPTION
@reported
def backends(check: bool, as_json: bool) -> None:
    """List where the head can run, and what each backend can do."""
    from hqtl_common.backends.registry import FAMILIES

    rows = [{"name": family.pattern, **dataclasses.asdict(family.capabilities)} for family in FAMILIES]
    account: dict[str, Any] | None = None
    if check:
        from hqtl_common.backends.ibm_account import account_overview

        account = account_overview()
    if as_json:
        click.echo(json.dumps({"backends": rows, "ibm": account}))
        return
    from training.tables import print_backends

    print_backends(rows, account)


@click.group()
def plan() -> None:
    """Count jobs, executions, QPU seconds and dollars before anything runs."""


@plan.command("fit")
@click.argument("data", type=FOLDER)
@click.option("--out", type=PATH, hidden=True)
@options(FIT_OPTIONS, LIMIT_OPTIONS, MACHINE_OPTIONS)
@_PRICES
@JSON_OPTION
@reported
def plan_fit(prices: Path | None, as_json: bool, out: Path | None, **given: Any) -> None:
    """Costs of `fit` with the same arguments, and of cheaper variants."""
    from training.config import FitConfig
    from training.planning import plan_training
    from training.tables import print_plans

    values = {name: value for name, value in given.items() if value is not None and value != () and name in FitConfig.model_fields}
    if pairs := values.pop("backend_options", None):
        from hqtl_common.backends.opening import parse_options

        values["backend_options"] = parse_options(pairs)
    plans = plan_training(FitConfig.parse(values), prices)
    print_plans(plans, as_json=as_json)


@plan.command("evaluate")
@click.argument("model", type=FOLDER, metavar="RUN_OR_BUNDLE")
@click.argument("data", type=FOLDER)
@options(BACKEND_OPTIONS)
@_PRICES
@JSON_OPTION
@reported
def plan_evaluate(model: Path, data: Path, shots: int | None, prices: Path | None, as_json: bool, **given: Any) -> None:
    """Costs of `evaluate` on all images of DATA: one job."""
    from hqtl_common.backends.opening import parse_options
    from training.data import load_dataset
    from training.planning import plan_answers
    from training.tables import print_plans

    chosen = parse_options(given["backend_options"])
    plans = plan_answers(len(load_dataset(data).samples), given["backend"] or "statevector", shots, None, prices, chosen)
    print_plans(plans, as_json=as_json)


@plan.command("score")
@click.argument("folder", type=FOLDER)
@options(BACKEND_OPTIONS)
@click.option("--batch-size", type=click.IntRange(1, 4096), default=32, show_default=True, help="Images of one job.")
@_PRICES
@JSON_OPTION
@reported
def plan_score(folder: Path, shots: int | None, batch_size: int, prices: Path | None, as_json: bool, **given: Any) -> None:
    """Costs of `hqtl-score` on the images below FOLDER."""
    from hqtl_common.preprocess import IMAGE_SUFFIXES
    from training.planning import plan_answers
    from training.tables import print_plans

    count = sum(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in folder.rglob("*"))
    from hqtl_common.backends.opening import parse_options

    chosen = parse_options(given["backend_options"])
    print_plans(plan_answers(count, given["backend"] or "statevector", shots, batch_size, prices, chosen), as_json=as_json)


@click.group()
def jobs() -> None:
    """What the ledger knows about paid executions."""


@jobs.command("list")
@click.option("--state", type=click.Choice(["intent", "submitted", "done", "failed"]), help="Only these.")
@_LEDGER
@JSON_OPTION
@reported
def jobs_list(state: Any, ledger: Path | None, as_json: bool) -> None:
    """List the recorded executions."""
    from training.ledger_jobs import describe, open_ledger

    rows = [describe(entry) for entry in open_ledger(ledger).find(state=state)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    from training.tables import print_jobs

    print_jobs(rows)


@jobs.command("show")
@click.argument("job")
@_LEDGER
@reported
def jobs_show(job: str, ledger: Path | None) -> None:
    """Everything about one execution; JOB is its job id or the beginning of its key."""
    from training.ledger_jobs import describe, find_entry, open_ledger

    click.echo(json.dumps(describe(find_entry(open_ledger(ledger), job), details=True), indent=2))


@jobs.command("cancel")
@click.argument("job")
@_LEDGER
@reported
def jobs_cancel(job: str, ledger: Path | None) -> None:
    """Cancel a job at IBM and record it as failed."""
    from training.ledger_jobs import cancel, find_entry, open_ledger

    opened = open_ledger(ledger)
    cancel(opened, find_entry(opened, job))
    click.echo(f"{job}: cancelled")


@jobs.command("adopt")
@click.argument("job")
@_LEDGER
@reported
def jobs_adopt(job: str, ledger: Path | None) -> None:
    """Wait for a job that an earlier command left behind and record its result."""
    from training.ledger_jobs import adopt, describe, find_entry, open_ledger

    opened = open_ledger(ledger)
    click.echo(json.dumps(describe(adopt(opened, find_entry(opened, job))), indent=2))


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
@click.option("--machine", default="ibm_kolkata", show_default=True, help="The machine to stand in for, by its snapshot.")
@click.option("--time-factor", default=0.0, show_default=True, help="Real seconds per emulated second of queue and QPU.")
@click.option("--queue-seconds", nargs=2, type=float, default=(0.0, 0.0), show_default=True, help="Shortest and longest wait in the queue.")
@click.option("--seed", default=0, show_default=True, help="Seed of the emulated machine.")
@reported
def rehearse(command: tuple[str, ...], machine: str, time_factor: float, queue_seconds: tuple[float, float], seed: int) -> int:
    """Run a command of hqtl-train (or any program) against a local stand-in of IBM's platform.

    `hqtl-train rehearse -- fit DATA --out RUN --backend ibm:ibm_kolkata --shots 1024 --max-jobs 500` trains on an emulated machine
    with the noise of its snapshot: the same client, the same jobs, no account and no cost. The ledger is a temporary one.
    """
    from training.rehearsal import rehearse as run

    if not command:
        raise InputError("give a command after --")
    finished = run(command, machine=machine, time_factor=time_factor, queue_seconds=queue_seconds, seed=seed)
    click.echo(json.dumps(finished.stats, indent=2), err=True)
    sys.exit(finished.exit_code)
