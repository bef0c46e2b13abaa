"""Proof that a run can be reproduced: its genomes from the seed, and single scores from the recorded recipes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import StoreError
from evomerge.launch import sole_worker_spec
from evomerge.opening import Lineup, refuse_change
from evomerge.outcome import Failed, ItemSet, Job, Phase, Responses
from evomerge.pools import recorded_pool
from evomerge.reports import summarize
from evomerge.runs import RunStore, experiment_of
from evomerge.search import Search
from evomerge.workers import WorkerInfo
from evomerge.workers.candidate import MergeWorker

__all__ = ["Rescored", "replay_genomes", "rescore"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """A candidate scored once more.

    Attributes:
        phase: which of its results was repeated.
        items: how many item values were compared.
        differing: pairs of task and item whose value is not the recorded one.
    """

    candidate: int
    phase: str
    items: int
    differing: tuple[tuple[str, int], ...]


def _recorded_info(store: RunStore) -> WorkerInfo:
    found = json.loads(store.meta("workers") or "{}")
    if not found:
        raise StoreError(f"{store.folder}: nothing was evaluated yet, so there is nothing to replay")
    return WorkerInfo(
        sizes={task: entry["items"] for task, entry in found["tasks"].items()},
        digests={task: entry["digest"] for task, entry in found["tasks"].items()},
        duplicates={
            task: tuple(entry["duplicates"]) for task, entry in found["tasks"].items() if "duplicates" in entry
        },
        device=found["device"],
        dtype=found["dtype"],
        versions={},
        pool_digest=found["model contents"],
    )


def replay_genomes(folder: Path) -> int:
    """Ask a fresh, equally seeded algorithm for every recorded generation and compare the genes.

    Needs neither models nor torch.

    Returns:
        How many whole generations were reproduced.

    Raises:
        StoreError: no such run, or the genes differ.
    """
    with RunStore.read(folder) as store:
        manifest = store.manifest
        experiment = experiment_of(store)
        lineup = Lineup(
            base="base",
            experts=tuple(experiment.pool.experts),
            layers=manifest["layers"],
            dtype=manifest["dtype"],
            digest=manifest["pool_digest"],
            sizes=store.sizes,
        )
        return Search(experiment, lineup, store=store, executor=None, info=_recorded_info(store)).replay()


def rescore(folder: Path, choice: str) -> Rescored:
    """Merge and score one candidate again, on the items of its record, and compare item by item.

    Args:
        folder: the run.
        choice: `knee`, `best:OBJECTIVE` or a candidate's number.

    Raises:
        StoreError: no such run or candidate, no result to compare with, the candidate fails now, or something changed.
    """
    with RunStore.read(folder) as store:
        experiment = experiment_of(store)
        number = summarize(store).pick(choice)
        phase, responses = _recorded(store, number)
        recipe = next(candidate.recipe for candidate in store.candidates() if candidate.id == number)
        recorded = _recorded_info(store)
        pool = recorded_pool(store, experiment)
    items = ItemSet.of({record.task: record.items for record in responses})
    worker = MergeWorker(sole_worker_spec(experiment, pool))
    refuse_change(folder, recorded.digests, worker.info().digests)
    outcome = worker.run(Job(candidate=number, phase=phase, recipe=recipe, items=items))
    if isinstance(outcome, Failed):
        raise StoreError(f"{folder}: candidate {number} fails now, at stage {outcome.stage}: {outcome.reason}")
    differing = tuple(
        (before.task, item)
        for before, now in zip(responses, outcome.responses, strict=True)
        for item, old, new in zip(before.items, before.values, now.values, strict=True)
        if old != new
    )
    return Rescored(
        candidate=number,
        phase=phase,
        items=sum(len(record.items) for record in responses),
        differing=differing,
    )


def _recorded(store: RunStore, number: int) -> tuple[Phase, tuple[Responses, ...]]:
    """What a candidate answered: in the confirmation if it was confirmed, else in the search."""
    phases: tuple[Phase, ...] = ("confirm", "search")
    for phase in phases:
        found = store.responses(phase).get(number)
        if found is not None:
            return phase, found
    raise StoreError(f"{store.folder}: candidate {number} has no result to compare with")
