from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evomerge.outcome import Failed, ItemSet, Job, Phase, Responses, Scored
from evomerge.recipe import OPERATORS, Field, Recipe, options_of
from evomerge.runs import Candidate, RunStore

MANIFEST = {"seed": 3, "experiment": {"name": "sample"}}
ITEMS = ItemSet.of({"rev": (1, 4, 7), "sort": (0, 2)})


class Samples:
    """Small records, all different and all determined by the candidate's number."""

    items = ITEMS

    def recipe(self, number: int) -> Recipe:
        return Recipe(
            operator="linear",
            options=options_of(OPERATORS["linear"], "paper"),
            base=None,
            sources=("a", "b"),
            parameters=(("weight", Field.constant([1.0, number / 100 + 0.1], layers=2)),),
            dtype="bfloat16",
        )

    def candidate(self, number: int, *, like: int | None = None) -> Candidate:
        recipe = self.recipe(number if like is None else like)
        genome = (number / 7, 0.1 + 0.2)
        return Candidate(
            id=number, kind="search", generation=number // 4, slot=number % 4, genome=genome, recipe=recipe
        )

    def job(self, number: int, phase: Phase = "search", attempt: int = 1) -> Job:
        return Job(candidate=number, phase=phase, recipe=self.recipe(number), items=ITEMS, attempt=attempt)

    def scored(self, number: int, phase: Phase = "search", shift: float = 0.0) -> Scored:
        responses = tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple((i * number) % 3 / 3 + shift for i in ids))
            for task, ids in ITEMS.tasks
        )
        return Scored(
            candidate=number, phase=phase, responses=responses, seconds={"forward": 0.25}, rewritten=0.75, worker="w1"
        )

    def failed(self, number: int, phase: Phase = "search", reason: str = "NaN in layer 3") -> Failed:
        return Failed(candidate=number, phase=phase, stage="evaluate", reason=reason, worker="w1")


@pytest.fixture(scope="session")
def samples() -> Samples:
    return Samples()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", MANIFEST) as store:
        yield store


@pytest.fixture
def filled(store: RunStore, samples: Samples) -> RunStore:
    """Four candidates: 0 scored, 1 failed for good, 2 on its way, 3 untouched."""
    store.add_candidates([samples.candidate(number) for number in range(4)])
    for number in range(3):
        store.start_attempt(samples.job(number))
    store.record(samples.scored(0), job=samples.job(0))
    store.record(samples.failed(1), job=samples.job(1), final=True)
    return store


@pytest.fixture
def complete(samples: Samples) -> Callable[[RunStore, int], None]:
    """Starts and records one candidate."""

    def run(store: RunStore, number: int) -> None:
        store.start_attempt(samples.job(number))
        store.record(samples.scored(number), job=samples.job(number))

    return run
