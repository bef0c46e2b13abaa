"""Runs with made-up scores in real run folders, which do not wait for the disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from evomerge.outcome import Failed, ItemSet, Job, Phase, Responses, Scored
from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, Hop, Recipe, options_of, uniform
from evomerge.reports import Summary, summarize
from evomerge.rng import stream
from evomerge.runs import Candidate, RunStore

LAYERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A run to make.

    Attributes:
        goals: one objective per entry, named a, b, ...
        experts: pool names in recipes and labels.
        lift: how much better merged models are than experts; negative: worse.
        searched: candidates that were scored in the search.
        finished: the finalists were confirmed.
        failures: reasons of candidates that failed.
        paths: every merged model runs its first layer twice.
        algorithm: its kind.
    """

    goals: tuple[Literal["max", "min"], ...] = ("max", "max")
    experts: tuple[str, ...] = ("rev", "sort")
    lift: float = 0.35
    searched: int = 8
    finished: bool = True
    failures: tuple[str, ...] = ()
    name: str = "made-up"
    paths: bool = False
    algorithm: str = "random"


def experiment(scenario: Scenario) -> dict[str, Any]:
    objectives = [
        {"name": name, "task": f"task_{name}", "metric": "acc", "goal": goal}
        for name, goal in zip("abcdefgh", scenario.goals, strict=False)
    ]
    return {
        "version": 1,
        "name": scenario.name,
        "pool": {"base": "/models/base", "experts": {f"e{i}": f"/models/{i}" for i in range(len(scenario.experts))}},
        "space": {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "genes": {"weight": {}}},
        "fitness": {"tasks": ["/tasks"], "objectives": objectives, "items": {"search": 40, "confirm": 400}},
        "algorithm": {"kind": scenario.algorithm, "population": 4},
        "budget": {"evaluations": 30},
        "seed": 3,
    }


def merged(experts: Sequence[str], number: int, path: tuple[Hop, ...] = ()) -> Recipe:
    draw = stream(0, "test recipe", number)
    weight = Field.of(
        {role: draw.uniform(0, 1, (LAYERS if role in DEPTH_ROLES else 1, len(experts))).tolist() for role in ROLES}
    )
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=tuple(experts),
        parameters=(("lambda", Field.constant([1.0], LAYERS)), ("weight", weight)),
        path=path,
        dtype="bfloat16",
    )


def looped(experts: Sequence[str]) -> tuple[Hop, ...]:
    """The merge's layers, its first one twice, the last one an expert's and scaled."""
    own = tuple(Hop(layer=layer) for layer in (0, *range(LAYERS - 1)))
    return (*own, Hop(source=experts[0], layer=LAYERS - 1, scale=0.5))


def anchors(experts: Sequence[str]) -> list[Candidate]:
    recipes = {name: uniform([name], layers=LAYERS, dtype="bfloat16") for name in ("base", *experts)}
    recipes["uniform"] = uniform([*experts], layers=LAYERS, dtype="bfloat16")
    return [
        Candidate(id=i, kind="anchor", label=label, generation=-1, slot=i, genome=None, recipe=recipe)
        for i, (label, recipe) in enumerate(recipes.items())
    ]


def responses(scenario: Scenario, candidate: Candidate, phase: Phase) -> tuple[Responses, ...]:
    """Right and wrong answers; for objectives to be minimized, the other way round."""
    count, first = (40, 0) if phase == "search" else (400, 40)
    made = []
    for index, goal in enumerate(scenario.goals):
        skill = 0.3
        if candidate.kind != "anchor":
            skill += scenario.lift + 0.15 * math.sin(candidate.id + 2 * index)
        luck = stream(1, "test responses", candidate.id, index, phase).random(count)
        right = luck < skill
        values = tuple(float(r if goal == "max" else not r) for r in right)
        items = tuple(range(first, first + count))
        made.append(Responses(task=f"task_{'abcdefgh'[index]}", metric="acc", items=items, values=values))
    return tuple(made)


def write(scenario: Scenario, folder: Path) -> Path:
    manifest = {
        "experiment": experiment(scenario),
        "pool_digest": "0" * 16,
        "genes": ["weight.block.rev.k0"],
        "versions": {"evomerge": "0.1.0"},
        "created_at": 1_700_000_000.0,
    }
    with RunStore.create(folder, manifest) as store:
        references = anchors(scenario.experts)
        proposals = [
            Candidate(
                id=len(references) + i, kind="search", generation=i // 4, slot=i % 4, genome=(0.5,),
                recipe=merged(scenario.experts, i, looped(scenario.experts) if scenario.paths else ()),
            )
            for i in range(scenario.searched + len(scenario.failures))
        ]  # fmt: skip
        store.add_candidates([*references, *proposals])
        scored = proposals[: scenario.searched]
        for candidate in [*references, *scored] if scenario.searched else []:
            _score(store, scenario, candidate, "search")
        for candidate, reason in zip(proposals[scenario.searched :], scenario.failures, strict=True):
            _fail(store, candidate, reason)
        if scenario.finished:
            for candidate in [*references, *scored[-4:]]:
                _score(store, scenario, candidate, "confirm")
            store.set_meta("state", "finished")
    return folder


def _job(candidate: Candidate, phase: Phase, items: ItemSet) -> Job:
    return Job(candidate=candidate.id, phase=phase, recipe=candidate.recipe, items=items)


def _score(store: RunStore, scenario: Scenario, candidate: Candidate, phase: Phase) -> None:
    answers = responses(scenario, candidate, phase)
    job = _job(candidate, phase, ItemSet.of({r.task: r.items for r in answers}))
    store.start_attempt(job)
    seconds = {"materialize": 0.25, "forward": 1.5, "evaluate": 0.5}
    store.record(
        Scored(candidate=candidate.id, phase=phase, responses=answers, seconds=seconds, rewritten=0.5, worker="one"),
        job=job,
    )


def _fail(store: RunStore, candidate: Candidate, reason: str) -> None:
    job = _job(candidate, "search", ItemSet.of({"task_a": (0,)}))
    store.start_attempt(job)
    failed = Failed(candidate=candidate.id, phase="search", stage="evaluate", reason=reason, worker="two")
    store.record(failed, job=job, final=True)


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry(without_flushing: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., RunStore]]:
    """Make the run of a `Scenario`, given by its fields, and read it."""
    with ExitStack() as stack:

        def made(**fields: Any) -> RunStore:
            folder = tmp_path / f"run {len(list(tmp_path.iterdir()))}"
            return stack.enter_context(RunStore.read(write(Scenario(**fields), folder)))

        yield made


@pytest.fixture
def summary(run: Callable[..., RunStore]) -> Callable[..., Summary]:
    """The summary of such a run."""
    return lambda **fields: summarize(run(**fields))
