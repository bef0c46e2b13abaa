"""What a shell offers for a half-typed argument: shipped names, files, run folders, candidates.

Every TAB starts a process, so nothing heavy is imported, and a run's database is looked at directly: as it is on the
disk, which for a live run may be a moment ago. What cannot be read offers nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import typer

from evomerge.shipped import shipped_names

__all__ = ["candidates", "executors", "experiments", "runs", "starts", "trackers"]

_DATABASE = "run.db"
_MANY = 64
"""Candidates that are offered by number."""


def experiments(incomplete: str) -> list[str]:
    """Shipped experiments and YAML files."""
    return [*_beginning(incomplete, shipped_names("experiments")), *_files(incomplete, ".yaml")]


def starts(incomplete: str) -> list[str]:
    """What `run` takes: experiments and run folders."""
    return [*experiments(incomplete), *runs(incomplete)]


def executors(incomplete: str) -> list[str]:
    """Kinds of executors, shipped worker profiles and YAML files."""
    names = ["serial", "ray", *shipped_names("cluster")]
    return [*_beginning(incomplete, names), *_files(incomplete, ".yaml")]


def trackers(incomplete: str) -> list[str]:
    """Trackers by name."""
    return _beginning(incomplete, ("tensorboard", "wandb", "mlflow", "trackio"))


def runs(incomplete: str) -> list[str]:
    """Run folders here, and those in folders that lead to some."""
    found = [(text, path) for text, path in _paths(incomplete) if path.is_dir()]
    below = [
        (f"{text}/{child.name}", child)
        for text, path in found
        if not _is_run(path)
        for child in sorted(path.glob("*/"))
    ]
    return [text for text, path in (*found, *below) if _is_run(path)]


def candidates(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names and numbers of the candidates of the run that was typed before."""
    typed = [ctx.params.get("run"), *ctx.args]  # an option without its value keeps arguments from being assigned
    with suppress(sqlite3.Error, OSError, RuntimeError, ValueError, LookupError, TypeError):
        folders = (Path(each).expanduser() for each in typed if each is not None)  # shells complete before they expand
        folder = next(filter(_is_run, folders), None)
        return _beginning(incomplete, ["knee"] if folder is None else _candidates(folder))
    return []


def _candidates(folder: Path) -> Iterator[str]:
    uri = f"{(folder / _DATABASE).absolute().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        notes = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('manifest', 'experiment')").fetchall())
        query = "SELECT DISTINCT candidate FROM result WHERE phase = 'confirm' ORDER BY candidate LIMIT ?"
        confirmed = [str(number) for (number,) in db.execute(query, (_MANY,))]
        anchors = [name for (name,) in db.execute("SELECT label FROM candidate WHERE kind = 'anchor' ORDER BY id")]
    manifest = json.loads(notes["manifest"])
    experiment = json.loads(notes["experiment"]) if "experiment" in notes else manifest["experiment"]
    yield "knee"
    yield from (f"best:{objective['name']}" for objective in experiment["fitness"]["objectives"])
    yield from anchors
    yield from confirmed


def _is_run(folder: Path) -> bool:
    return (folder / _DATABASE).is_file()


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str) -> list[tuple[str, Path]]:
    """What lies where the half-typed path leads, and begins like its last part: as it would be typed on, and where.

    Some shells drop whatever does not begin as it was typed, so `./` and `~/` stay.
    """
    cut = incomplete.rfind("/") + 1
    lead, name = incomplete[:cut], incomplete[cut:]
    with suppress(OSError, RuntimeError, ValueError):
        folder = Path(lead or ".").expanduser()
        paths = sorted(path for path in folder.iterdir() if path.name.startswith(name) and path.name[0] != ".")
        return [(f"{lead}{path.name}", path) for path in paths]
    return []


def _files(incomplete: str, suffix: str) -> list[str]:
    """Files of a kind, and folders that may hold some."""
    found = [(text, path.is_dir()) for text, path in _paths(incomplete) if path.suffix == suffix or path.is_dir()]
    return [f"{text}/" if folder else text for text, folder in found]
