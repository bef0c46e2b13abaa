from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest

from evomerge.errors import StoreError
from evomerge.outcome import ItemSet, Job
from evomerge.pareto import hypervolume, nondominated
from evomerge.reports import Summary, summarize
from evomerge.runs import RunStore

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
    assert found.to_data()["confirmed"] is None


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
    volumes = found.history.hypervolume
    assert len(volumes) == found.cost.evaluations == 12
    assert list(volumes) == sorted(volumes)
    costs = [[-e.estimated.each[0].mean, e.estimated.each[1].mean] for e in found.entries.values() if e.estimated]
    reference = [-found.history.reference[0], found.history.reference[1]]
    assert volumes[-1] == pytest.approx(hypervolume(costs, reference))
    assert found.front == tuple(sorted(nondominated(costs)))
    assert all(cost < corner for cost, corner in zip(max(costs[:4]), reference, strict=True))


def test_equal_anchors_still_give_a_reference(summary: Make) -> None:
    found = summary(experts=("only",), searched=1, finished=False)
    assert found.history is not None
    assert found.history.hypervolume[0] > 0


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
    with pytest.raises(StoreError, match=r"one of knee, best:a, best:b, or a number up to 11"):
        summary().pick(choice)


def test_commands_can_be_pasted(summary: Make) -> None:
    found = summary()
    for command in found.commands().values():
        assert found.folder in shlex.split(command)
    assert shlex.split(found.export_command(found.finalists[-1].id))[-1] == "best:b"


@pytest.mark.parametrize("finished", [True, False])
def test_data_survives_json(summary: Make, finished: bool) -> None:
    found = summary(finished=finished, failures=("NaN",))
    data = json.loads(json.dumps(found.to_data(), allow_nan=False))
    assert data["picks"] == found.picks
    with_recipe = {candidate["id"] for candidate in data["candidates"] if "recipe" in candidate}
    assert with_recipe >= {entry.id for entry in (*found.finalists, *found.anchors)}
    assert len(data["candidates"]) == 13


def test_reports_need_no_heavy_package() -> None:
    heavy = ["torch", "ray", "transformers", "lm_eval", "vllm", "matplotlib", "plotly", "jinja2"]
    code = f"import sys, evomerge.reports; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
