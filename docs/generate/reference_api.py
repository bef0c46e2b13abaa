"""The Python API, from its docstrings and signatures."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

from reference_text import one_line, table

import evomerge
from evomerge import errors, population, recipe, spaces
from evomerge.reports import course, summary
from evomerge.reports.verdict import Verdict

__all__ = ["api"]


def api() -> Iterator[str]:
    """Lines of the page about the Python API."""
    yield "# Python API\n"
    yield "The first part is all that a notebook needs; then follows what comes back, and what plugins build on"
    yield "([extending](../extending.md)).\n"
    yield "## evomerge\n"
    yield from _members([evomerge.run, evomerge.open_run, evomerge.load_experiment, evomerge.Run])
    yield "## What a run holds\n"
    yield from _members([summary.Summary, summary.Entry, summary.Scores, summary.Measure, summary.Objective, Verdict])
    yield from _members([summary.Confirmation, summary.Gain, course.Cost])
    yield "## Recipes\n"
    yield from _members([recipe.Recipe, recipe.Field, recipe.Hop])
    yield "## Search spaces\n"
    yield from _members([spaces.Genome, spaces.Gene, spaces.Models, spaces.SearchSpace])
    yield "## Algorithms\n"
    yield from _members([population.Algorithm, population.Problem, population.Evaluation])
    yield "## Errors\n"
    yield from table(
        ("exception", "exit code", "raised when"),
        [
            (f"`{name}`", str(getattr(errors, name).exit_code), getattr(errors, name).__doc__ or "")
            for name in errors.__all__
            if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.EvomergeError)
        ],
    )


def _members(members: Iterable[Any]) -> Iterator[str]:
    for member in members:
        name = member.__name__
        if not isinstance(member, type):
            yield f"### {name}\n"
            yield f"```python\n{name}{_signature(member)}\n```\n"
            yield from _docstring(member)
            continue
        yield f"### {name}\n"
        yield from _docstring(member)
        if is_dataclass(member):
            yield f"```python\n{name}{_signature(member)}\n```\n"
        rows = [(f"`{label}`", _first(value)) for label, value in _public(member)]
        if rows:
            yield from table(("", "what"), rows)


def _public(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) and value.__doc__:
            yield name, value
        elif inspect.isfunction(value) and value.__doc__:
            yield f"{name}{_signature(value, drop_self=True)}", value
        elif isinstance(value, classmethod | staticmethod) and value.__func__.__doc__:
            yield f"{name}{_signature(value.__func__, drop_self=isinstance(value, classmethod))}", value.__func__


def _signature(function: Any, *, drop_self: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if drop_self else 0 :]
    text = str(signature.replace(parameters=parameters))
    text = re.sub(r"<function (\w+\.)*<lambda> at 0x[0-9a-f]+>", "...", text)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).replace(" -> None", "")


def _first(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]


def _docstring(member: Any) -> Iterator[str]:
    """Google style as Markdown: sections as lists, examples as they are."""
    for block in re.split(r"\n\n(?=\S)", inspect.cleandoc(member.__doc__ or "")):
        head, _, rest = block.partition("\n")
        if head in ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:"):
            yield f"{head}\n"
            entries = re.split(r"\n(?=\S)", textwrap.dedent(rest).strip())
            yield "\n".join(f"- {_entry(entry)}" for entry in entries) + "\n"
        elif head == "Example:":
            code = inspect.cleandoc(re.sub(r"^\s*::\n", "", rest))
            yield f"```python\n{code}\n```\n"
        else:
            yield block + "\n"


def _entry(text: str) -> str:
    name, colon, what = one_line(text).partition(": ")
    return f"`{name}`: {what}" if colon and re.fullmatch(r"[\w, *]+", name) else one_line(text)
