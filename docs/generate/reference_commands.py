"""Commands, as the command line itself describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reference_text import table
from typer.main import get_command

from evomerge.cli import app

__all__ = ["commands"]


def commands() -> Iterator[str]:
    """Lines of the page about commands."""
    yield "# Commands\n"
    yield "Exit codes: 0 done or stopped on request, 2 something you gave is wrong, 3 the run failed, 130 interrupted"
    yield "twice. `--set KEY=VALUE` takes the keys of [experiment files](yaml.md).\n"
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        yield from _command(f"evomerge {name}", command)


def _command(name: str, command: Any) -> Iterator[str]:
    if parts := getattr(command, "commands", None):
        for part, each in parts.items():
            yield from _command(f"{name} {part}", each)
        return
    arguments = [_metavar(each) for each in command.params if each.param_type_name == "argument"]
    rows = [(_usage(each), f"{each.help or ''}{_otherwise(each)}") for each in command.params if each.name != "help"]
    yield f"## {name}\n"
    yield f"`{' '.join([name, *arguments])}`\n"
    yield f"{command.help}\n"
    if rows:
        yield from table(("argument", "what"), rows)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"`{names}`" if parameter.is_flag else f"`{names} {_metavar(parameter)}`"


def _otherwise(parameter: Any) -> str:
    """What holds if it is left out."""
    if parameter.param_type_name == "argument":
        return ""
    if parameter.required:
        return " Required."
    return "" if parameter.is_flag or not parameter.default else f" Default: `{parameter.default}`."
