"""The models of an experiment: folders, and candidates of earlier runs, which are written out once.

A candidate of an earlier run becomes a folder of the cache, as `evomerge export` would write it, found again by what it
was made of. From then on it is an expert like any other.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from evomerge.artefact import write_candidate
from evomerge.config import ChildConfig, Experiment, PoolConfig
from evomerge.engines.candidate_adapters import require_adapters
from evomerge.errors import PoolError, StoreError, require
from evomerge.merging.atomic import alone
from evomerge.merging.cache import entry_of, make_room, touch
from evomerge.merging.checkpoint import Checkpoint, Model
from evomerge.merging.configured import configured_pool
from evomerge.merging.layout import layout_of
from evomerge.merging.lora import adapters_of
from evomerge.merging.moments import require_moments
from evomerge.merging.pool import ModelPool
from evomerge.merging.sizes import sizes_of
from evomerge.opening import Lineup, contents, refuse_change
from evomerge.recipe import Recipe
from evomerge.reports import summarize
from evomerge.runs import RunStore, experiment_of

__all__ = ["children_of", "lineup_of", "open_pool", "pinned", "placed", "recorded_pool", "repeats_in"]

_CHILDREN = "children"
"""The folder of the cache."""

_VERSION = 1
"""Raised whenever candidates would be written differently."""


def open_pool(experiment: Experiment) -> ModelPool:
    """The experiment's models, checked for everything that would keep them from being merged.

    Raises:
        PoolError: they cannot be read, do not fit each other, are no adapters where the operator or the engine needs
            some, or lack second moments where a transform does.
        StoreError, DiskError: see `placed`.
    """
    pool = configured_pool(placed(experiment.pool))
    if any(operator.space == "core" for operator in experiment.space.operators):
        adapters_of(pool.models, pool.experts)
    if experiment.engine.serves_adapters:
        require_adapters(pool)
    if "moments" in experiment.space.statistics:
        require_moments(pool)
    return pool


def repeats_in(pool: ModelPool) -> tuple[str, ...]:
    """One line for each expert whose weights are, file by file, those of the base or of an earlier expert.

    No weight is read for it. Weights that are equal in files that are not, `evomerge pool` finds.
    """
    first: dict[str, str] = {}
    for name in pool.names:
        first.setdefault(pool.changes[name], name)
    repeats = [(name, first[pool.changes[name]]) for name in pool.experts if first[pool.changes[name]] != name]
    return tuple(
        f"expert {name!r}: equal to the base in every weight; merging it changes nothing: remove it"
        if other == pool.base
        else f"expert {name!r}: the same as {other!r} in every weight; keep one of them"
        for name, other in repeats
    )


def recorded_pool(store: RunStore, experiment: Experiment) -> ModelPool:
    """The models of a run, which must be what they were.

    Raises:
        PoolError: they cannot be read or merged any more.
        StoreError: they have changed.
    """
    pool = open_pool(experiment)
    refuse_change(store.folder, *contents(store.manifest, lineup_of(experiment, pool)))
    return pool


def lineup_of(experiment: Experiment, pool: ModelPool) -> Lineup:
    """What the search must know of the pool."""
    dtype = experiment.engine.dtype
    return Lineup(
        base=pool.base,
        experts=pool.experts,
        layers=pool.layers,
        dtype=pool.dtype if dtype == "pool" else dtype,
        digest=pool.digest,
        sizes=sizes_of(pool),
        calibration="" if pool.calibration is None else pool.calibration.digest,
    )


def pinned(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with candidates of earlier runs settled: as the run in a folder began, or as they are called now.

    Args:
        experiment: as the user wrote it.
        folder: of the run that is begun or resumed.

    Raises:
        StoreError: a run that is not there, or without that candidate.
    """
    children = experiment.pool.children
    if not children:
        return experiment
    began: dict[str, ChildConfig] = {}
    if RunStore.exists(folder):
        with RunStore.read(folder) as store:
            began = experiment_of(store).pool.children
    settled = {name: _settled(child, began.get(name)) for name, child in children.items()}
    pool = experiment.pool.model_copy(update={"experts": {**experiment.pool.experts, **settled}})
    return experiment.model_copy(update={"pool": pool})


def placed(pool: PoolConfig) -> PoolConfig:
    """The pool with a folder in place of each candidate of an earlier run, written out if it is not there yet.

    Raises:
        StoreError: a run that is not there, without that candidate, or whose models have changed.
        PoolError: a candidate of another shape than the base, or models that cannot be read.
        DiskError: the cache cannot be written to.
        MissingExtraError: torch is not installed, and something must be written.
    """
    folders = {name: _written(name, child, pool.base) for name, child in pool.children.items()}
    return pool.model_copy(update={"experts": {**pool.experts, **folders}})


def children_of(pool: PoolConfig) -> dict[str, dict[str, Any]]:
    """The recipe of each expert that is a candidate of an earlier run, as plain data, with its digest."""
    found = {}
    for name, child in pool.children.items():
        with RunStore.read(child.run) as store:
            _, recipe = _chosen(child, store)
        found[name] = {"digest": recipe.digest, "recipe": recipe.to_data()}
    return found


def _settled(child: ChildConfig, began: ChildConfig | None) -> ChildConfig:
    """With number and recipe: those that a run began with, if it asks for the same thing."""
    if child.recipe is not None:
        return child
    if began is not None and (began.run, began.candidate) == (child.run, child.candidate):
        return began
    with RunStore.read(child.run) as store:
        number, recipe = _chosen(child, store)
    return child.model_copy(update={"number": number, "recipe": recipe.digest})


def _chosen(child: ChildConfig, store: RunStore) -> tuple[int, Recipe]:
    """The candidate that is meant, and its recipe.

    Raises:
        StoreError: there is none, or it is not the one that a run recorded.
    """
    if child.number is None and not child.candidate.isdigit() and store.meta("state") != "finished":
        raise StoreError(
            f"{child.run}: expected a finished run, because its confirmation tells which candidate is "
            f"{child.candidate!r}; got one that is {store.meta('state') or 'not begun'}; finish it (the same "
            "`evomerge run` goes on), or give a candidate's number"
        )
    number = summarize(store).pick(child.candidate) if child.number is None else child.number
    recipe = next((c.recipe for c in store.candidates() if c.id == number), None)
    if recipe is None or child.recipe not in (None, recipe.digest):
        got = "none" if recipe is None else f"the recipe {recipe.digest}"
        raise StoreError(
            f"{child.run}: expected candidate {number} with the recipe {child.recipe}, as when this was recorded; "
            f"got {got}; the folder holds another run now: restore the earlier one, or start a new run with --out"
        )
    return number, recipe


def _written(name: str, child: ChildConfig, base: Path) -> Path:
    """The folder of a candidate."""
    with RunStore.read(child.run) as store:
        number, recipe = _chosen(child, store)
        folder = entry_of(_CHILDREN, [_VERSION, store.manifest["pool_digest"], recipe.canonical()], "")
        if not folder.is_dir():
            _write(name, store, number, base, folder)
    touch(folder)
    return folder


def _write(name: str, store: RunStore, number: int, base: Path, folder: Path) -> None:
    require("torch", "merge")
    experiment = experiment_of(store)
    pool = recorded_pool(store, experiment)
    summary = summarize(store)
    _refuse_other_shape(f"{name}: candidate {number} of {store.folder}", summary.entries[number].recipe, pool, base)
    with alone(folder.with_suffix(".lock")):
        if not folder.is_dir():  # else another process has written it meanwhile
            make_room(folder.parent)
            write_candidate(summary, number, experiment, pool, folder)


def _refuse_other_shape(child: str, recipe: Recipe, pool: ModelPool, base: Path) -> None:
    """Before anything is written: later, all else that keeps models from being merged is found."""
    origin = pool.models[pool.base]
    ours, theirs = _shapes(Checkpoint.open(base)), _shapes(origin)
    if ours != theirs or recipe.depth != pool.layers:
        layers = 1 + max((layer for layer, _ in ours), default=-1)
        raise PoolError(
            f"{child}: expected layers of the shape that {base} has, {layers} of them; got {recipe.depth} of "
            f"{origin.folder}; choose a candidate of a run over models of this shape"
        )


def _shapes(model: Model) -> Counter[tuple[int, tuple[int, ...]]]:
    """How often each layer holds a tensor of each shape."""
    keys = layout_of(model.tensors)
    return Counter((key.layer, model.tensors[name].shape) for name, key in keys.items() if key.layer is not None)
