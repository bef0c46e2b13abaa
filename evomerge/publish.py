"""Export of one candidate: weights, model card, recipe, as a folder that loads like any other model."""

from __future__ import annotations

from pathlib import Path

import yaml

from evomerge.config import Experiment
from evomerge.engines.calibration import calibrate
from evomerge.errors import require
from evomerge.launch import lineup_of, open_pool
from evomerge.merge import mergekit_text, write_merge
from evomerge.merging.pool import ModelPool
from evomerge.opening import contents, refuse_change
from evomerge.reports import model_card, summarize
from evomerge.runs import RunStore
from evomerge.workers.candidate import quiet

__all__ = ["export", "licence_of"]


def licence_of(folder: Path) -> str | None:
    """The licence that a model's card names, if it has one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None


def _pool_of(store: RunStore, experiment: Experiment) -> ModelPool:
    pool = open_pool(experiment)
    refuse_change(store.folder, *contents(store.manifest, lineup_of(experiment, pool)))
    return pool


def export(folder: Path, choice: str, out: Path | None, *, adapter: bool = False) -> Path:
    """Write one candidate of a run as a Hugging Face folder, with its model card and a mergekit recipe.

    Args:
        folder: the run.
        choice: `knee`, `best:OBJECTIVE` or a candidate's number.
        out: the new folder; `RUN/export/CHOICE` (an adapter: `CHOICE-adapter`) if left out.
        adapter: write a LoRA adapter on the base instead of a full model.

    Returns:
        The new folder.

    Raises:
        ConfigError: an adapter is asked for that cannot hold this merge.
        StoreError: no such run or candidate, `out` exists, or the models have changed.
        DiskError: the disk refused a write; nothing is left behind.
    """
    require("torch", "merge")
    with RunStore.read(folder) as store:
        summary = summarize(store)
        number = summary.pick(choice)
        experiment = Experiment.model_validate(store.experiment)
        pool = _pool_of(store, experiment)
        recipe = summary.entries[number].recipe
    target = out or folder / "export" / (choice.replace(":", "-") + ("-adapter" if adapter else ""))
    names = {name: pool.folder(name).name for name in pool.names}  # a card is for others: no path of this machine
    card = model_card(
        summary,
        number,
        base_models=names,
        licences={name: licence for name in recipe.models if (licence := licence_of(pool.folder(name)))},
        mergekit_yaml=mergekit_text(recipe, pool, names),
    )
    with quiet(None):
        calibrate(pool, recipe.needs, experiment.engine)
    write_merge(recipe, pool, target, card, adapter=adapter)
    return target
