"""From a name or path to a validated `Experiment`: shipped files, nested files, `--set`, absolute paths.

A name on the command line is first a path, then a shipped name: `experiments/quickstart.yaml` and `quickstart` are the
same file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from evomerge.config.coefficients import read_coefficients
from evomerge.config.faults import faults_of, near
from evomerge.config.fitness import FitnessConfig
from evomerge.config.models import Experiment
from evomerge.config.plugins import load_plugins
from evomerge.config.scorers import missing_files
from evomerge.config.space import SpaceConfig
from evomerge.errors import ConfigError, Fault
from evomerge.shipped import shipped_folder, shipped_names
from evomerge.yaml_lines import Document, KeyPath, Place, parse

__all__ = [
    "dump",
    "find",
    "load_experiment",
    "load_fitness",
    "load_space",
    "recorded_experiment",
]

Model = TypeVar("Model", bound=BaseModel)

_FOLDERS = {"space": "search_spaces", "fitness": "fitness", "executor": "cluster"}


def find(name: str, kind: str, beside: Path | None = None) -> Path:
    """The file that a name or path means.

    Args:
        name: a path, or the name of a shipped file.
        kind: folder of the shipped files.
        beside: folder that relative paths start from; the current one if left out.

    Raises:
        ConfigError: there is no such file.
    """
    path = (beside or Path.cwd()) / Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    shipped = shipped_folder(kind) / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped.resolve()
    names, what = shipped_names(kind), "a folder" if path.is_dir() else "no such file"
    message = f"{what}, and no shipped name{near(name, names) or f'; shipped are {names}'}"
    raise ConfigError(name, [Fault(path="$", message=message)])


def _read(path: Path) -> Document:
    try:
        document = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [Fault(path="$", message=f"cannot be read: {error}")]) from error
    if not isinstance(document.data, dict):
        raise ConfigError(str(path), [Fault(path="$", message="expected a mapping of keys and values")])
    return document


def _assign(document: Document, assignments: Sequence[str]) -> list[Fault]:
    """Write `a.b=c` into the data; values are read as YAML. Another `kind` starts from that kind's own defaults."""
    faults = []
    for assignment in assignments:
        option = f"--set {assignment}"
        keys, equals, text = assignment.partition("=")
        path = tuple(keys.strip().split("."))
        if not equals or not all(path):
            faults.append(Fault(path=option, message="expected key.key=value"))
            continue
        value = parse(text, option).data
        if path[-1] == "kind" and len(path) > 1:
            _renew(document, path[:-1], value, Place(None, option))
        if not document.put(path, value, Place(None, option)):
            faults.append(Fault(path=option, message="only keys of mappings can be set this way"))
    return faults


def _renew(document: Document, path: KeyPath, kind: Any, place: Place) -> None:
    """Empty a mapping whose kind is about to change: its other keys belong to the old kind."""
    mapping = document.data
    for key in path:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    if isinstance(mapping, dict) and mapping.get("kind") not in (None, kind):
        document.put(path, {}, place)


def _absolute(folder: Path, text: str) -> str:
    return str((folder / Path(text).expanduser()).resolve())


def _resolve_fitness(data: Any, folder: Path) -> None:
    if not isinstance(data, dict):
        return
    if isinstance(data.get("tasks"), list):
        data["tasks"] = [_absolute(folder, task) if isinstance(task, str) else task for task in data["tasks"]]
    estimator = data.get("estimator")
    if isinstance(estimator, dict) and isinstance(estimator.get("banks"), list):
        banks = estimator["banks"]
        estimator["banks"] = [_absolute(folder, bank) if isinstance(bank, str) else bank for bank in banks]
    screen = data.get("screen")
    if isinstance(screen, dict) and isinstance(screen.get("text"), str):
        screen["text"] = _absolute(folder, screen["text"])
    scorers = data.get("scorers")
    for scorer in scorers.values() if isinstance(scorers, dict) else ():
        if isinstance(scorer, dict):
            if "function" in scorer:
                scorer.setdefault("folder", str(folder))
            for key in ("items", "text", "folder"):
                if isinstance(scorer.get(key), str):
                    scorer[key] = _absolute(folder, scorer[key])


def _resolve_start(data: Any, folder: Path) -> None:
    for key in ("start_from", "warm_start"):
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = _absolute(folder, data[key])
    if isinstance(data, dict):
        _resolve_start(data.get("merge"), folder)


def _resolve_pool(data: Any, folder: Path) -> None:
    if not isinstance(data, dict):
        return
    if isinstance(data.get("base"), str):
        data["base"] = _absolute(folder, data["base"])
    if isinstance(data.get("experts"), dict):
        data["experts"] = {name: _resolved_expert(expert, folder) for name, expert in data["experts"].items()}
    if isinstance(calibration := data.get("calibration"), dict):
        text = calibration.get("text")
        if isinstance(text, str):
            calibration["text"] = _absolute(folder, text)
        elif isinstance(text, dict):
            calibration["text"] = {k: _absolute(folder, v) if isinstance(v, str) else v for k, v in text.items()}


def _resolved_expert(expert: Any, folder: Path) -> Any:
    if isinstance(expert, dict) and isinstance(expert.get("run"), str):  # runs lie where they were started
        beside = Path(_absolute(folder, expert["run"]))
        return expert | {"run": str(beside) if beside.is_dir() else _absolute(Path.cwd(), expert["run"])}
    return _absolute(folder, expert) if isinstance(expert, str) else expert


def _missing_paths(experiment: Experiment, document: Document) -> list[Fault]:
    """Model folders, task files and modules that do not exist."""
    folders: list[tuple[KeyPath, Path]] = [(("pool", "base"), experiment.pool.base)]
    experts = experiment.pool.experts.items()
    folders += [(("pool", "experts", name), path) for name, path in experts if isinstance(path, Path)]
    children = experiment.pool.children.items()
    runs: list[tuple[KeyPath, Path]] = [(("pool", "experts", name, "run"), child.run) for name, child in children]
    texts: dict[Path, KeyPath] = {path: ("pool", "calibration", "text") for path in experiment.pool.texts.values()}
    if experiment.fitness.screen is not None:
        texts[experiment.fitness.screen.text] = ("fitness", "screen", "text")
    tasks: list[tuple[KeyPath, Path]] = [(("fitness", "tasks", i), p) for i, p in enumerate(experiment.fitness.tasks)]
    listed = getattr(experiment.fitness.estimator, "banks", ())
    banks: list[tuple[KeyPath, Path]] = [(("fitness", "estimator", "banks", i), p) for i, p in enumerate(listed)]
    scorers = ((("fitness", "scorers", *key), message) for key, message in missing_files(experiment.fitness.scorers))
    return [
        *(document.fault(key, f"expected a model folder; nothing at {p}") for key, p in folders if not p.is_dir()),
        *(
            document.fault(key, f"expected a run folder; nothing at {p}; run that first")
            for key, p in runs
            if not p.is_dir()
        ),
        *(document.fault(key, f"expected a text file; nothing at {p}") for p, key in texts.items() if not p.is_file()),
        *(document.fault(key, f"expected a task file or folder; nothing at {p}") for key, p in tasks if not p.exists()),
        *(document.fault(key, f"expected an item bank; nothing at {p}") for key, p in banks if not p.is_file()),
        *(document.fault(key, message) for key, message in scorers),
    ]


def _validate(model: type[Model], document: Document) -> Model:
    """Strict validation through JSON: lists may become tuples and text paths, but no number is read from text."""
    try:
        return model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        raise ConfigError(document.source, faults_of(error, model, document)) from error


def _graft(document: Document, key: str, folder: Path) -> Fault | None:
    """Replace a name or path under `key` by the content of the file that it means."""
    name = document.data.get(key)
    if not isinstance(name, str):
        return None
    try:
        path = find(name, _FOLDERS[key], folder)
        nested = _read(path)
    except ConfigError as error:
        fault = error.faults[0]
        place = f" (line {fault.line})" if fault.line else ""
        return document.fault((key,), f"{error.source}{place}: {fault.message}")
    _resolve_fitness(nested.data, path.parent)
    _resolve_start(nested.data, path.parent)
    document.graft((key,), nested)
    return None


def _graft_start(document: Document, space: KeyPath) -> list[Fault]:
    """Replace the path under a space's `start_from` by the coefficients in that file."""
    data = document.data
    for key in space:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("start_from"), str):
        return []
    path = (*space, "start_from")
    try:
        document.graft(path, read_coefficients(Path(data["start_from"])))
    except ConfigError as error:
        del data["start_from"]
        return [document.fault(path, f"{error.source}: {fault.message}") for fault in error.faults]
    return []


def load_experiment(name: str, assignments: Sequence[str] = ()) -> Experiment:
    """Read an experiment, with everything it names, and report all faults at once.

    Args:
        name: a path, or the name of a shipped experiment.
        assignments: changes like `budget.evaluations=100` or `space=ties`; paths in them are relative to the file.

    Raises:
        ConfigError: any fault, in this file or in a file that it names.
    """
    path = find(name, "experiments")
    return _experiment(_read(path), path.parent, assignments)


def recorded_experiment(data: Mapping[str, Any], source: str, assignments: Sequence[str] = ()) -> Experiment:
    """An experiment from the record of a run, with changes.

    Args:
        data: the resolved experiment, as plain data.
        source: what to call the record in messages.
        assignments: as for `load_experiment`.

    Raises:
        ConfigError: any fault.
    """
    return _experiment(Document(source=source, data=copy.deepcopy(dict(data))), Path.cwd(), assignments)


def _experiment(document: Document, folder: Path, assignments: Sequence[str]) -> Experiment:
    whole = [text for text in assignments if text.partition("=")[0].strip() in _FOLDERS]
    faults = _assign(document, whole)
    missing = {key: _graft(document, key, folder) for key in _FOLDERS}
    faults += _assign(document, [text for text in assignments if text not in whole])
    faults += [fault for fault in missing.values() if fault is not None]
    _resolve_pool(document.data.get("pool"), folder)
    _resolve_fitness(document.data.get("fitness"), folder)
    _resolve_start(document.data.get("space"), folder)
    _resolve_start(document.data.get("algorithm"), folder)
    faults += [*_graft_start(document, ("space",)), *_graft_start(document, ("space", "merge"))]
    faults += _load_plugins(document, folder)
    try:
        experiment = _validate(Experiment, document)
    except ConfigError as error:
        unread = tuple(f"$.{key}" for key, fault in missing.items() if fault is not None)
        faults += [fault for fault in error.faults if not (unread and fault.path.startswith(unread))]
        raise ConfigError(document.source, faults) from error
    faults += _missing_paths(experiment, document)
    if faults:
        raise ConfigError(document.source, faults)
    return experiment


def _load_plugins(document: Document, folder: Path) -> list[Fault]:
    """Run what stands under `plugins`, before anything is validated that it may register."""
    files = document.data.get("plugins")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return []
    document.data["plugins"] = [_absolute(folder, file) for file in files]
    try:
        load_plugins([Path(file) for file in document.data["plugins"]])
    except ConfigError as error:
        return [document.fault(("plugins",), fault.message) for fault in error.faults]
    return []


def load_space(name: str) -> SpaceConfig:
    """Read a search space by path or shipped name.

    Raises:
        ConfigError: any fault.
    """
    path = find(name, "search_spaces")
    document = _read(path)
    _resolve_start(document.data, path.parent)
    if faults := [*_graft_start(document, ()), *_graft_start(document, ("merge",))]:
        raise ConfigError(document.source, faults)
    return _validate(SpaceConfig, document)


def load_fitness(name: str) -> FitnessConfig:
    """Read a fitness by path or shipped name.

    Raises:
        ConfigError: any fault.
    """
    path = find(name, "fitness")
    document = _read(path)
    _resolve_fitness(document.data, path.parent)
    return _validate(FitnessConfig, document)


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML: absolute paths, every default spelled out; `load_experiment` reads it back."""
    return str(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
