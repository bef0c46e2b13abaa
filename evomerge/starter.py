"""`evomerge init`: a commented experiment file from a few paths."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from evomerge.config import load_experiment, shipped_folder
from evomerge.errors import ConfigError, Fault, PoolError, StoreError
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.layout import layout_of
from evomerge.questions import count_questions, questions_task, task_name

__all__ = ["starter", "task_names", "write_starter"]

_TEMPLATE = """\
# An evomerge experiment. Check it with `evomerge check {file}`, run it with `evomerge run {file}`.
# Paths may be relative to this file.
version: 1
name: {name}

pool:                      # Hugging Face folders with safetensors; the experts are fine-tuned from the base
  base: {base}
  experts:
{experts}

space: {space}   # a file in search_spaces/, a path, or the mapping itself

fitness:
  tasks: {tasks}
  objectives:              # each is the mean of a per-item metric; add `goal: min` where lower is better
{objectives}
  items:
    search: {search:<14} # items per task that score a candidate, drawn afresh each generation
    confirm: {confirm:<13} # items per task that only the final confirmation sees

algorithm:                 # others, and when to take them: docs/how-to.md, "Choose an algorithm"
{algorithm}

budget:
  evaluations: {evaluations}         # candidates in all, anchors included

seed: 0

engine:
  kind: transformers
  device: auto             # a GPU if there is one
  batch_size: 16

executor:
  kind: serial             # or: ray, with `workers: 2` and, on GPUs, `gpus: 1`
"""

_ALGORITHMS = {
    "cma": """\
  # One distribution for the mean of the objectives. Its middle is the answer, not the candidate that was luckiest.
  kind: cma
  population: 20""",
    "islands": """\
  # One distribution for each objective and one for all. Fronts come out larger than with nsga2, whose survivors keep
  # lucky scores of items that others are not asked, and more candidates pay.
  kind: islands
  population: 30""",
}
_CANDIDATES = 240
"""In whole generations of either algorithm."""

_MOST_ISLANDS = 6
"""Objectives that a population of 30 has islands for; a front of more says little."""


def task_names(path: Path) -> list[str]:
    """The lm-eval tasks that a YAML file, or the YAML files of a folder, define.

    Raises:
        ConfigError: nothing there, or no file that defines a task.
    """
    files = sorted(path.glob("**/*.yaml")) if path.is_dir() else [path]
    names = []
    for file in files:
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(data, dict) and isinstance(data.get("task"), str):
            names.append(data["task"])
    if not names:
        message = f"expected an lm-eval task YAML, or a folder of them, each with a `task:` name; none at {path}"
        raise ConfigError("evomerge init", [Fault(path="--task", message=message)])
    return names


def _name(text: str) -> str:
    """A file's name as the name of an experiment."""
    return _quoted(re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "experiment")


def _quoted(text: str) -> str:
    """Text as a YAML scalar."""
    return json.dumps(text, ensure_ascii=False)


def starter(
    file: Path,
    base: Path,
    experts: Mapping[str, Path],
    *,
    tasks: Sequence[Path],
    names: Sequence[str],
    fewest: int,
    layers: int | None = None,
) -> str:
    """The text of an experiment file.

    Args:
        file: where it will stand.
        base: folder of the base model.
        experts: folders of the experts, by name.
        tasks: lm-eval task files or folders.
        names: of the tasks in them.
        fewest: items that a task has, as far as is known.
        layers: of the models, if known.
    """
    search = min(64, fewest // 3)
    return _TEMPLATE.format(
        file=file.name,
        name=_name(file.stem),
        base=_quoted(str(base.resolve())),
        experts="\n".join(f"    {_quoted(name)}: {_quoted(str(path.resolve()))}" for name, path in experts.items()),
        space=_space("task_arithmetic" if len(experts) > 1 else "slerp", layers),
        tasks=json.dumps([str(path.resolve()) for path in tasks], ensure_ascii=False),
        objectives="\n".join(f"    - {{name: {_quoted(name)}, task: {_quoted(name)}}}" for name in names),
        search=search,
        confirm=min(128, fewest - search),
        algorithm=_ALGORITHMS["islands" if 1 < len(names) <= _MOST_ISLANDS else "cma"],
        evaluations=len(experts) + 2 + _CANDIDATES,
    )


def _space(name: str, layers: int | None) -> str:
    """A shipped space; itself, with a knot for each layer, where the models have fewer layers than it has knots."""
    file = shipped_folder("search_spaces") / f"{name}.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if layers is None or layers >= data["knots"]:
        return name
    return yaml.safe_dump(data | {"knots": layers}, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def _layers_of(base: Path) -> int | None:
    """None where nobody can tell; what is wrong with the model, `check` says."""
    try:
        keys = layout_of(Checkpoint.open(base).tensors)
    except PoolError:
        return None
    return 1 + max((key.layer for key in keys.values() if key.layer is not None), default=-1) or None


def write_starter(
    file: Path,
    base: Path,
    experts: Mapping[str, Path],
    tasks: Sequence[Path] = (),
    questions: Sequence[Path] = (),
) -> list[Path]:
    """Write an experiment file that `check` accepts, and a task file beside it for each list of questions.

    Returns:
        The files that were written, the experiment's first.

    Raises:
        StoreError: a file exists, or cannot be written.
        ConfigError: what was given makes no valid experiment; nothing is left.
    """
    if not tasks and not questions:
        message = "expected a task file, a folder of them, or --questions with a list of prompts and answers; got none"
        raise ConfigError("evomerge init", [Fault(path="--task", message=message)])
    fewest = min([192, *(count_questions(path) for path in questions)])
    made = {file.with_name(f"{file.stem}.{task_name(path)}.yaml"): questions_task(path) for path in questions}
    names = [name for path in tasks for name in task_names(path)] + [task_name(path) for path in questions]
    layers = _layers_of(base)
    text = starter(file, base, experts, tasks=[*tasks, *made], names=names, fewest=fewest, layers=layers)
    texts = {file: text} | made
    written: list[Path] = []
    try:
        for path, text in texts.items():
            _write_new(path, text)
            written.append(path)
        load_experiment(str(file))
    except (ConfigError, StoreError):
        for path in written:
            path.unlink()
        raise
    return written


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StoreError(
            f"{file}: cannot be written ({error.strerror}); choose a place that exists and a name that is free"
        ) from error
