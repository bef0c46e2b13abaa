"""A list of questions and answers as an lm-eval task, for those who have no task file. Knows nothing of models."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from evomerge.errors import ConfigError, Fault

__all__ = ["count_questions", "questions_task", "task_name"]

FEWEST = 12
"""Questions below which nothing can be searched and then confirmed."""

_KEYS = ("prompt", "answer")
_WANTED = 'expected {"prompt": "...", "answer": "..."}'

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
doc_to_target: " {{{{answer}}}}"   # a space goes before the answer; none with a chat template, or if prompts end in one
target_delimiter: ""             # which lm-eval leaves out when it scores an answer, so the space stands above
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
    """How many different questions a file holds.

    Raises:
        ConfigError: every line that is no question; too few of them; no such file.
    """
    try:
        lines = _text(file).split("\n")
    except OSError as error:
        raise ConfigError(str(file), [Fault(path="--questions", message=f"cannot be read: {error}")]) from error
    questions = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    faults = _faults(questions)
    different = set() if faults else {_asked(line) for line in questions.values()}
    if not faults and len(different) < FEWEST:
        message = (
            f"expected at least {FEWEST} questions, to search on some and confirm on others; got {len(different)} "
            f"different ones on {len(questions)} lines"
        )
        faults = [Fault(path="--questions", message=message)]
    if faults:
        raise ConfigError(str(file), faults)
    return len(different)


def _asked(line: str) -> tuple[str, ...]:
    question = json.loads(line)
    return tuple(question[key] for key in _KEYS)


def _text(file: Path) -> str:
    """What a file says; a byte order mark, which some editors put first, is none of it."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        message = (
            f"expected UTF-8 text; got the byte 0x{error.object[error.start]:02x} at {error.start}; save the file as "
            "UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW (name the encoding that it has)"
        )
        raise ConfigError(str(file), [Fault(path="--questions", message=message)]) from error


def _faults(questions: Mapping[int, str]) -> list[Fault]:
    """One for each kind of fault, at the first line that has it."""
    lines: defaultdict[str, list[int]] = defaultdict(list)
    told: dict[str, str] = {}
    for number, line in questions.items():
        for kind, got in _misfits(line):
            lines[kind].append(number)
            told.setdefault(kind, got)
    return [
        Fault(
            path="--questions",
            message=f"{_WANTED}; {told[kind]}{_alike(len(numbers), len(questions))}",
            line=numbers[0],
        )
        for kind, numbers in lines.items()
    ]


def _alike(faulty: int, lines: int) -> str:
    return "" if faulty == 1 else f"; {faulty} of {lines} lines are like that"


def _misfits(line: str) -> Iterator[tuple[str, str]]:
    """What keeps a line from being a question: its kind, and what was got."""
    try:
        question = json.loads(line)
    except ValueError as error:
        yield "no JSON", f"got no JSON ({error})"
        return
    if not isinstance(question, dict):
        yield "no object", f"got {line[:60]!r}"
        return
    if missing := [repr(key) for key in _KEYS if key not in question]:
        yield "keys", f"{' and '.join(missing)} missing among the keys {[*question][:8]}"
    for key in _KEYS:
        value = question.get(key, "none")
        if not isinstance(value, str) or not value.strip():
            yield f"{key} {type(value).__name__}", f"{key!r} is {json.dumps(value)[:60]}"
