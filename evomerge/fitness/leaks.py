"""Whether what a search optimizes on is what merged models will be judged by. Knows how lm-eval describes a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FILE_BUILDERS", "public_split"]

FILE_BUILDERS = frozenset({"json", "csv", "parquet", "text", "arrow", "imagefolder", "audiofolder"})
"""Values of `dataset_path` that read plain files rather than a data set of the hub."""

_JUDGED_BY_VALIDATION = frozenset(
    {
        "boolq",
        "commonsense_qa",
        "coqa",
        "drop",
        "glue",
        "hellaswag",
        "nq_open",
        "piqa",
        "siqa",
        "social_i_qa",
        "squad_v2",
        "super_glue",
        "trivia_qa",
        "truthful_qa",
        "winogrande",
        "xnli",
    }
)
"""Data sets, by the last part of their name, whose published results are those on the validation split."""


def public_split(task: Mapping[str, Any]) -> str | None:
    """What a task scores that published results are about: `the split test of openai/gsm8k`; None if nothing.

    lm-eval scores `test_split`, or `validation_split` where there is none. A user judges his own files himself, and
    training splits are there to be optimized on.

    Args:
        task: a task file's content.
    """
    source, split = task.get("dataset_path"), task.get("test_split") or task.get("validation_split")
    if not isinstance(source, str) or not isinstance(split, str):
        return None
    if source in FILE_BUILDERS or source.startswith(("/", ".", "~")) or task.get("custom_dataset"):
        return None
    name = split.partition("[")[0].lower()
    held_out = name.startswith(("valid", "dev"))
    if "train" in name or (held_out and not _is_judged_by_validation(source, task)):
        return None
    return f"the split {split} of {source}"


def _is_judged_by_validation(source: str, task: Mapping[str, Any]) -> bool:
    """Where a task file has nothing but a validation split to score, lm-eval's results are those on it."""
    return not task.get("test_split") or source.rpartition("/")[2].lower() in _JUDGED_BY_VALIDATION
