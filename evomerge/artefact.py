"""One candidate of a run as a folder that loads like any other model: weights, model card, recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

from evomerge.config import Experiment
from evomerge.engines.calibration import calibrate
from evomerge.merge import mergekit_text, write_merge
from evomerge.merging.pool import ModelPool
from evomerge.reports import Summary, model_card
from evomerge.workers.candidate import quiet

__all__ = ["write_candidate"]


def write_candidate(
    summary: Summary, number: int, experiment: Experiment, pool: ModelPool, out: Path, *, adapter: bool = False
) -> None:
    """Write one candidate as a Hugging Face folder, with its model card and a mergekit recipe.

    Args:
        summary: the run.
        number: the candidate.
        experiment: of the run.
        pool: its models, as they were.
        out: the new folder.
        adapter: write a LoRA adapter on the base instead of a full model.

    Raises:
        ConfigError: an adapter is asked for that cannot hold this merge.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    recipe = summary.entries[number].recipe
    names = {name: pool.folder(name).name for name in pool.names}  # a card is for others: no path of this machine
    for name, child in experiment.pool.children.items():
        names[name] = f"candidate {child.number} of {child.run.name}"
    card = model_card(
        summary,
        number,
        base_models=names,
        licences={name: licence for name in recipe.models if (licence := _licence_of(pool.folder(name)))},
        mergekit_yaml=mergekit_text(recipe, pool, names),
    )
    with quiet(None):
        calibrate(pool, recipe.needs, experiment.engine)
    write_merge(recipe, pool, out, card, adapter=adapter)


def _licence_of(folder: Path) -> str | None:
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
