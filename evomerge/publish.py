"""Models from the record of a run: the export of one candidate, and an exported recipe merged again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge.artefact import write_candidate
from evomerge.engines.calibration import calibrate
from evomerge.errors import ConfigError, Fault, require
from evomerge.merge import read_recipe, write_merge
from evomerge.pools import recorded_pool
from evomerge.reports import summarize
from evomerge.runs import RunStore, experiment_of
from evomerge.workers.candidate import quiet

__all__ = ["export", "merge_again", "run_around"]


def export(
    folder: Path,
    choice: str,
    out: Path | None,
    *,
    adapter: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write one candidate of a run as a Hugging Face folder, with its model card and a mergekit recipe.

    Args:
        folder: the run.
        choice: `knee`, `best:OBJECTIVE`, an anchor's name or a candidate's number.
        out: the new folder; `RUN/export/CHOICE` (an adapter: `CHOICE-adapter`) if left out.
        adapter: write a LoRA adapter on the base instead of a full model.
        note: is told which candidate that is.

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
    entry = summary.entries[summary.pick(choice)]
    note(f"{choice} is {'the anchor' if entry.kind == 'anchor' else 'candidate'} {entry.name}: {entry.description}")
    write_candidate(summary, entry.id, experiment, pool, target, adapter=adapter)
    return target


def run_around(file: Path) -> Path | None:
    """The run folder that a file lies in, as `recipe.json` does in `RUN/export/knee/`; None if it lies elsewhere."""
    return next((folder for folder in file.resolve().parents if RunStore.exists(folder)), None)


def merge_again(file: Path, run: Path, out: Path, *, adapter: bool = False) -> Path:
    """Merge a recipe over the models of a run.

    Args:
        file: the `recipe.json` of an export.
        run: the run folder, which knows where the models lie and what they are calibrated on.
        out: the new folder.
        adapter: write a LoRA adapter on the base instead of a full model.

    Returns:
        The new folder.

    Raises:
        ConfigError: the recipe cannot be read, names a model that the run does not have, or an adapter cannot hold it.
        StoreError: no such run, `out` exists, or the models have changed.
        DiskError: the disk refused a write; nothing is left behind.
    """
    require("torch", "merge")
    recipe = read_recipe(file)
    with RunStore.read(run) as store:
        experiment = experiment_of(store)
        pool = recorded_pool(store, experiment)
    if strangers := [name for name in recipe.models if name not in pool.names]:
        message = f"the run {run} has no such model; it has {', '.join(pool.names)}; give folders: --base, --expert"
        raise ConfigError(str(file), [Fault(path=name, message=message) for name in strangers])
    with quiet(None):
        calibrate(pool, recipe.needs, experiment.engine)
    write_merge(recipe, pool, out, adapter=adapter)
    return out
