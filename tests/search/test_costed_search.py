"""Costs as objectives and limits of a whole run; tokens as a budget that a resumed run spends alike."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import Experiment
from evomerge.errors import ConfigError
from evomerge.fitting import space_of
from evomerge.opening import is_complete, open_run
from evomerge.outcome import Job, Outcome
from evomerge.recipe import Sizes
from evomerge.replay import replay_genomes
from evomerge.reports import summarize
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

_spec = importlib.util.spec_from_file_location("synthetic_costed", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
archive = synthetic.archive

COSTS: Any = ("layers", "kv_slots", "parameters", "flops")
SIZES = Sizes(outside=dict.fromkeys(COSTS, 0), layers=dict.fromkeys(COSTS, (1, 1, 1, 1)))
LINEUP = replace(synthetic.LINEUP, sizes=SIZES)
ROUTES = {"kind": "routing", "fewest": 2, "most": 7}
DEPTH = {"name": "depth", "cost": "layers", "goal": "min"}
GROUP = {"name": "both", "tasks": [{"task": "alpha", "weight": 2.0}, {"task": "beta"}]}


class LongAnswers(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Takes tokens; a longer path solves more items."""

    def run(self, job: Job) -> Outcome:
        done: Any = super().run(job)
        easy = [r for r in done.responses]
        values = [tuple(float((item * 7) % 10 < min(job.recipe.depth, 9)) for item in r.items) for r in easy]
        responses = tuple(replace(r, values=each) for r, each in zip(easy, values, strict=True))
        scored: Outcome = replace(
            done, responses=responses, tokens={task: 100 * len(ids) for task, ids in job.items.tasks}
        )
        return scored


def costed(**changes: Any) -> Experiment:
    fitness = {"objectives": [GROUP, DEPTH], "items": {"search": 12, "confirm": 20}, "confirm": {"shortlist": 3}}
    fitness |= changes.pop("fitness", {})
    made: Experiment = synthetic.experiment(**({"space": ROUTES, "fitness": fitness} | changes))
    return made


def drive(folder: Path, config: Experiment, steps: int | None = None, worker: Any = LongAnswers) -> None:
    executor = SerialExecutor(worker)
    with open_run(folder, config, LINEUP, space_of(config, LINEUP)) as store:
        search = Search(config, LINEUP, store=store, executor=executor, info=executor.start())
        for taken, _ in enumerate(search.run(Stop()), start=1):
            if taken == steps:
                return


def test_the_front_trades_a_score_for_layers(tmp_path: Path) -> None:
    drive(tmp_path, costed())
    with RunStore.read(tmp_path) as store:
        summary = summarize(store)
    assert summary.confirmation is not None
    for entry in summary.entries.values():
        for scores in filter(None, (entry.estimated, entry.confirmed)):
            depth = scores.each[1]
            assert depth.mean == depth.low == depth.high == entry.recipe.depth
    depths = {summary.entries[i].recipe.depth for i in summary.confirmation.front}
    assert len(depths) > 1
    assert summary.cost.tokens == 100 * summary.cost.items > 0
    assert replay_genomes(tmp_path) == 3


@pytest.mark.parametrize("estimator", [{"kind": "mean"}, {"kind": "irt", "universe": 30, "promote": 1}])
def test_a_limit_on_layers_keeps_longer_paths_off_the_front(tmp_path: Path, estimator: dict[str, Any]) -> None:
    limit = {"name": "small", "cost": "layers", "at_most": 4}
    config = costed(fitness={"objectives": [GROUP], "constraints": [limit], "estimator": estimator})
    drive(tmp_path, config)
    with RunStore.read(tmp_path) as store:
        summary = summarize(store)
    assert summary.confirmation is not None
    assert all(summary.entries[i].recipe.depth <= 4 for i in (*summary.front, *summary.confirmation.front))
    assert any(entry.broken for entry in summary.entries.values())


@pytest.mark.parametrize("limit", [{}, {"constraints": [{"name": "small", "cost": "flops", "at_most": 5}]}])
def test_a_cost_that_the_space_does_not_change_is_refused(limit: dict[str, Any]) -> None:
    plain = synthetic.experiment().model_dump(mode="json")["space"]
    objectives = [GROUP] if limit else [GROUP, DEPTH]
    config = costed(space=plain, fitness={"objectives": objectives} | limit)
    with pytest.raises(ConfigError, match="expected a space that changes the cost"):
        space_of(config, LINEUP)


def budgeted(tokens: int) -> Experiment:
    return costed(budget={"evaluations": 4 + 6 * 6, "tokens": tokens})


@pytest.mark.parametrize("steps", [1, 9, 11, 17, 23])
def test_a_budget_of_tokens_ends_a_resumed_run_where_it_ends_another(tmp_path: Path, steps: int) -> None:
    tokens = (4 + 3 * 6) * 24 * 100  # anchors and three generations
    drive(tmp_path / "whole", budgeted(tokens))
    drive(tmp_path / "cut", budgeted(tokens), steps)
    drive(tmp_path / "cut", budgeted(tokens))
    assert archive(tmp_path / "cut") == archive(tmp_path / "whole")
    with RunStore.read(tmp_path / "whole") as store:
        assert max(candidate.generation for candidate in store.candidates()) == 2


@pytest.mark.parametrize(("missing", "generations"), [(0, 3), (1, 2)])
def test_a_generation_is_begun_only_if_the_dearest_so_far_would_fit(
    tmp_path: Path, missing: int, generations: int
) -> None:
    drive(tmp_path, budgeted((4 + 3 * 6) * 24 * 100 - missing))
    with RunStore.read(tmp_path) as store:
        assert len({c.generation for c in store.candidates() if c.kind == "search"}) == generations
        assert int(json.loads(store.meta("next generation, tokens") or "0")) > 0


class LongBeta(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Items of one task take twenty times as many tokens."""

    def run(self, job: Job) -> Outcome:
        done: Any = super().run(job)
        each = {"alpha": 5, "beta": 100}
        scored: Outcome = replace(done, tokens={task: each[task] * len(ids) for task, ids in job.items.tasks})
        return scored


@pytest.mark.parametrize("estimator", [{"kind": "mean"}, {"kind": "irt", "universe": 30, "promote": 1}])
def test_a_race_asks_cheap_items_first_and_resumes_as_it_went(tmp_path: Path, estimator: dict[str, Any]) -> None:
    fitness = synthetic.experiment().model_dump(mode="json")["fitness"]
    config = synthetic.experiment(fitness=fitness | {"race": {"rounds": 3, "target_sd": 0.0}, "estimator": estimator})
    drive(tmp_path / "whole", config, worker=LongBeta)
    for steps in (5, 11, 17):
        drive(tmp_path / "cut", config, steps, worker=LongBeta)
    drive(tmp_path / "cut", config, worker=LongBeta)
    assert archive(tmp_path / "cut") == archive(tmp_path / "whole")
    with RunStore.read(tmp_path / "whole") as store:
        born = {c.id: c.generation for c in store.candidates() if c.kind == "search"}
        for result in store.results("search"):
            if result.round == 0 and result.candidate in born:
                counts = [len(response.items) for response in result.responses]
                assert counts == ([4, 4] if born[result.candidate] == 0 else [6, 2])
    assert replay_genomes(tmp_path / "whole") == 3


def test_more_tokens_let_a_finished_run_go_on(tmp_path: Path) -> None:
    few, more = budgeted(60_000), budgeted(90_000)
    drive(tmp_path, few)
    with RunStore.read(tmp_path) as store:
        assert is_complete(store, few)
        assert not is_complete(store, more)
        before = len(store.candidates())
    drive(tmp_path, more)
    with RunStore.read(tmp_path) as store:
        assert len(store.candidates()) > before
