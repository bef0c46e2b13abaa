"""Merge operators, from the table of operators."""

from __future__ import annotations

from collections.abc import Iterator

from reference_text import table

from evomerge.recipe import OPERATORS, Operator
from evomerge.recipe.operators import plugged_lowering

__all__ = ["operators"]


def operators() -> Iterator[str]:
    """Lines of the page about operators."""
    yield "# Merge operators\n"
    yield "`operator: {name: ...}` of a [parameter space](yaml.md#parameter-space-kind-parameter). Each number may be"
    yield "searched (`genes`) or fixed; in brackets the range that a search uses unless told otherwise; `*`: one value"
    yield "for each expert. Every operator that needs the base also takes `omega`.\n"
    rows = [
        (f"`{name}`", _numbers(operator), _options(operator), "yes" if operator.needs_base else "", _most(operator))
        for name, operator in sorted(OPERATORS.items())
        if plugged_lowering(name) is None
    ]
    yield from table(("operator", "numbers", "options (paper; mergekit)", "base", "experts"), rows)


def _numbers(operator: Operator) -> str:
    return ", ".join(
        f"`{name}`{'*' if each.scope == 'source' else ''} [{each.low:g}, {each.high:g}]"
        for name, each in operator.parameters.items()
    )


def _options(operator: Operator) -> str:
    presets = operator.presets
    return ", ".join(
        f"`{name}` ({_said(presets['paper'][name])}; {_said(presets['mergekit'][name])})" for name in operator.options
    )


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _most(operator: Operator) -> str:
    return "any number" if operator.max_sources is None else f"{operator.max_sources} at most"
