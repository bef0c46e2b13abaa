"""What a race finds for the same tokens if it knows what items cost: two tasks on landscapes, one twenty times as long.

A search without a model: answers are coins whose chances are the true accuracies. Both ways race on the same landscapes
with the same seeds, until the tokens are spent; one is never told of them, and so asks as many items of both tasks.
What is compared is the true hypervolume of the algorithm's answer, relative to that of the true front.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from landscapes import GROUPS, Merge, front_volume, made, profile, volume
from search import built
from table import QUICK, Row

from evomerge.config import ItemsConfig, ObjectiveConfig, RaceConfig
from evomerge.fitness import Assessment, split_items
from evomerge.fitness.assessment import Told
from evomerge.fitness.shared import SharedItems
from evomerge.outcome import ItemSet, Responses, together
from evomerge.population import Evaluation
from evomerge.spaces import Genome

SEEDS = range(4 if QUICK else 24)
COSTS = {"choice": 1, "long": 20}
ITEMS, KNOTS = 48, 4
TOKENS = 12 * 20 * ITEMS * sum(COSTS.values())
"""So much that without a race twelve generations of 20 are scored."""

_Rounds = list[tuple[Responses, ...]]


class Coins:
    """Answers that are right as often as the true accuracies say.

    Attributes:
        tokens: that all answers took.
    """

    def __init__(self, tasks: Sequence[Merge], seed: int) -> None:
        self._tasks = dict(zip(COSTS, tasks, strict=True))
        self._rng = np.random.default_rng((seed, 2000))
        self.tokens = 0

    def truth(self, genome: Genome) -> tuple[float, ...]:
        """Accuracy by task."""
        return tuple(task.accuracy(profile(genome.values, KNOTS)) for task in self._tasks.values())

    def answer(self, genome: Genome, items: ItemSet) -> tuple[tuple[Responses, ...], Mapping[str, int]]:
        """Responses, and the tokens that they took."""
        chances = dict(zip(COSTS, self.truth(genome), strict=True))
        taken = {task: COSTS[task] * len(ids) for task, ids in items.tasks}
        self.tokens += sum(taken.values())
        values = {task: (self._rng.random(len(ids)) < chances[task]).astype(float) for task, ids in items.tasks}
        return tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple(values[task].tolist()))
            for task, ids in items.tasks
        ), taken


def assessed(seed: int) -> Assessment:
    """An open race in three rounds, for places on the front."""
    objectives = [ObjectiveConfig(name=task, task=task) for task in COSTS]
    split = split_items(dict.fromkeys(COSTS, 1000), ItemsConfig(search=ITEMS, confirm=100), seed)
    race = RaceConfig(rounds=3)
    reader = SharedItems(split, objectives, [])
    return Assessment(reader, objectives, contest="front", search=ITEMS, race=race, promote=0, seed=seed)


def raced(
    assessment: Assessment, coins: Coins, generation: int, genomes: Mapping[int, Genome], *, told: bool
) -> dict[int, Told]:
    """Score a generation, given by number; `told`: whether the race hears what items cost."""
    answers: defaultdict[int, _Rounds] = defaultdict(list)
    dialogue = assessment.generation(generation, {}, {number: genome.values for number, genome in genomes.items()})
    questions = next(dialogue)
    while True:
        for number, items in questions.items():
            responses, taken = coins.answer(genomes[number], items)
            answers[number].append(responses)
            if told:
                assessment.took(items, taken)
        try:
            questions = dialogue.send({number: together(answers[number]) for number in questions})
        except StopIteration as end:
            return dict(end.value)


def searched(seed: int, *, told: bool) -> float:
    """What a search is worth that ends when the tokens are spent, in per cent."""
    tasks = (made(seed, 0), made(seed, 1))
    coins, assessment, generation = Coins(tasks, seed), assessed(seed), 0
    algorithm = built({"kind": "nsga2", "population": 20}, KNOTS * GROUPS, len(tasks), seed)
    while coins.tokens < TOKENS:
        genomes = dict(enumerate(algorithm.ask(), start=1000 * generation))
        found = raced(assessment, coins, generation, genomes, told=told)
        scores = [(genome, found[number].scores) for number, genome in genomes.items()]
        algorithm.tell([Evaluation(genome=genome, costs=tuple(-s for s in each)) for genome, each in scores])
        generation += 1
    return float(100.0 * volume([coins.truth(g) for g in algorithm.answer()]) / front_volume(*tasks))


def race_rows() -> Iterator[Row]:
    """Both ways side by side, and the paired difference."""
    found = {told: [searched(seed, told=told) for seed in SEEDS] for told in (False, True)}
    gained = [a - b for a, b in zip(found[True], found[False], strict=True)]
    half = 1.96 * stdev(gained) / len(gained) ** 0.5
    both = f"{fmean(found[False]):.1f} -> {fmean(found[True]):.1f}"
    text = f"{both}: {fmean(gained):+.1f} +- {half:.1f} over {len(gained)} seeds"
    yield Row(name="race, cost 1 : 20, equal tokens, hypervolume", target="reported", measured=text, met=None)


if __name__ == "__main__":
    from table import conclude

    conclude("race tokens", race_rows())
