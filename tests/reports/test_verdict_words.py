from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import Experiment
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform
from evomerge.reports import Summary, verdict
from evomerge.reports.words import describe, membership, number, one_line, percent, unspent
from evomerge.runs import RunStore

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


def with_gains(found: Summary, low: float, high: float, *, over: int, of: int | None = None) -> Summary:
    """The summary with other intervals over one anchor, in everything: of one candidate, or of all."""
    assert found.confirmation is not None
    gains = tuple(
        replace(gain, measure=replace(gain.measure, mean=(low + high) / 2, low=low, high=high))
        if gain.anchor == over and of in (None, gain.candidate)
        else gain
        for gain in found.confirmation.gains
    )
    return replace(found, confirmation=replace(found.confirmation, gains=gains))


def average_of(found: Summary) -> int:
    return next(anchor.id for anchor in found.anchors if anchor.name == "uniform")


def test_better_names_the_closest_anchor(summary: Make) -> None:
    found = summary()
    told = verdict(found)
    assert told.kind == "better"
    assert told.candidate == told.take == found.picks["knee"]
    assert "(the knee) beats every parent and the uniform average in the mean of the objectives" in told.headline
    assert "the search never saw" in told.detail
    assert found.confirmation is not None
    lowest = min(
        (g for g in found.confirmation.gains if g.candidate == told.candidate and g.of == "mean"),
        key=lambda gain: gain.measure.low,
    )
    assert f"over {found.entries[lowest.anchor].name}, the closest" in told.headline


@pytest.mark.parametrize(
    ("low", "high", "kind", "begins"),
    [
        (0.001, 0.1, "better", "Better: candidate #"),
        (-0.001, 0.1, "same", "No measurable difference between candidate #"),
        (-0.1, 0.001, "same", "No measurable difference between candidate #"),
        (-0.1, -0.001, "worse", "Worse: candidate #"),
    ],
)
def test_the_uniform_average_decides_as_a_parent_does(
    summary: Make, low: float, high: float, kind: str, begins: str
) -> None:
    found = summary()
    average = average_of(found)
    told = verdict(with_gains(found, low, high, over=average))
    assert told.kind == kind
    assert told.headline.startswith(begins)
    if kind != "better":
        assert "the uniform average, which needs no search, in the mean" in told.headline
        assert "It beats every parent: +" in told.detail
        assert told.take == average


def test_worse_than_a_parent_recommends_nothing_to_export(summary: Make) -> None:
    told = verdict(summary(lift=-0.3))
    assert told.kind == "worse"
    assert told.candidate is not None
    assert told.take is None or told.headline.count("average")
    assert "The safer choice is" in told.detail


def test_better_in_one_objective_only(summary: Make) -> None:
    told = verdict(summary(lift=-0.02))
    assert told.kind == "partial"
    assert told.of in ("a", "b")
    assert told.headline.startswith(f"Better in {told.of} only: candidate #")
    assert "In the mean of the objectives, of candidate #" in told.detail


def with_intervals(found: Summary, of: str, intervals: dict[str, tuple[float, float, float]]) -> Summary:
    """The summary with other gains of all in one thing: (low, mean, high) by anchor, under "" over all others."""
    assert found.confirmation is not None
    gains = []
    for gain in found.confirmation.gains:
        name = found.entries[gain.anchor].name
        low, mean, high = intervals.get(name, intervals[""])
        measure = replace(gain.measure, low=low, mean=mean, high=high)
        gains.append(replace(gain, measure=measure) if gain.of == of else gain)
    return replace(found, confirmation=replace(found.confirmation, gains=tuple(gains)))


def test_all_objectives_that_somebody_is_better_in_are_named(summary: Make) -> None:
    told = verdict(with_intervals(summary(), "mean", {"": (-0.1, 0.0, 0.1)}))
    assert told.kind == "partial"
    assert told.headline.startswith("Better in a, b only: candidate #")
    assert "beats every parent and the uniform average in a: +" in told.headline


@pytest.mark.parametrize(
    ("kind", "base", "average"),
    [("same", (-0.04, 0.1, 0.24), (-0.03, 0.005, 0.04)), ("worse", (-0.2, -0.15, -0.1), (-0.4, -0.21, -0.02))],
)
def test_the_strongest_anchor_that_is_not_beaten_is_the_safer_choice(
    summary: Make, kind: str, base: tuple[float, float, float], average: tuple[float, float, float]
) -> None:
    found = with_intervals(summary(goals=("max",)), "mean", {"base": base, "uniform": average, "": (0.2, 0.3, 0.4)})
    for objective in found.objectives:
        found = with_intervals(found, objective.name, {"": (-0.1, 0.0, 0.1)})
    told = verdict(found)
    assert told.kind == kind
    assert "the uniform average" in told.headline
    assert "The safer choice is uniform" in told.detail
    assert told.take == average_of(found)


def test_other_member_may_win_where_the_knee_does_not(summary: Make) -> None:
    found = summary()
    told = verdict(with_gains(found, -1.0, 1.0, over=found.parents[0].id, of=found.picks["knee"]))
    assert told.kind == "better"
    assert told.candidate != found.picks["knee"]
    assert "not the knee" in told.headline


def test_an_anchor_that_breaks_a_constraint_is_no_safer_choice(summary: Make) -> None:
    found = summary(goals=("max",))
    average = average_of(found)
    unsafe = {**found.entries, average: replace(found.entries[average], broken=("harm at most 0.1",))}
    told = verdict(with_gains(replace(found, entries=unsafe), -0.2, -0.1, over=average))
    assert told.kind == "worse"
    assert "(which breaks harm at most 0.1)" in told.headline
    assert "safer choice" not in told.detail
    assert told.take == told.candidate


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
    assert "beats every parent and the uniform average in a:" in verdict(summary(goals=("max",))).headline


@pytest.mark.parametrize(
    ("algorithm", "recorded", "failed", "told"),
    [
        ({"kind": "random", "population": 12}, 29, 0, "11 were not asked for, because the next generation takes 12"),
        ({"kind": "random", "population": 13}, 30, 2, "2 failed; 10 were not asked for, because the next"),
        ({"kind": "grid", "population": 4, "levels": 3}, 13, 0, "the algorithm had nothing more to ask"),
    ],
)
def test_what_became_of_the_rest_of_the_budget(
    run: Callable[..., RunStore], algorithm: dict[str, Any], recorded: int, failed: int, told: str
) -> None:
    config = Experiment.model_validate(run().experiment | {"algorithm": algorithm, "budget": {"evaluations": 40}})
    assert told in unspent(config, recorded, failed, finished=True)
    assert unspent(config, 40, 0, finished=True) == ""
    assert unspent(config, recorded, failed, finished=False) == (f"{failed} failed" if failed else "")


def test_other_budgets_end_a_run_too(run: Callable[..., RunStore]) -> None:
    config = Experiment.model_validate(run().experiment | {"budget": {"evaluations": 40, "items": 900}})
    assert "the budget of items or tokens would not have held another" in unspent(config, 30, 0, finished=True)


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
