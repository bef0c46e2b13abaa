from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform
from evomerge.reports import Summary, verdict
from evomerge.reports.words import describe, membership, number, one_line, percent

Make = Callable[..., Summary]


@pytest.mark.parametrize(
    ("probability", "told"), [(0.0, "< 1 %"), (0.01, "1 %"), (0.873, "87 %"), (0.99, "99 %"), (1.0, "> 99 %")]
)
def test_resampled_items_give_no_certainty(summary: Make, probability: float, told: str) -> None:
    found = summary()
    assert found.confirmation is not None
    entry = found.entries[found.confirmation.knee]
    chances = replace(found.confirmation, probability={entry.id: probability})
    assert [*membership(replace(found, confirmation=chances), entry)] == [f"on the front: {told}"]


def test_gain_names_the_closest_parent(summary: Make) -> None:
    found = summary()
    told = verdict(found)
    assert told.kind == "gain"
    assert told.candidate == found.picks["knee"]
    assert "beats every parent in the mean of the objectives" in told.headline
    assert "the search never saw" in told.detail
    assert "Over the uniform average: +" in told.detail
    assert "which needs no search" not in told.headline
    assert found.confirmation is not None
    parents = {parent.id for parent in found.parents}
    lowest = min(
        (
            g
            for g in found.confirmation.gains
            if g.candidate == told.candidate and g.of == "mean" and g.anchor in parents
        ),
        key=lambda gain: gain.measure.low,
    )
    assert f"over {found.entries[lowest.anchor].name}, the closest" in told.headline


def test_no_gain_is_said_plainly(summary: Make) -> None:
    told = verdict(summary(lift=-0.3))
    assert told.kind == "none"
    assert told.headline.startswith("No gain")
    assert told.candidate is None


def test_gain_in_one_objective_only(summary: Make) -> None:
    told = verdict(summary(lift=-0.02))
    assert told.kind == "partial"
    assert told.headline.startswith("No candidate beats every parent in the mean of the objectives, but")
    assert told.of in ("a", "b")


def test_one_gain_below_zero_is_no_gain(summary: Make) -> None:
    found = summary(goals=("max",))
    assert found.confirmation is not None
    sort = found.parents[-1].id
    gains = [
        replace(g, measure=replace(g.measure, low=-0.001)) if g.anchor == sort else g for g in found.confirmation.gains
    ]
    doubtful = replace(found, confirmation=replace(found.confirmation, gains=tuple(gains)))
    assert verdict(found).kind == "gain"
    assert verdict(doubtful).kind == "none"


def test_other_member_may_win_where_the_knee_does_not(summary: Make) -> None:
    found = summary()
    assert found.confirmation is not None
    knee = found.confirmation.knee
    gains = [
        replace(g, measure=replace(g.measure, low=-1.0)) if g.candidate == knee else g for g in found.confirmation.gains
    ]
    told = verdict(replace(found, confirmation=replace(found.confirmation, gains=tuple(gains))))
    assert told.kind == "gain"
    assert told.candidate != knee
    assert "not the knee" in told.headline


def test_unfinished_is_unconfirmed(summary: Make) -> None:
    told = verdict(summary(finished=False))
    assert told.kind == "unconfirmed"
    assert told.headline.startswith("Unconfirmed: 12 of 30 evaluations")
    assert "evomerge run" in told.detail
    assert told.candidate is None


def test_nothing_scored_points_to_the_failures(summary: Make) -> None:
    told = verdict(summary(searched=0, finished=False, failures=("NaN", "OOM")))
    assert told.kind == "empty"
    assert "2 failed" in told.headline


def test_one_objective_is_called_by_its_name(summary: Make) -> None:
    assert "beats every parent in a:" in verdict(summary(goals=("max",))).headline


@given(st.text())
def test_one_line_is_printable_and_stable(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line


@given(st.floats(-1e300, 1e300))
def test_numbers_read_back(value: float) -> None:
    assert math.isclose(float(number(value)), value, rel_tol=1e-3, abs_tol=5.001e-4)


@pytest.mark.parametrize(("level", "text"), [(0.95, "95 %"), (0.975, "97.5 %"), (0.99, "99 %")])
def test_percent(level: float, text: str) -> None:
    assert percent(level) == text


def test_recipes_in_words() -> None:
    assert describe(uniform(["rev"], layers=2, dtype="float32")) == "rev as it is"
    path = (Hop(source="rev", layer=0), Hop(source="rev", layer=1), Hop(source="sort", layer=1, scale=0.5))
    routed = replace(uniform(["rev"], layers=2, dtype="float32"), path=path)
    assert describe(routed) == "layers rev 0-1, sort 1 (x0.5); the rest: rev as it is"
    recipe = Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("rev", "sort"),
        parameters=(("lambda", Field.constant([1.0], 2)), ("weight", Field.constant([0.25, 0.5], 2))),
        dtype="float32",
    )
    assert describe(recipe) == "task_arithmetic of base + rev + sort, weight rev=0.25 sort=0.50"
    chosen = replace(recipe, transforms=("none", "star"), options=(("normalize", True),))
    expected = "task_arithmetic of base + rev + sort~star:40, normalize true, weight rev=0.25 sort=0.50"
    assert describe(chosen) == expected
