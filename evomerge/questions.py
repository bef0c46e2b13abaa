"""A list of questions and answers as an lm-eval task, for those who have no task file. Knows nothing of models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import ConfigError, Fault

__all__ = ["count_questions", "questions_task", "task_name"]

FEWEST = 12
"""Questions below which nothing can be searched and then confirmed."""

_MOST_FAULTS = 10

_TEMPLATE = """\
# A question counts when greedy decoding gives exactly its answer.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "      # between prompt and answer; "" where prompts end just where answers begin
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def task_name(file: Path) -> str:
    """The name of the task that a list of questions becomes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-._") or "questions"


def questions_task(file: Path) -> str:
    """The text of a task file over a list of questions.

    Args:
        file: one JSON object per line, with `prompt` and `answer`.
    """
    return _TEMPLATE.format(name=json.dumps(task_name(file)), file=json.dumps(str(file.resolve()), ensure_ascii=False))


def count_questions(file: Path) -> int:
    """How many questions a file holds.

    Raises:
        ConfigError: every line that is no question; too few of them; no such file.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [Fault(path="--questions", message=f"cannot be read: {error}")]) from error
    faults = [
        Fault(path="--questions", message=message, line=number)
        for number, line in enumerate(lines, 1)
        if line.strip()
        for message in _faults(line)
    ]
    found = sum(bool(line.strip()) for line in lines)
    if not faults and found < FEWEST:
        message = f"expected at least {FEWEST} questions, to search on some and confirm on others; got {found}"
        faults = [Fault(path="--questions", message=message)]
    if faults:
        raise ConfigError(str(file), faults[:_MOST_FAULTS])
    return found


def _faults(line: str) -> Iterator[str]:
    wanted = 'expected {"prompt": "...", "answer": "..."}'
    try:
        question = json.loads(line)
    except ValueError as error:
        yield f"{wanted}; got no JSON ({error})"
        return
    if not isinstance(question, dict):
        yield f"{wanted}; got {line[:60]!r}"
        return
    for key in ("prompt", "answer"):
        value = question.get(key)
        if not isinstance(value, str) or not value.strip():
            yield f"{wanted}; {key!r} is {json.dumps(value)[:60] if key in question else 'missing'}"
