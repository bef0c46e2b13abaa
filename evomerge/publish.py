"""Export of one candidate: weights, model card, recipe, as a folder that loads like any other model."""

from __future__ import annotations

from pathlib import Path

from evomerge.artefact import write_candidate
from evomerge.errors import require
from evomerge.pools import recorded_pool
from evomerge.reports import summarize
from evomerge.runs import RunStore, experiment_of

__all__ = ["export"]


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
        experiment = experiment_of(store)
        pool = recorded_pool(store, experiment)
    target = out or folder / "export" / (choice.replace(":", "-") + ("-adapter" if adapter else ""))
    write_candidate(summary, summary.pick(choice), experiment, pool, target, adapter=adapter)
    return target
