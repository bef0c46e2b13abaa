from __future__ import annotations

import io
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.reports import Glances, Standing, Tally, screen, summarize
from evomerge.reports.standing import _pace
from evomerge.runs import RunStore, experiment_of

Make = Callable[..., RunStore]

SCENARIOS: list[dict[str, Any]] = [
    {},
    {"finished": False, "failures": ("NaN in [layer] 3", "out of memory")},
    {"goals": ("max",)},
    {"goals": ("max", "min", "max", "max")},
    {"goals": ("max",) * 7},
    {"searched": 0, "finished": False},
]


def stood(store: RunStore) -> Standing:
    return Tally(experiment_of(store)).look(store)


def shown(standing: Standing, width: int = 80, *, bar: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(screen(standing, bar=bar))
    return stream.getvalue()


def cut(folder: Path, results: int, to: Path) -> Path:
    """The run as it was after so many results."""
    shutil.copytree(folder, to)
    with closing(sqlite3.connect(to / "run.db")) as db, db:
        db.execute(
            "DELETE FROM response WHERE (candidate, phase, round) IN "
            "(SELECT candidate, phase, round FROM result WHERE seq >= ?)",
            (results,),
        )
        db.execute("DELETE FROM result WHERE seq >= ?", (results,))
    return to


@pytest.mark.parametrize("fields", SCENARIOS)
def test_agrees_with_the_summary(run: Make, fields: dict[str, Any]) -> None:
    store = run(**fields)
    standing, summary = stood(store), summarize(store)
    assert set(standing.front) == set(summary.front)
    assert standing.scores == {i: entry.estimated for i, entry in summary.entries.items() if entry.estimated}
    assert (standing.done, standing.copied, standing.items) == (
        summary.cost.evaluations,
        summary.cost.copied,
        summary.cost.items,
    )
    assert standing.confirmed == summary.cost.confirmations
    assert standing.failed == len(summary.failures)
    assert standing.state == summary.state
    assert standing.rewritten == summary.cost.rewritten
    assert standing.attempts == summary.cost.attempts


def test_bit_by_bit_is_the_same_as_at_once(run: Make, tmp_path: Path) -> None:
    store = run(goals=("max", "min"))
    tally = Tally(experiment_of(store))
    fresh: dict[int, int] = {}
    for results in (0, 3, 7, 8, 1000):
        with RunStore.read(cut(store.folder, results, tmp_path / f"cut {results}")) as part:
            standing = tally.look(part)
            assert not fresh.keys() & standing.fresh.keys()
            fresh |= standing.fresh
    once = stood(store)
    assert fresh == once.fresh
    for name in ("scores", "front", "items", "tokens", "done", "confirmed", "workers", "rewritten"):
        assert getattr(standing, name) == getattr(once, name), name


def test_too_many_results_are_counted_only(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.reports.standing.MANY", 3)
    standing = stood(run())
    assert not standing.scores
    assert standing.done
    assert "in the report, which reads all results: evomerge report" in shown(standing, width=200)


@pytest.mark.parametrize("fields", SCENARIOS)
def test_fits_80_columns(run: Make, fields: dict[str, Any]) -> None:
    text = shown(stood(run(**fields)))
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_shows_where_an_unfinished_run_stands(run: Make) -> None:
    store = run(finished=False, failures=("NaN in [layer] 3", "out of memory"), experts=("[bold]rev", "[/]"))
    standing = stood(store)
    text = shown(standing, width=120)
    assert standing.best is not None
    best = standing.scores[standing.best].mean
    for part in (
        "stopped",
        "12 of 30",
        "evaluate: NaN in [layer] 3",
        "50 % of the model",
        f"#{standing.best} best so far",
        f"{best.mean:.3f} ±{max(best.high - best.mean, best.mean - best.low):.3f}",
        "best anchor",
    ):
        assert part in text, part


def test_the_pace_counts_no_nights() -> None:
    assert _pace([]) is None
    assert _pace([(1, 0.0, 10.0), (2, 10.0, 20.0)]) == 360
    assert _pace([(1, 0.0, 10.0), (2, 5.0, 20.0), (3, 90_000.0, 90_010.0)]) == 360
    assert _pace([(1, 5.0, 6.0), (2, 0.0, 10.0)]) == 720


def test_a_glance_at_nothing_is_skipped(run: Make, tmp_path: Path) -> None:
    store = run()
    experiment = experiment_of(store)
    assert Glances(experiment, tmp_path / "none").look() is None
    glances = Glances(experiment, store.folder, seconds=3600)
    assert isinstance(glances.look(), Standing)
    assert glances.look() is None
    assert isinstance(glances.look(now=True), Standing)
