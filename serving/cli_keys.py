"""``hqtl-keys``: make, list and revoke the API keys of the service."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hqtl_common import __version__

if TYPE_CHECKING:
    from serving.keys import Key

__all__ = ["main"]

_FOLDED = ("name", "backends")
_file = click.option(
    "--file",
    "path",
    envvar="HQTL_KEYS",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the keys.  [default: $HQTL_KEYS, else ~/.config/hqtl/keys.json]",
)


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one line on standard error and exit code 1 where our own errors are raised."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        from hqtl_common.errors import HqtlError

        try:
            command(*arguments, **options)
        except HqtlError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)

    return run


@click.group("hqtl-keys")
@click.version_option(__version__, prog_name="hqtl-keys")
def main() -> None:
    """Make, list and revoke the keys of the service. A running service notices within a second."""


@main.command()
@click.argument("name")
@_file
@click.option(
    "--backend", "backends", multiple=True, metavar="PATTERN", help="A backend it may use, for example 'fake_*'; repeatable.  [default: *]"
)
@click.option("--no-backends", is_flag=True, help="It may predict nothing: for reading figures and documentation.")
@click.option("--max-shots", type=click.IntRange(min=1), help="Shots per image.  [default: as many as the service allows]")
@click.option("--qpu-seconds-per-day", type=click.FloatRange(min=0), default=0.0, show_default=True, help="On paid backends.")
@click.option("--jobs-per-day", type=click.IntRange(min=0), default=0, show_default=True, help="Jobs that outlive a request.")
@click.option(
    "--requests-per-minute", type=click.IntRange(min=1, max=1_000_000), help="Of every kind, by all workers.  [default: without limit]"
)
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="Day from which on it is refused (UTC).  [default: never]")
@_reporting
def add(
    name: str,
    path: Path | None,
    backends: tuple[str, ...],
    no_backends: bool,
    max_shots: int | None,
    qpu_seconds_per_day: float,
    jobs_per_day: int,
    requests_per_minute: int | None,
    expires: datetime | None,
) -> None:
    """Make a key for NAME and print it, once: only its hash is kept."""
    from datetime import UTC

    from pydantic import ValidationError

    from serving.keys import Grants, default_path, edit_keys, new_key

    if no_backends and backends:
        raise click.UsageError("--no-backends and --backend exclude each other")
    chosen = () if no_backends else backends or ("*",)
    try:
        grants = Grants(
            backends=chosen,
            max_shots=max_shots,
            qpu_seconds_per_day=qpu_seconds_per_day,
            jobs_per_day=jobs_per_day,
            requests_per_minute=requests_per_minute,
        )
        token, key = new_key(name, grants, expires.replace(tzinfo=UTC) if expires else None)
    except ValidationError as error:
        problem = error.errors()[0]
        raise click.UsageError(f"{problem['loc'][0]}: {problem['msg']}; got {str(problem['input'])[:40]!r}") from error
    with edit_keys(path or default_path()) as keys:
        keys.append(key)
    click.echo(token)


@main.command("list")
@_file
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else.")
@_reporting
def list_keys(path: Path | None, as_json: bool) -> None:
    """Show the keys, without what would let anybody in."""
    from serving.keys import default_path, read_keys

    keys = read_keys(path or default_path()).keys
    if as_json:
        click.echo(json.dumps([{**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state} for key in keys], indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("id", "name", "state", "backends", "max\nshots", "QPU\ns/day", "jobs\n/day", "requests\n/min", "expires"):
        table.add_column(name, no_wrap=name not in _FOLDED, overflow="fold")  # nothing may be cut off: revoke needs the id
    for key in keys:
        table.add_row(*_row(key))
    Console().print(table)


@main.command()
@click.argument("identifier", metavar="ID")
@_file
@_reporting
def revoke(identifier: str, path: Path | None) -> None:
    """Refuse the key ID from now on."""
    from serving.keys import default_path, edit_keys, revoked

    with edit_keys(path or default_path()) as keys:
        keys[:] = revoked(keys, identifier)
    click.echo(f"{identifier} is revoked")


def _row(key: Key) -> list[str]:
    grants = key.grants
    limits = (grants.max_shots, grants.qpu_seconds_per_day, grants.jobs_per_day, grants.requests_per_minute)
    figures = ["–" if limit is None else f"{limit:,g}" for limit in limits]
    return [
        key.id,
        key.name,
        key.state,
        ", ".join(grants.backends) or "none",
        *figures,
        str(key.expires.date()) if key.expires else "never",
    ]


if __name__ == "__main__":
    main()
