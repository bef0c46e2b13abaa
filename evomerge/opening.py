"""What stands before the first candidate: the pool, the anchors, and the run folder that fits the experiment."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import __version__
from evomerge.config import Experiment, plugin_digests
from evomerge.errors import StoreError
from evomerge.fitness import scores, with_costs
from evomerge.population import FEWEST_EARLIER, Evaluation
from evomerge.recipe import OutputDtype, Recipe, Sizes, uniform
from evomerge.runs import RunStore, first_experiment_of
from evomerge.spaces import Genome, SearchSpace

__all__ = [
    "Lineup",
    "anchors",
    "contents",
    "earlier_evaluations",
    "flat",
    "found_by",
    "is_complete",
    "open_run",
    "refuse_change",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineup:
    """What a search must know of its model pool.

    Attributes:
        base: pool name of the base model.
        experts: pool names of the experts, in the user's order.
        layers: layers of each model.
        dtype: dtype that merged weights are rounded to.
        digest: content digest of all models, and of the texts that they are calibrated on.
        sizes: how large the models are, for costs; None in runs that did not record it.
        calibration: content digest of those texts alone; empty where there are none.
    """

    base: str
    experts: tuple[str, ...]
    layers: int
    dtype: OutputDtype
    digest: str
    sizes: Sizes | None = None
    calibration: str = ""


def anchors(lineup: Lineup) -> dict[str, Recipe]:
    """What every front is measured against: base, each expert, uniform average; by label.

    The uniform average is that of the experts; with one expert, of base and expert. There are `Experiment.anchors`.
    """
    averaged = lineup.experts if len(lineup.experts) > 1 else (lineup.base, *lineup.experts)
    members = {name: (name,) for name in (lineup.base, *lineup.experts)} | {"uniform": averaged}
    return {label: uniform(names, layers=lineup.layers, dtype=lineup.dtype) for label, names in members.items()}


def flat(data: Any, path: str = "$") -> dict[str, Any]:
    """Nested mappings, and lists of them, as one mapping with dotted keys."""
    if isinstance(data, Mapping) and data:
        return {k: v for key, value in data.items() for k, v in flat(value, f"{path}.{key}").items()}
    if isinstance(data, list | tuple) and any(isinstance(each, Mapping) for each in data):
        return {k: v for number, each in enumerate(data) for k, v in flat(each, f"{path}[{number}]").items()}
    return {path: data}


_LONGEST = 100
"""Characters of a value in a message."""


_PLACE = (
    *("threads", "residency", "gpu_memory_utilization", "kv_cache_gib", "canary_every"),
    *("url", "model", "folder", "api_key", "timeout_seconds"),
)
"""Settings of an engine that change neither weights nor answers."""


_TOKENS = "$.pool.calibration.tokens"


def _fixed_part(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What a run may not change on resume: all but what changes no candidate, such as budget, executor and places."""
    free = ("budget", "executor", "name", "plugins", "trackers")
    kept = {key: value for key, value in experiment.items() if key not in free}
    kept["engine"] = {key: value for key, value in experiment["engine"].items() if key not in _PLACE}
    pool = experiment["pool"]
    kept["pool"] = {key: pool[key] for key in pool if key != "base"} | {"experts": sorted(pool["experts"])}
    kept["pool"]["children"] = {
        name: {key: child[key] for key in ("candidate", "number", "recipe")}
        for name, child in pool["experts"].items()
        if isinstance(child, dict)
    }
    kept["pool"]["calibration"] = {"tokens": (pool.get("calibration") or {}).get("tokens")}
    kept["fitness"] = {key: value for key, value in experiment["fitness"].items() if key != "tasks"}
    estimator = experiment["fitness"]["estimator"]
    kept["fitness"]["estimator"] = {key: value for key, value in estimator.items() if key != "banks"}
    kept["fitness"]["scorers"] = {
        name: {key: value for key, value in scorer.items() if key not in ("items", "text", "folder")}
        for name, scorer in experiment["fitness"]["scorers"].items()
    }
    return flat(kept)


def refuse_change(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare flat mappings.

    Raises:
        StoreError: they differ; the message lists every difference, and how to go on.
    """
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    settings = [key for key in keys if key.startswith("$")]
    if settings and "genes" in keys:
        keys.remove("genes")  # they follow from the settings
    if keys:
        lines = [f"  {key}: the run has {_brief(before, key)}, now it is {_brief(now, key)}" for key in keys]
        told = [f"{folder} holds a run of another experiment:", *lines, _way_out(folder, settings=bool(settings))]
        raise StoreError("\n".join(told))


def _brief(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    text = repr(values[key])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _way_out(folder: Path, *, settings: bool) -> str:
    if not settings:
        return "Restore what was there, or start a new run with --out."
    return (
        f"To go on with the run's own settings: evomerge run {shlex.quote(str(folder))}\n"
        "To use the new ones: choose another folder with --out. Once a run has begun, only its budget, executor, "
        "trackers and places of files may change."
    )


def contents(manifest: Mapping[str, Any], lineup: Lineup) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run was made of, and what is there now, by name, for `refuse_change`.

    The digest of the models covers the texts, so models are compared only where the texts are the same.
    """
    text = manifest.get("calibration", lineup.calibration)
    if text != lineup.calibration:
        return {"calibration text": text}, {"calibration text": lineup.calibration}
    return {"model contents": manifest["pool_digest"]}, {"model contents": lineup.digest}


def open_run(
    folder: Path,
    experiment: Experiment,
    lineup: Lineup,
    space: SearchSpace,
    note: Callable[[str], None] = lambda _: None,
) -> RunStore:
    """Create a run folder, or open the one that is there if it belongs to this experiment.

    Args:
        folder: new, or a run's.
        experiment: resolved.
        lineup: its pool's shape.
        space: its search space.
        note: takes a line about each limit of the budget that is not what the run had until now.

    Raises:
        StoreError: the folder cannot be used, or holds a run with another space, pool, fitness, algorithm or seed; or a
            warm start from a run that is not there, has other genes or answered none of the tasks.
    """
    resolved = experiment.model_dump(mode="json")
    if not RunStore.exists(folder):
        return RunStore.create(
            folder,
            {
                "experiment": resolved,
                "plugins": plugin_digests(experiment.plugins),
                "pool_digest": lineup.digest,
                "calibration": lineup.calibration,
                "layers": lineup.layers,
                "dtype": lineup.dtype,
                "sizes": None if lineup.sizes is None else lineup.sizes.to_data(),
                "genes": [gene.name for gene in space.genes],
                "warm_start": found_by(experiment, space),
                "versions": {"evomerge": __version__},
                "created_at": time.time(),
            },
        )
    store = RunStore.open(folder)
    try:
        plugins = flat(store.manifest.get("plugins", {}), "plugins")
        refuse_change(folder, plugins, flat(plugin_digests(experiment.plugins), "plugins"))
        before = _fixed_part(first_experiment_of(store).model_dump(mode="json")) | {"genes": store.manifest["genes"]}
        now = _fixed_part(resolved) | {"genes": [gene.name for gene in space.genes]}
        same_length = before.get(_TOKENS) == now.get(_TOKENS)  # else digests of texts differ, too
        contents_before, contents_now = contents(store.manifest, lineup) if same_length else ({}, {})
        refuse_change(folder, before | contents_before, now | contents_now)
        _refuse_smaller_budget(store, experiment)
        for change in _budget_changes(store.experiment["budget"], resolved["budget"]):
            note(f"{folder}: {change}")
        store.set_meta("experiment", json.dumps(resolved))
    except BaseException:
        store.close()
        raise
    return store


def earlier_evaluations(store: RunStore) -> tuple[Evaluation, ...]:
    """What a run was warm-started with, from its own record: the earlier run may have gone on or be gone."""
    return tuple(
        Evaluation(genome=Genome(tuple(values)), costs=tuple(costs))
        for values, costs in store.manifest.get("warm_start", ())
    )


def found_by(experiment: Experiment, space: SearchSpace) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Genomes and costs of the run that a warm start names, as this experiment scores them; empty without one.

    Raises:
        StoreError: that run is not there, has other genes, or too few candidates.
    """
    folder = getattr(experiment.algorithm, "warm_start", None)
    if folder is None:
        return []
    with RunStore.read(folder) as store:
        theirs = _meaning(first_experiment_of(store).model_dump(mode="json")["space"], store.manifest["genes"])
        ours = _meaning(experiment.model_dump(mode="json")["space"], [gene.name for gene in space.genes])
        if differing := sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)):
            raise StoreError(
                f"{folder}: a warm start needs a run over the same genes; differing: {', '.join(differing)}; "
                "choose another run or leave algorithm.warm_start out"
            )
        answered, objectives = store.responses("search"), experiment.fitness.objectives
        scored = [c for c in store.candidates() if c.genome is not None and c.id in answered]
        sizes = store.sizes
    if len(scored) < FEWEST_EARLIER:
        raise StoreError(f"{folder}: a warm start needs {FEWEST_EARLIER} scored candidates; got {len(scored)}")
    told = [scores(with_costs(answered[c.id], c.recipe, sizes, objectives), objectives) for c in scored]
    return [(c.genome or (), tuple(-e.mean for e in each)) for c, each in zip(scored, told, strict=True)]


def _meaning(space: Mapping[str, Any], genes: list[str]) -> dict[str, Any]:
    """What the genes of a run stand for: all of its space but where it began."""
    return flat({key: value for key, value in space.items() if key != "start_from"}, "space") | {"genes": genes}


def _searched(store: RunStore) -> int:
    """How many candidates of the search are recorded, anchors included."""
    return sum(candidate.kind != "answer" for candidate in store.candidates())


def is_complete(store: RunStore, experiment: Experiment) -> bool:
    """Whether a run has nothing left to do: it is confirmed, and its budget holds no further step."""
    if store.meta("state") != "finished":
        return False
    budget, searched = experiment.budget, _searched(store)
    step = experiment.algorithm.step_at(searched - experiment.anchors)
    if not step or searched + step > budget.evaluations:
        return True
    if budget.items is not None and int(store.meta("next generation") or 0) > budget.items:
        return True
    return budget.tokens is not None and int(store.meta("next generation, tokens") or 0) > budget.tokens


def _budget_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What of a budget is not what the run had until now, a line each."""
    for name, limit in now.items():
        old, new = (math.inf if value is None else value for value in (before.get(name), limit))
        if old != new:
            yield f"budget.{name} {'grows' if new > old else 'shrinks'} from {_limit(old)} to {_limit(new)}"


def _limit(value: float) -> str:
    return "no limit" if value == math.inf else f"{value:,}"


def _refuse_smaller_budget(store: RunStore, experiment: Experiment) -> None:
    recorded = _searched(store)
    if experiment.budget.evaluations < recorded:
        raise StoreError(
            f"{store.folder}: {recorded} candidates are recorded already; expected budget.evaluations of at least "
            f"that; got {experiment.budget.evaluations}"
        )
