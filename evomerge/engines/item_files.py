"""Reads the rows of local item files, so that they can be counted before anything is loaded. Needs no lm-eval.

Knows nothing of prompts: rows that differ may still ask the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_rows", "rows_of"]

_KINDS = {"json": (".json", ".jsonl"), "csv": (".csv",)}
"""Suffixes of the files that can be read here, by `dataset_path`."""


def rows_of(file: Path, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The rows that a task scores.

    Args:
        file: the task file.
        content: what it says, with all that it includes.

    Returns:
        A text for each row, equal for equal rows; None where only lm-eval can tell.
    """
    settings = content.get("dataset_kwargs") or {}
    suffixes = _KINDS.get(content.get("dataset_path") or "", ())
    if set(settings) != {"data_files"} or "process_docs" in content:
        return None
    named = _scored(settings["data_files"], content.get("test_split") or content.get("validation_split"))
    paths = [file.parent / name for name in named]
    if not paths or not all(path.suffix in suffixes for path in paths):
        return None
    return read_rows(*paths)


def _scored(files: Any, split: Any) -> list[str]:
    """Files of the split that is scored; without names of splits, there is only `train`."""
    named = files if isinstance(files, Mapping) else {"train": files}
    found = named.get(split, [])
    return [str(name) for name in (found if isinstance(found, list) else [found])]


def read_rows(*paths: Path) -> tuple[str, ...] | None:
    """The rows of some files, one after the other; None where one cannot be read, which whoever needs it says best."""
    try:
        return tuple(row for path in paths for row in _rows(path))
    except (OSError, ValueError, csv.Error):
        return None


def _rows(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return [json.dumps(row) for row in csv.reader(text.splitlines(keepends=True)) if row][1:]
    rows = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(str.strip, text.split("\n")))
    return [json.dumps(row, sort_keys=True) for row in rows]
