"""Writes docs/commands.md from the commands' own help: ``python docs/make_commands.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import serving.cli
import serving.cli_keys
import training.cli

TARGET = Path(__file__).with_name("commands.md")
_HEADER = "# Commands\n\nWhat `--help` says, for every command. Written by `python docs/make_commands.py`.\n"


def commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(full name, help text) of a command and all below it."""
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for key in command.list_commands(context):
            child = command.get_command(context, key)
            assert child is not None
            yield from commands(child, key, context)


def render() -> str:
    """The whole document."""
    roots = ((training.cli.main, "hqtl-train"), (serving.cli.main, "hqtl-score"), (serving.cli_keys.main, "hqtl-keys"))
    sections = [f"\n## {path}\n\n```text\n{text}\n```\n" for root, name in roots for path, text in commands(root, name)]
    return _HEADER + "".join(sections)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
