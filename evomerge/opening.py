"""What stands before the first candidate: the pool, the anchors, and the run folder that fits the experiment."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import __version__
from evomerge.config import Experiment
from evomerge.errors import StoreError
from evomerge.outcome import ItemSet
from evomerge.recipe import OutputDtype, Recipe, uniform
from evomerge.runs import RunStore
from evomerge.spaces import SearchSpace, build_space

__all__ = ["Lineup", "anchors", "flat", "is_complete", "open_run", "refuse_change", "space_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineup:
    """What a search must know of its model pool.

    Attributes:
        base: pool name of the base model.
        experts: pool names of the experts, in the user's order.
        layers: layers of each model.
        dtype: dtype that merged weights are rounded to.
        digest: content digest of all models.
    """

    base: str
    experts: tuple[str, ...]
    layers: int
    dtype: OutputDtype
    digest: str


def anchors(lineup: Lineup) -> dict[str, Recipe]:
    """What every front is measured against: base, each expert, uniform average; by label.

    The uniform average is that of the experts; with one expert, of base and expert. There are `Experiment.anchors`.
    """
    averaged = lineup.experts if len(lineup.experts) > 1 else (lineup.base, *lineup.experts)
    members = {name: (name,) for name in (lineup.base, *lineup.experts)} | {"uniform": averaged}
    return {label: uniform(names, layers=lineup.layers, dtype=lineup.dtype) for label, names in members.items()}


def flat(data: Any, path: str = "$") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if isinstance(data, Mapping) and data:
        return {k: v for key, value in data.items() for k, v in flat(value, f"{path}.{key}").items()}
    return {path: data}


def _fixed_part(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What a run may not change on resume: all but budget, executor, threads, residency, name and places of files."""
    kept = {key: value for key, value in experiment.items() if key not in ("budget", "executor", "name")}
    kept["engine"] = {key: value for key, value in experiment["engine"].items() if key not in ("threads", "residency")}
    pool = experiment["pool"]
    kept["pool"] = {key: pool[key] for key in pool if key != "base"} | {"experts": sorted(pool["experts"])}
    kept["pool"]["calibration"] = {"tokens": (pool.get("calibration") or {}).get("tokens")}
    kept["fitness"] = {key: value for key, value in experiment["fitness"].items() if key != "tasks"}
    kept["fitness"]["scorers"] = {
        name: {key: value for key, value in scorer.items() if key not in ("items", "text", "folder")}
        for name, scorer in experiment["fitness"]["scorers"].items()
    }
    return flat(kept)


def _spelled_out(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded experiment with today's defaults for keys that were not there when it began."""
    return Experiment.model_validate(recorded).model_dump(mode="json")


def refuse_change(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare flat mappings.

    Raises:
        StoreError: they differ; the message lists every difference.
    """
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        lines = [f"  {key}: the run has {before.get(key)!r}, now it is {now.get(key)!r}" for key in keys]
        raise StoreError(
            "\n".join(
                [
                    f"{folder} holds a run of another experiment:",
                    *lines,
                    "Undo the change, or start a new run with --out.",
                ]
            )
        )


def open_run(folder: Path, experiment: Experiment, lineup: Lineup, space: SearchSpace) -> RunStore:
    """Create a run folder, or open the one that is there if it belongs to this experiment.

    Raises:
        StoreError: the folder cannot be used, or holds a run with another space, pool, fitness, algorithm or seed.
    """
    resolved = experiment.model_dump(mode="json")
    if not RunStore.exists(folder):
        return RunStore.create(
            folder,
            {
                "experiment": resolved,
                "pool_digest": lineup.digest,
                "layers": lineup.layers,
                "dtype": lineup.dtype,
                "genes": [gene.name for gene in space.genes],
                "versions": {"evomerge": __version__},
                "created_at": time.time(),
            },
        )
    store = RunStore.open(folder)
    try:
        before = _fixed_part(_spelled_out(store.manifest["experiment"])) | {
            "model contents": store.manifest["pool_digest"],
            "genes": store.manifest["genes"],
        }
        now = _fixed_part(resolved) | {"model contents": lineup.digest, "genes": [gene.name for gene in space.genes]}
        refuse_change(folder, before, now)
        _refuse_smaller_budget(store, experiment)
        store.set_meta("experiment", json.dumps(resolved))
    except BaseException:
        store.close()
        raise
    return store


def _searched(store: RunStore) -> int:
    """How many candidates of the search are recorded, anchors included."""
    return sum(candidate.kind != "answer" for candidate in store.candidates())


def is_complete(store: RunStore, experiment: Experiment) -> bool:
    """Whether a run has nothing left to do: it is confirmed, and its budget holds no further generation."""
    if store.meta("state") != "finished":
        return False
    budget, population = experiment.budget, experiment.algorithm.population
    if _searched(store) + population > budget.evaluations or budget.items is None:
        return _searched(store) + population > budget.evaluations
    results = store.results("search")
    tasks = {response.task for result in results for response in result.responses}
    spent = sum(len(ItemSet.of({r.task: r.items for r in result.responses})) for result in results)
    return spent + population * experiment.fitness.items.search * len(tasks) > budget.items


def _refuse_smaller_budget(store: RunStore, experiment: Experiment) -> None:
    recorded = _searched(store)
    if experiment.budget.evaluations < recorded:
        raise StoreError(
            f"{store.folder}: {recorded} candidates are recorded already; expected budget.evaluations of at least "
            f"that; got {experiment.budget.evaluations}"
        )


def space_of(experiment: Experiment, lineup: Lineup) -> SearchSpace:
    """The experiment's search space over a pool.

    Raises:
        ConfigError: the space contradicts the pool.
    """
    return build_space(
        experiment.space,
        base=lineup.base,
        experts=lineup.experts,
        layers=lineup.layers,
        dtype=lineup.dtype,
        seed=experiment.seed,
    )
