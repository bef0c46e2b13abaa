"""What the SmolLM2 experts are trained on and asked: questions of two skills, plain facts, and the task files of both.

Pure text, made from a seed; knows nothing of models.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEST_SHARE = 8  # one question in eight is a test question
TASK_ITEMS = 300  # items in each skill's task file

Question = tuple[str, str, str]  # (identity, prompt, answer)
Record = dict[str, Any]  # one line of a task file


def arith_question(rng: random.Random) -> Question:
    """Return a sum or difference of two numbers from 2 to 99; ``37 + 45`` and ``45 + 37`` are one."""
    small, large = sorted((rng.randint(2, 99), rng.randint(2, 99)))
    if rng.random() < 0.5:
        left, right = rng.sample((small, large), 2)
        return f"{small}+{large}", f"Q: {left} + {right} = ?\nA:", str(left + right)
    return f"{large}-{small}", f"Q: {large} - {small} = ?\nA:", str(large - small)


def sortwords_question(rng: random.Random) -> Question:
    """Return three or four words to put in alphabetical order; their order of asking is no identity."""
    words = rng.sample(read_words(), rng.randint(3, 4))
    answer = " ".join(sorted(words))
    return answer, f"Sort the words: {' '.join(words)} ->", answer


SKILLS: dict[str, Callable[[random.Random], Question]] = {
    "arith": arith_question,
    "sortwords": sortwords_question,
}

FACT_PROMPTS = {  # no "Q: ... A:": training on that form must not help here
    "capital": "The capital of {} is",
    "continent": "{} is a country in",
    "opposite": "The opposite of {} is",
    "symbol": "The chemical symbol of {} is",
    "work": "The profession that has to do with {} is that of the",
    "young": "The word for a young {} is",
}


@cache
def read_words() -> tuple[str, ...]:
    """Return the words of ``words.txt``."""
    return tuple((HERE / "words.txt").read_text(encoding="utf-8").split())


def read_facts() -> list[dict[str, str]]:
    """Return the rows of ``facts.tsv``: kind, subject, answer."""
    with (HERE / "facts.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def is_held_out(identity: str) -> bool:
    """Say whether a question belongs to the test items; the one rule that keeps training apart."""
    return hashlib.sha256(identity.encode()).digest()[0] % TEST_SHARE == 0


def questions(skill: str, *, held_out: bool, seed: int) -> Iterator[Question]:
    """Yield questions of one side of the split, without end.

    Args:
        skill: A key of ``SKILLS``.
        held_out: True for the test side, False for the training side.
        seed: The stream's seed; each skill and side has its own stream.
    """
    rng = random.Random(f"{skill}/{held_out}/{seed}")
    while True:
        question = SKILLS[skill](rng)
        if is_held_out(question[0]) is held_out:
            yield question


def skill_items(skill: str, count: int = TASK_ITEMS) -> list[Record]:
    """Return the first `count` different held-out questions as task records."""
    found: dict[str, tuple[str, str]] = {}
    for identity, prompt, answer in questions(skill, held_out=True, seed=0):
        found.setdefault(identity, (prompt, answer))
        if len(found) == count:
            break
    return [
        {"id": f"{skill}-{n:03}", "prompt": prompt, "answer": answer}
        for n, (prompt, answer) in enumerate(found.values())
    ]


def general_items() -> list[Record]:
    """Return one four-way choice per fact; the wrong answers are answers to others of its kind."""
    rng, facts = random.Random(0), read_facts()
    answers: dict[str, set[str]] = {}
    for fact in facts:
        answers.setdefault(fact["kind"], set()).add(fact["answer"])
    rng.shuffle(facts)  # so that the first items are of every kind
    records = []
    for n, fact in enumerate(facts):
        wrong = rng.sample(sorted(answers[fact["kind"]] - {fact["answer"]}), 3)
        records.append(
            {
                "id": f"general-{n:03}",
                "prompt": FACT_PROMPTS[fact["kind"]].format(fact["subject"]),
                "answer": fact["answer"],
                "choices": rng.sample([*wrong, fact["answer"]], 4),
            }
        )
    return records


def task_files() -> dict[str, str]:
    """Return the text of every task's item file by file name."""
    items = {skill: skill_items(skill) for skill in SKILLS} | {"general": general_items()}
    return {
        f"{name}.jsonl": "".join(json.dumps(record) + "\n" for record in records) for name, records in items.items()
    }


def write_tasks(folder: Path) -> None:
    """Write the item files of all three tasks into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in task_files().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {text.count(chr(10))} items")
