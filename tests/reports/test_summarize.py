from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from statistics import median

import pytest

from evomerge.errors import StoreError
from evomerge.outcome import ItemSet, Job
from evomerge.pareto import hypervolume, nondominated
from evomerge.recipe import Recipe
from evomerge.reports import Summary, summarize
from evomerge.reports.chronicle import utilization
from evomerge.reports.data import to_data
from evomerge.runs import Attempt, RunStore, Status

Make = Callable[..., Summary]


def test_finished_run_is_confirmed_on_unseen_items(summary: Make) -> None:
    found = summary()
    assert found.confirmation is not None
    assert found.state == "finished"
    assert [entry.name for entry in found.anchors] == ["base", "rev", "sort", "uniform"]
    assert [entry.name for entry in found.parents] == ["base", "rev", "sort"]
    assert len(found.finalists) == 4
    assert set(found.confirmation.front) <= {entry.id for entry in (*found.finalists, *found.anchors)}
    assert found.confirmation.knee in found.confirmation.front
    knee = found.entries[found.confirmation.knee]
    assert knee.confirmed is not None
    assert [measure.items for measure in knee.confirmed.each] == [400, 400]
    assert all(m.low < m.mean < m.high for m in knee.confirmed.each)


def test_gains_cover_every_finalist_anchor_and_objective(summary: Make) -> None:
    found = summary()
    assert found.confirmation is not None
    pairs = {(gain.candidate, gain.anchor, gain.of) for gain in found.confirmation.gains}
    assert pairs == {(c.id, a.id, of) for c in found.finalists for a in found.anchors for of in ("mean", "a", "b")}


def test_unfinished_run_claims_nothing(summary: Make) -> None:
    found = summary(finished=False)
    assert found.confirmation is None
    assert found.state == "stopped"
    assert found.knee in found.front
    assert {entry.id for entry in found.finalists} <= set(found.front)
    assert to_data(found)["confirmed"] is None


def test_interrupted_confirmation_claims_nothing(run: Callable[..., RunStore]) -> None:
    folder = run().folder
    with RunStore.open(folder) as store:
        store.set_meta("state", "stopped")
    with RunStore.read(folder) as store:
        assert summarize(store).confirmation is None


def test_running_without_a_driver_is_stopped(run: Callable[..., RunStore]) -> None:
    folder = run(finished=False).folder
    with RunStore.open(folder) as store:
        store.set_meta("state", "running")
        with RunStore.read(folder) as reader:
            assert summarize(reader).state == "running"
    with RunStore.read(folder) as reader:
        assert summarize(reader).state == "stopped"


def test_minimized_objectives_keep_their_own_direction(summary: Make) -> None:
    found = summary(goals=("max", "min"))
    assert found.confirmation is not None
    best, base = found.entries[found.confirmation.best["b"]], found.anchors[0]
    assert best.confirmed is not None
    assert base.confirmed is not None
    assert 0 <= best.confirmed.each[1].low < best.confirmed.each[1].mean < base.confirmed.each[1].mean
    gain = next(g for g in found.confirmation.gains if (g.candidate, g.anchor, g.of) == (best.id, base.id, "b"))
    assert gain.measure.low > 0


def test_history_is_the_hypervolume_of_what_was_there(summary: Make) -> None:
    found = summary(goals=("max", "min"), finished=False)
    assert found.history is not None
    volumes = found.history.curve.hypervolume
    assert len(volumes) == found.cost.evaluations == 12
    assert found.history.curve.spent["evaluations"] == tuple(range(1, 13))
    assert found.history.curve.spent["items"] == tuple(range(80, 13 * 80, 80))
    assert found.history.curve.spent["worker hours"][-1] == pytest.approx(12 * 2.25 / 3600)
    assert "tokens" not in found.history.curve.spent
    assert list(volumes) == sorted(volumes)
    costs = [[-e.estimated.each[0].mean, e.estimated.each[1].mean] for e in found.entries.values() if e.estimated]
    reference = [-found.history.reference[0], found.history.reference[1]]
    assert volumes[-1] == pytest.approx(hypervolume(costs, reference))
    assert found.front == tuple(sorted(nondominated(costs)))
    assert all(cost < corner for cost, corner in zip(max(costs[:4]), reference, strict=True))


def test_equal_anchors_still_give_a_reference(summary: Make) -> None:
    found = summary(experts=("only",), searched=1, finished=False)
    assert found.history is not None
    assert found.history.curve.hypervolume[0] > 0


def test_nothing_scored(summary: Make) -> None:
    found = summary(searched=0, finished=False, failures=("NaN",))
    assert found.knee is None
    assert found.history is None
    assert found.picks == {}
    assert found.cost.evaluations == 0
    assert "export" not in found.commands()


def test_reasons_and_names_are_one_printable_line(summary: Make) -> None:
    found = summary(experts=("rev\x1b[31m", "so\nrt"), failures=("first\nsecond\x1b]0;title\x07 \u202e end",))
    assert [failure.reason for failure in found.failures] == ["first second ]0;title end"]
    assert [entry.name for entry in found.anchors] == ["base", "rev [31m", "so rt", "uniform"]


def test_cost(summary: Make) -> None:
    cost = summary(failures=("NaN",)).cost
    assert cost.attempts == {"scored": 20, "failed": 1}
    assert (cost.evaluations, cost.budget, cost.confirmations, cost.copied) == (12, 30, 8, 0)
    assert cost.items == 12 * 80 + 8 * 800
    assert cost.seconds == {"materialize": 5.0, "forward": 30.0, "evaluate": 10.0}


def test_copies_are_not_paid_twice(run: Callable[..., RunStore]) -> None:
    folder = run(finished=False).folder
    with RunStore.open(folder) as store:
        twin = store.candidates()[-1]
        copy = type(twin)(
            id=twin.id + 1, kind="search", generation=9, slot=0, genome=twin.genome, recipe=twin.recipe
        )  # fmt: skip
        store.add_candidates([copy])
        (last,) = (r for r in store.results() if r.candidate == twin.id)
        items = ItemSet.of({r.task: r.items for r in last.responses})
        store.copy_result(Job(candidate=copy.id, phase="search", recipe=copy.recipe, items=items), (twin.id, 0))
        store.set_meta("budget", json.dumps({"evaluations": 50}))
    with RunStore.read(folder) as store:
        cost = summarize(store).cost
    assert (cost.evaluations, cost.copied, cost.items, cost.budget) == (13, 1, 12 * 80, 50)


@pytest.mark.parametrize("choice", ["knee", "best:a", "best:b", "7", "#7"])
def test_pick_finds_candidates(summary: Make, choice: str) -> None:
    found = summary()
    assert found.pick(choice) == (7 if "7" in choice else found.picks[choice])


@pytest.mark.parametrize("choice", ["best:c", "99", "", "²", "-1", "knee "])
def test_pick_says_what_there_is(summary: Make, choice: str) -> None:
    with pytest.raises(
        StoreError, match=r"one of knee, best:a, best:b, base, rev, sort, uniform, or a number up to 11"
    ):
        summary().pick(choice)


def test_pick_finds_anchors_by_name(summary: Make) -> None:
    found = summary()
    assert [found.pick(anchor.name) for anchor in found.anchors] == [anchor.id for anchor in found.anchors]


def test_pick_before_there_is_anybody_says_how_to_go_on(summary: Make) -> None:
    empty = replace(summary(searched=0, finished=False), entries={})
    with pytest.raises(StoreError, match="there is no candidate yet; to go on: evomerge run"):
        empty.pick("knee")


def test_commands_can_be_pasted(summary: Make) -> None:
    found = summary()
    for command in found.commands().values():
        assert found.folder in shlex.split(command)
    assert shlex.split(found.export_command(found.finalists[-1].id))[-1] == "best:b"


@pytest.mark.parametrize("finished", [True, False])
def test_data_survives_json(summary: Make, finished: bool) -> None:
    found = summary(finished=finished, failures=("NaN",))
    data = json.loads(json.dumps(to_data(found), allow_nan=False))
    assert data["picks"] == found.picks
    with_recipe = {candidate["id"] for candidate in data["candidates"] if "recipe" in candidate}
    assert with_recipe >= {entry.id for entry in (*found.finalists, *found.anchors)}
    assert len(data["candidates"]) == 13
    knee = found.entries[found.picks["knee"]]
    (told,) = (candidate for candidate in data["candidates"] if candidate["id"] == knee.id)
    assert Recipe.from_data(told["recipe"]) == knee.recipe
    assert knee.estimated is not None
    assert told["estimated"][1] == pytest.approx([*astuple(knee.estimated.each[0])], rel=1e-5)
    assert told["coefficients"][data["axes"].index("lambda")] == 1.0
    assert "variants" not in told
    changed = replace(knee, recipe=replace(knee.recipe, transforms=("none", "star")))
    again = to_data(replace(found, entries={**found.entries, knee.id: changed}))
    (told,) = (candidate for candidate in again["candidates"] if candidate["id"] == knee.id)
    assert told["variants"] == ["rev", "sort~star:40"]


def test_recipes_that_have_no_name_share_a_limited_room(summary: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = summary()
    monkeypatch.setattr("evomerge.reports.data._RECIPES", 0)
    whole = {candidate["id"] for candidate in to_data(found)["candidates"] if "recipe" in candidate}
    named = {*found.picks.values(), *found.front, *(entry.id for entry in (*found.anchors, *found.finalists))}
    assert whole == named
    assert len(whole) < len(found.entries)


def test_items_gained_and_lost_are_those_of_the_answers(run: Callable[..., RunStore]) -> None:
    store = run(goals=("max", "min"))
    found = summarize(store)
    assert found.confirmation is not None
    exchanges = found.confirmation.exchanges
    assert len(exchanges) == len(found.finalists) * len(found.parents) * 2
    answers = {
        (i, r.task): dict(zip(r.items, r.values, strict=True))
        for i, each in store.responses("confirm").items()
        for r in each
    }
    for one in exchanges:
        ours, theirs = answers[one.candidate, one.task], answers[one.anchor, one.task]
        sign = 1 if one.task == "task_a" else -1
        assert one.gained == tuple(i for i in ours if sign * (ours[i] - theirs[i]) > 0)
        assert one.lost == tuple(i for i in ours if sign * (ours[i] - theirs[i]) < 0)
        gain = next(
            g.measure.mean
            for g in found.confirmation.gains
            if (g.candidate, g.anchor, g.of) == (one.candidate, one.anchor, one.task[-1])
        )
        assert gain == pytest.approx((len(one.gained) - len(one.lost)) / one.items)


def test_generations_tell_what_the_algorithm_did(summary: Make) -> None:
    found = summary(failures=("NaN",))
    assert [(g.number, g.candidates, g.failed) for g in found.generations] == [(0, 4, 0), (1, 4, 0), (2, 1, 1)]
    assert found.generations[2].best is None
    means = [e.estimated.mean.mean for e in found.entries.values() if e.generation == 1 and e.estimated is not None]
    assert found.generations[1].best == max(means)
    assert found.generations[1].median == median(means)
    assert sum(g.front for g in found.generations) <= len(found.front)
    assert found.tries[0].reason == "NaN"
    assert len(found.tries) == 1


def attempt(worker: str, started: float, ended: float | None, status: Status = "scored") -> Attempt:
    return Attempt(
        candidate=0, phase="search", number=1, worker=worker, status=status, stage="", reason="",
        started_at=started, ended_at=ended,
    )  # fmt: skip


def test_utilization_counts_each_worker_once() -> None:
    found = utilization(
        [
            attempt("one", 100.0, 130.0),
            attempt("one", 110.0, 160.0),  # handed out early: it waited until 130
            attempt("two", 100.0, 130.0, "failed"),
            attempt("two", 190.0, 220.0),
            attempt("", 100.0, 500.0, "lost"),
            attempt("three", 150.0, None, "started"),
        ]
    )
    assert found is not None
    assert (found.start, found.step) == (100.0, 1.0)
    assert sum(found.workers["one"]) == pytest.approx(60.0)
    assert found.workers["two"] == (1.0,) * 30 + (0.0,) * 60 + (1.0,) * 30
    assert found.workers.keys() == {"one", "two"}
    assert utilization([]) is None


def test_a_random_search_is_measured_from_the_same_reference(run: Callable[..., RunStore]) -> None:
    store, other = run(algorithm="nsga2"), run(searched=6, lift=0.1, finished=False)
    alone, found = summarize(store).history, summarize(store, other).history
    assert alone is not None
    assert found is not None
    assert found.random is not None
    assert (found.reference, found.curve) == (alone.reference, alone.curve)
    assert len(found.random.hypervolume) == 10
    assert found.random.hypervolume[3] == found.curve.hypervolume[3]  # the same anchors


def test_only_a_random_search_of_the_same_experiment_compares(run: Callable[..., RunStore]) -> None:
    with pytest.raises(StoreError, match=r"expected a run with algorithm.kind: random .* got nsga2"):
        summarize(run(), run(algorithm="nsga2"))
    with pytest.raises(StoreError, match=r"same pool, space and fitness; got another fitness"):
        summarize(run(), run(goals=("max", "min")))
    with pytest.raises(StoreError, match=r"expected a random search with scored candidates; got none"):
        summarize(run(), run(searched=0, finished=False))


def test_reports_need_no_heavy_package() -> None:
    heavy = ["torch", "ray", "transformers", "lm_eval", "vllm", "matplotlib", "jinja2"]
    code = f"import sys, evomerge.reports; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
