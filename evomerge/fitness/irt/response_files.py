"""Response matrices of others: CSV, npz, and the sample logs that lm-eval writes.

Knows nothing of experiments: whether the items are those of a task is for the caller to check.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats

__all__ = ["ResponseMatrix", "read_responses"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResponseMatrix:
    """What models answered.

    Attributes:
        items: item ids `[N]`, sorted and distinct.
        responses: scores `[M, N]`, NaN where a model did not answer.
        prompts: hash of each item's prompt, where the source tells it.
    """

    items: tuple[int, ...]
    responses: Floats
    prompts: Mapping[int, str] = field(default_factory=dict)


def read_responses(source: Path, task: str, metric: str, filter_: str | None = None) -> ResponseMatrix:
    """Read a response matrix.

    Args:
        source: a `.csv` (a row per model, a column per item id, perhaps a first column of names; empty or `nan` where
            a model did not answer), an `.npz` (arrays `responses` `[models, items]` and `items`), or a folder with
            lm-eval's `samples_TASK_*.jsonl`, one folder below it per model, or one file in it per model.
        task: whose logs are read in a folder.
        metric: which of the logs' metrics.
        filter_: which of the logs' filters; may be left out where they have one.

    Raises:
        TaskError: nothing there, or something else.
    """
    if source.is_dir():
        return _from_logs(source, task, metric, filter_)
    try:
        if source.suffix == ".npz":
            items, rows = _from_npz(source)
        elif source.suffix == ".csv":
            items, rows = _from_csv(source)
        else:
            raise ValueError(f"a name that ends in {source.suffix or 'nothing'!r}")
        if rows.shape != (len(rows), len(items)) or 0 in rows.shape:
            raise ValueError(f"responses of shape {rows.shape} for {len(items)} items")
        if len(set(items)) < len(items):
            raise ValueError("an item that stands there twice")
    except FileNotFoundError:
        raise TaskError(f"{source}: expected responses; there is no such file; check the path") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TaskError(
            f"{source}: expected a response matrix (.csv, .npz or a folder of lm-eval's samples_*.jsonl); got {error}"
        ) from error
    order = np.argsort(items)
    return ResponseMatrix(items=tuple(items[i] for i in order), responses=rows[:, order])


def _from_npz(source: Path) -> tuple[list[int], Floats]:
    with source.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return [int(item) for item in file["items"]], np.atleast_2d(file["responses"]).astype(np.float64)


def _from_csv(source: Path) -> tuple[list[int], Floats]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    named = int(bool(header) and not header[0].strip().isdigit())
    items = [int(cell) for cell in header[named:]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells in row {number}, {len(header)} in the header")
    return items, np.array([[float(cell.strip() or "nan") for cell in row[named:]] for row in rows], ndmin=2)


def _from_logs(folder: Path, task: str, metric: str, filter_: str | None) -> ResponseMatrix:
    """A row per model; of several logs in a model's folder the latest counts."""
    name = re.compile(rf"samples_{re.escape(task)}(_\d{{4}}-\d\d-\d\dT.*)?\.jsonl")
    files = sorted(file for file in folder.rglob("samples_*.jsonl") if name.fullmatch(file.name))
    models = {file if file.parent == folder else file.parent: file for file in files}
    if not models:
        raise TaskError(
            f"{folder}: expected lm-eval's samples_{task}_*.jsonl (--log_samples); got none; check the path"
        )
    found: list[dict[int, float]] = []
    prompts: dict[int, str] = {}
    filters: set[str] = set()
    for file in models.values():
        answers: dict[int, float] = {}
        for sample in _samples(file):
            if filter_ in (None, sample.get("filter")):
                filters.add(str(sample.get("filter")))
                item = _take(file, sample, metric, answers)
                if prompts.setdefault(item, text := sample.get("prompt_hash", "")) != text:
                    raise TaskError(f"{file}: item {item} was asked in other words than of other models; keep one kind")
        found.append(answers)
    if len(filters) > 1:
        raise TaskError(f"{folder}: expected one filter; got {sorted(filters)}; name one in the experiment's objective")
    items = tuple(sorted(set().union(*found)))
    rows = np.array([[answers.get(item, np.nan) for item in items] for answers in found], ndmin=2)
    return ResponseMatrix(items=items, responses=rows, prompts={i: text for i, text in prompts.items() if text})


def _take(file: Path, sample: Mapping[str, Any], metric: str, answers: dict[int, float]) -> int:
    """Put one sample's score among the answers; its item."""
    try:
        item = int(sample["doc_id"])
        answers[item] = float(sample[metric])
    except (KeyError, TypeError, ValueError):
        known = sorted(sample.get("metrics") or ())
        raise TaskError(
            f"{file}: expected doc_id and a number for {metric!r} in every sample; got {sample.get(metric)!r}"
            f"{f'; it has {known}' if known else ''}"
        ) from None
    return item


def _samples(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            sample = json.loads(line)
            if not isinstance(sample, dict):
                raise ValueError(f"line {number} is no sample")
            yield sample
    except (OSError, ValueError) as error:
        raise TaskError(f"{file}: expected lm-eval's sample log; got {error}; log the samples again") from error
