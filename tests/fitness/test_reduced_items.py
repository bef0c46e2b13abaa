"""Chosen items: what is asked, that the scores hold, that the audit is random, and that failures leave no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.config import ConstraintConfig, IrtConfig, ItemsConfig, ObjectiveConfig, RaceConfig
from evomerge.errors import TaskError
from evomerge.fitness import Assessment, Told, split_items
from evomerge.fitness.irt import fit_bank
from evomerge.fitness.reduced import ReducedItems
from evomerge.outcome import Responses, together

OBJECTIVE = ObjectiveConfig(name="a", task="a")
SPLIT = split_items({"a": 160}, ItemsConfig(search=24, confirm=40), seed=5)
DIGESTS = {"a": "words"}
DIFFICULTY = np.random.default_rng(1).normal(size=160)


def reader(constraints: tuple[ConstraintConfig, ...] = (), banks: Any = None, **config: Any) -> ReducedItems:
    return ReducedItems(
        SPLIT,
        [OBJECTIVE],
        constraints,
        IrtConfig(kind="irt", **config),
        digests=DIGESTS,
        banks=banks or (),
        seed=5,
    )


class Crowd:
    """Candidates of given abilities, whose answers are drawn once."""

    def __init__(self, abilities: dict[int, float]) -> None:
        self.answers = {
            number: (np.random.default_rng(number).random(160) < 1 / (1 + np.exp(2 * (DIFFICULTY - ability)))).astype(
                float
            )
            for number, ability in abilities.items()
        }

    def truth(self, number: int) -> float:
        return float(np.mean(self.answers[number][list(SPLIT.pool["a"])]))

    def play(self, dialogue: Any) -> tuple[dict[int, Told], list[Any]]:
        answered: dict[int, list[tuple[Responses, ...]]] = {}
        asked = []
        try:
            questions = next(dialogue)
            while True:
                asked.append(questions)
                for number, items in questions.items():
                    ids = dict(items.tasks)["a"]
                    values = tuple(self.answers[number][list(ids)].tolist())
                    answered.setdefault(number, []).append(
                        (Responses(task="a", metric="acc", items=ids, values=values),)
                    )
                questions = dialogue.send({n: together(answered[n]) for n in questions})
        except StopIteration as end:
            return end.value, asked


def course(
    generations: int, promote: int = 2, race: RaceConfig | None = None
) -> tuple[list[dict[int, Told]], Crowd, list[Any]]:
    """A few generations of candidates whose ability follows from their genome."""
    genomes = {
        10 + 12 * g + k: tuple(np.random.default_rng([g, k]).random(3).tolist())
        for g in range(generations)
        for k in range(12)
    }
    crowd = Crowd({0: -0.5, 1: 0.3, 2: 0.0, **{n: 2 * sum(x) - 3 for n, x in genomes.items()}})
    assessment = Assessment(
        reader(promote=promote), [OBJECTIVE], contest="mean", search=24, race=race, promote=promote, seed=5
    )
    told, asked = [], []
    for g in range(generations):
        born = {n: genomes[n] for n in range(10 + 12 * g, 22 + 12 * g)}
        found, questions = crowd.play(assessment.generation(g, {"base": 0, "x": 1, "uniform": 2}, born))
        told.append(found)
        asked.append(questions)
    return told, crowd, asked


def test_candidates_that_answered_little_do_not_draw_the_next_ones_to_the_population() -> None:
    """Strong parents, a bank of weak models, nobody promoted: what is learned from a few answers must not mislead."""
    items = SPLIT.pool["a"]
    weak = Crowd({1000 + k: a for k, a in enumerate(np.random.default_rng(2).normal(-1.0, 0.7, 150))})
    bank = fit_bank(
        np.stack([row[list(items)] for row in weak.answers.values()]),
        task="a",
        metric="acc",
        items=items,
        digest="words",
    )
    crowd = Crowd({number: 1.0 for number in range(3 + 60)})
    assessment = Assessment(
        reader(banks=[bank], promote=0), [OBJECTIVE], contest="mean", search=4, race=None, promote=0, seed=5
    )
    biases = []
    for g in range(5):
        born = {n: tuple(np.random.default_rng(n).random(3).tolist()) for n in range(3 + 12 * g, 15 + 12 * g)}
        told, _ = crowd.play(assessment.generation(g, {"base": 0, "x": 1, "uniform": 2}, born))
        biases.append(np.mean([told[n].scores[0] - crowd.truth(n) for n in born]))
    assert abs(np.mean(biases[1:])) < abs(biases[0]) + 0.02


def test_anchors_and_promoted_candidates_are_known_exactly() -> None:
    told, crowd, asked = course(3)
    for number in (0, 1, 2):
        assert told[0][number].scores[0] == pytest.approx(crowd.truth(number))
        assert told[0][number].sds[0] == pytest.approx(0.0, abs=1e-9)
    for found in told:
        full = [number for number, one in found.items() if number >= 10 and one.items == len(SPLIT.pool["a"])]
        assert len(full) == 2
        for number in full:
            assert found[number].scores[0] == pytest.approx(crowd.truth(number))
        assert {one.items for number, one in found.items() if number >= 10} == {24, 120}
    assert [len(questions) for questions in asked] == [2, 2, 2]


def test_few_chosen_items_beat_as_many_random_ones() -> None:
    """From the second generation on there is a model: errors are well below those of a mean of 24 items."""
    told, crowd, _ = course(6)
    late = [(n, one) for found in told[1:] for n, one in found.items() if one.items < 120]
    errors = np.array([one.scores[0] - crowd.truth(n) for n, one in late])
    plain = np.array(
        [np.random.default_rng(n).choice(crowd.answers[n][list(SPLIT.pool["a"])], 24).mean() for n, _ in late]
    )
    plain -= np.array([crowd.truth(n) for n, _ in late])
    assert np.abs(errors).mean() < 0.75 * np.abs(plain).mean()
    z = errors / np.array([one.sds[0] for _, one in late])
    assert (np.abs(z) < 1.645).mean() > 0.75


def test_equal_answers_lead_to_equal_questions() -> None:
    first, second = course(2), course(2)
    assert first[2] == second[2]
    assert first[0] == second[0]


def test_confirmation_items_are_never_asked() -> None:
    _, _, asked = course(3)
    seen = {
        i for questions in asked for one in questions for items in one.values() for _, ids in items.tasks for i in ids
    }
    assert not seen.intersection(dict(SPLIT.confirm.tasks)["a"])


def test_a_race_spends_fewer_items() -> None:
    whole = sum(one.items for found in course(3, promote=0)[0] for one in found.values())
    raced = sum(one.items for found in course(3, promote=0, race=RaceConfig(rounds=3))[0] for one in found.values())
    assert raced < whole


def test_a_candidate_that_fails_leaves_no_trace() -> None:
    whole = reader()
    questions = {**whole.start({"base": 0}), **whole.ask({5: (0.1,), 6: (0.2,)}, 0, {"a": 24})}
    crowd = Crowd({0: 0.0, 5: 0.5, 6: -0.5})
    answers: dict[int, Any] = {}
    for number, items in questions.items():
        ids = dict(items.tasks)["a"]
        answers[number] = (
            Responses(task="a", metric="acc", items=ids, values=tuple(crowd.answers[number][list(ids)].tolist())),
        )
    whole.learn(answers | {6: None})
    assert sorted(whole.told([0, 5, 6], 0)) == [0, 5]


def test_a_relative_limit_compares_with_all_that_the_anchor_answered() -> None:
    limit = ConstraintConfig(name="kept", task="a", at_least=0.0, relative_to="base")
    whole = reader((limit,))
    crowd = Crowd({0: 0.8, 5: -2.0, 6: 2.5})
    questions = {**whole.start({"base": 0}), **whole.ask({5: (0.1,), 6: (0.2,)}, 0, {"a": 24})}
    whole.learn(
        {
            n: (
                Responses(
                    task="a",
                    metric="acc",
                    items=dict(items.tasks)["a"],
                    values=tuple(crowd.answers[n][list(dict(items.tasks)["a"])].tolist()),
                ),
            )
            for n, items in questions.items()
        }
    )
    told = whole.told([0, 5, 6], 0)
    assert told[0].violation == pytest.approx(0.0, abs=1e-9)
    assert told[5].violation == pytest.approx(told[0].scores[0] - told[5].scores[0])
    assert told[6].violation == 0.0


def test_a_bank_of_other_prompts_is_refused() -> None:
    matrix = (np.random.default_rng(0).random((40, 160)) < 0.5).astype(float)
    bank = fit_bank(matrix, task="a", items=range(160), digest="other words")
    with pytest.raises(TaskError, match="fitted on others"):
        reader(banks=[bank])


def test_a_bank_makes_the_first_round_adaptive() -> None:
    abilities = np.random.default_rng(2).normal(size=(60, 1))
    matrix = (np.random.default_rng(3).random((60, 160)) < 1 / (1 + np.exp(2 * (DIFFICULTY - abilities)))).astype(float)
    bank = fit_bank(matrix, task="a", items=range(160), digest="words")
    whole = reader(banks=[bank])
    whole.start({"base": 0})
    asked = whole.ask({5: (0.1,), 6: (0.9,)}, 0, {"a": 24})
    assert asked[5] != asked[6], "each has its own audit"
    assert all(len(items) == 24 for items in asked.values())
