"""The experiment that a run folder records, with the plugins that it needs."""

from __future__ import annotations

from pathlib import Path

from evomerge.config import Experiment, load_plugins
from evomerge.runs.store import RunStore

__all__ = ["experiment_of", "first_experiment_of"]


def experiment_of(store: RunStore) -> Experiment:
    """What a run searches, by what was last said of it; keys that were not there when it began have today's defaults.

    Its plugins are run first, because recipes and kinds may be theirs.

    Raises:
        ConfigError: a plugin is gone or is not what the run began with.
    """
    return _read(store, store.experiment)


def first_experiment_of(store: RunStore) -> Experiment:
    """The same, as it was when the run began."""
    return _read(store, store.manifest["experiment"])


def _read(store: RunStore, recorded: dict[str, object]) -> Experiment:
    plugins = recorded.get("plugins")
    files = [Path(text) for text in plugins] if isinstance(plugins, list) else []
    load_plugins(files, store.manifest.get("plugins", {}))
    return Experiment.model_validate(recorded)
