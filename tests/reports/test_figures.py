from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, Recipe, Role, options_of
from evomerge.reports import Summary, write_png
from evomerge.reports.figures import Figure, front_cube, front_figures, history_figure, parallel_figure
from evomerge.reports.heatmaps import Heatmap, heatmap, heatmap_figure

Make = Callable[..., Summary]
HOSTILE = "</script><script>alert(1)</script>"


def traces(figure: Figure) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure["data"]}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("goals", [("max",), ("max", "min"), ("max", "min", "max"), ("max",) * 4])
def test_plotly_takes_every_figure(summary: Make, goals: tuple[str, ...], finished: bool) -> None:
    found = summary(goals=goals, finished=finished)
    fronts = front_figures(found)
    assert len(fronts) == max(1, len([*combinations(goals, 2)]))
    cube, parallel = front_cube(found), parallel_figure(found)
    assert (cube is not None) == (len(goals) == 3)
    assert (parallel is not None) == (len(goals) > 1)
    for figure in (*fronts, cube, parallel, history_figure(found)):
        if figure is not None:
            go.Figure(figure)  # refuses unknown properties and values


def test_confirmed_marks_are_filled_and_estimates_hollow(summary: Make) -> None:
    found = summary()
    for name, trace in traces(front_figures(found)[0]).items():
        assert trace["marker"]["symbol"].endswith("-open") == ("estimated" in name)
    knee = traces(front_figures(found)[0])["knee, confirmed"]
    scores = found.entries[found.picks["knee"]].confirmed
    assert scores is not None
    assert (knee["x"], knee["y"]) == ([scores.each[0].mean], [scores.each[1].mean])
    assert knee["error_x"]["array"][0] == pytest.approx(scores.each[0].high - scores.each[0].mean)
    assert knee["error_x"]["arrayminus"][0] == pytest.approx(scores.each[0].mean - scores.each[0].low)


def test_nothing_is_filled_before_confirmation(summary: Make) -> None:
    found = summary(finished=False)
    drawn = traces(front_figures(found)[0])
    assert all(trace["marker"]["symbol"].endswith("-open") for trace in drawn.values())
    assert sum(len(trace["x"]) for trace in drawn.values()) == found.cost.evaluations


def test_text_for_plotly_is_escaped(summary: Make) -> None:
    found = summary(experts=(HOSTILE, "<b>bold</b>"))
    figures = [*front_figures(found), parallel_figure(found)]
    figures.append(heatmap_figure(heatmap(found.finalists[0].recipe, "weight"), 0, 1))
    for figure in figures:
        assert "<script" not in repr(figure)
        assert "<b>bold" not in repr(figure)


def test_parallel_axes_point_up(summary: Make) -> None:
    figure = parallel_figure(summary(goals=("max", "min")))
    assert figure is not None
    trace = figure["data"][0]
    ranges = {dimension["label"]: dimension["range"] for dimension in trace["dimensions"] if "range" in dimension}
    assert ranges["a ↑"][0] < ranges["a ↑"][1]
    assert ranges["b ↓"][0] > ranges["b ↓"][1]
    lengths = {len(dimension["values"]) for dimension in trace["dimensions"]}
    assert lengths == {len(trace["line"]["color"])} == {8}


def recipe(by_role: dict[Role, list[list[float]]], shared: float) -> Recipe:
    weight = Field.of(by_role)
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("x", "y"),
        parameters=(("lambda", Field.constant([shared], 2)), ("weight", weight)),
        dtype="float32",
    )


def test_heatmap_joins_roles_with_equal_values() -> None:
    rows: dict[Role, list[list[float]]] = {role: [[0.1, 0.2], [0.3, 0.4]] for role in DEPTH_ROLES}
    rows |= {"mlp": [[0.1, 0.8], [0.3, 0.9]], "embed": [[0.5, 0.6]], "head": [[0.7, 0.75]]}
    table = heatmap(recipe(rows, 1.0), "weight")
    assert table.columns == ("x · all modules", "y · attention + norm", "y · mlp")
    assert table.rows == ("embed", "layer 0", "layer 1", "head")
    assert table.values == ((0.5, 0.6, 0.6), (0.1, 0.2, 0.8), (0.3, 0.4, 0.9), (0.7, 0.75, 0.75))
    assert not table.constant


def test_heatmap_of_a_shared_parameter() -> None:
    rows = {role: [[0.0, 0.0]] * (2 if role in DEPTH_ROLES else 1) for role in ROLES}
    table = heatmap(recipe(rows, 0.8), "lambda")
    assert table.columns == ("all · all modules",)
    assert table.constant


@pytest.mark.parametrize("low", [-0.5, 0.0])
def test_heatmap_colours_are_symmetric_only_around_zero(low: float) -> None:
    figure = heatmap_figure(Heatmap(columns=("x",), rows=("embed",), values=((0.2,),)), low, 0.25)
    trace = figure["data"][0]
    go.Figure(figure)
    assert (trace["zmin"], trace["zmax"]) == ((-0.5, 0.5) if low < 0 else (0.0, 0.25))


@pytest.mark.parametrize("goals", [("max",), ("max", "min", "max")])
def test_png(summary: Make, tmp_path: Path, goals: tuple[str, ...]) -> None:
    out = write_png(summary(goals=goals, experts=("$x$", "y_$")), tmp_path / "front.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))
