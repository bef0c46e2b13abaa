"""Lists of questions: what a model is asked, and what is said of lists that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.config import FitnessConfig
from evomerge.engines.lm_tasks import load_tasks
from evomerge.errors import ConfigError
from evomerge.questions import count_questions, questions_task

FRANCE = {"prompt": "The capital of France is", "answer": "Paris"}


def write(file: Path, *lines: object, encoding: str = "utf-8") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_text(text, encoding=encoding)
    return file


def faults(file: Path) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        count_questions(file)
    return [(fault.line, fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_model_is_asked_for_the_answer_behind_a_space(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path / "towns.jsonl", *[FRANCE | {"prompt": f"Town {n} is"} for n in range(12)], encoding=encoding)
    assert count_questions(file) == 12
    written = tmp_path / "mine.towns.yaml"
    written.write_text(questions_task(file))
    objectives = [{"name": "towns", "task": "towns"}]
    fitness = {"tasks": [str(written)], "objectives": objectives, "items": {"search": 6, "confirm": 6}}
    (task,) = load_tasks(FitnessConfig.model_validate(fitness), seed=0)
    task.task.build_all_requests()
    assert {request.args for request in task.task.instances} == {(f"Town {n} is", " Paris") for n in range(12)}
    assert "a space goes before the answer" in written.read_text()
    assert yaml.safe_load(written.read_text())["doc_to_target"] == " {{answer}}"


def test_equal_faults_are_told_once(tmp_path: Path) -> None:
    file = write(tmp_path / "keys.jsonl", *[{"question": "a", "response": "b"}] * 30)
    ((line, told),) = faults(file)
    assert line == 1
    assert "'prompt' and 'answer' missing among the keys ['question', 'response']" in told
    assert told.endswith("30 of 30 lines are like that")


def test_each_kind_of_fault_is_told_at_its_first_line(tmp_path: Path) -> None:
    empty = {"prompt": "", "answer": "b"}
    file = write(tmp_path / "mixed.jsonl", FRANCE, empty, "", empty, "[1]", "x", {"prompt": "a", "answer": 3})
    told = faults(file)
    assert [line for line, _ in told] == [2, 5, 6, 7]
    expected = ["2 of 6 lines are", "got '[1]'", "no JSON", "'answer' is 3"]
    assert all(text in message for text, (_, message) in zip(expected, told, strict=True))


@pytest.mark.parametrize(("encoding", "byte"), [("latin-1", "0xe9 at 13"), ("utf-16", "0xff at 0")])
def test_other_encodings_are_to_be_converted(tmp_path: Path, encoding: str, byte: str) -> None:
    file = write(tmp_path / "old.jsonl", {"prompt": " é", "answer": "b"}, encoding=encoding)
    ((_, told),) = faults(file)
    assert byte in told
    assert "iconv" in told
