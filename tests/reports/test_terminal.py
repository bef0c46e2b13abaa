from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.reports import Summary, print_verdict, verdict

Make = Callable[..., Summary]


def printed(show: Callable[..., None], *arguments: object, width: int = 80) -> str:
    stream = io.StringIO()
    show(arguments[0], Console(file=stream, width=width), *arguments[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"finished": False},
        {"goals": ("max",)},
        {"goals": ("max", "min", "max", "max")},
        {"goals": ("max",) * 7},
        {"lift": -0.3},
        {"searched": 0, "finished": False},
    ],
)
def test_fits_80_columns_without_a_terminal(summary: Make, fields: dict[str, Any]) -> None:
    found = summary(**fields)
    text = printed(print_verdict, found, Path("runs/x/report.html"))
    assert " ".join(text.split()).startswith(verdict(found).headline)
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if "evomerge " not in line)
    assert "Report:  runs/x/report.html" in text


def test_shows_the_numbers_of_the_knee_and_the_anchors(summary: Make) -> None:
    found = summary()
    knee = found.entries[found.picks["knee"]]
    assert knee.confirmed is not None
    text = printed(print_verdict, found)
    for shown in ("confirmed", knee.name, "base", "rev", "sort", "uniform", f"{knee.confirmed.each[0].mean:.3f}"):
        assert shown in text
    assert f"Report:  {found.commands()['report']}" in text
    assert f"Export:  {found.commands()['export']}" in text


def test_gains_are_those_of_the_verdict(summary: Make) -> None:
    found = summary(lift=-0.02)
    told = verdict(found)
    assert told.kind == "partial"
    assert told.candidate is not None
    text = printed(print_verdict, found)
    assert f"gain of {found.entries[told.candidate].name} over" in text
    assert f"in {told.of}, 95 % interval" in text


def test_unconfirmed_run_offers_no_export(summary: Make) -> None:
    text = printed(print_verdict, summary(finished=False))
    assert "Unconfirmed" in text
    assert "estimated" in text
    assert "Export" not in text


def test_markup_in_names_is_shown_as_it_is(summary: Make) -> None:
    text = printed(print_verdict, summary(experts=("[bold]rev", "[/]")), width=120)
    assert "[bold]rev" in text
    assert "[/]" in text
