"""How a generation is scored: what its candidates are asked, round by round, and what their answers come to.

Knows nothing of engines, stores or optimizers. An assessment is a dialogue, so that whoever drives it may take answers
from a record as well as from workers; equal answers, for equal tokens, lead to equal questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from evomerge.config import ObjectiveConfig, RaceConfig
from evomerge.fitness.estimate import Floats, weights
from evomerge.fitness.portions import portions
from evomerge.fitness.racing import front_probability, halved, survival_probability, undecided
from evomerge.outcome import Answer, ItemSet
from evomerge.rng import stream

if TYPE_CHECKING:
    from evomerge.fitness.irt import Remedy

__all__ = ["Answers", "Assessment", "Check", "Contest", "Questions", "Reader", "Told"]

Contest = Literal["mean", "front"]
"""What candidates compete for: to be in the better half by the weighted mean, or for a place on the front."""

Questions = Mapping[int, ItemSet]
"""What some candidates are asked next, by id."""

Answers = Mapping[int, tuple[Answer, ...] | None]
"""All that they have answered so far, and their costs; None for one that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A candidate as the optimizer is told of it.

    Attributes:
        scores: one per objective, higher is better.
        sds: their standard deviations.
        items: items that it answered.
        violation: how far it is from keeping the constraints; 0 if it does.
    """

    scores: tuple[float, ...]
    sds: tuple[float, ...]
    items: int
    violation: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What randomly drawn items said of the model that reads a metric's answers.

    Attributes:
        z: their mean residual in standard errors; above 0, candidates are better than the model believed.
        remedy: what followed.
    """

    z: float
    remedy: Remedy


class Reader(Protocol):
    """Chooses items and reads answers."""

    @property
    def tasks(self) -> Sequence[str]:
        """What items are chosen from."""

    def size(self, total: int | None = None) -> int:
        """Items over all tasks that make `total` per task, or all that scores speak of."""

    def start(self, references: Mapping[str, int]) -> Questions:
        """What the anchors are asked before the first generation.

        Args:
            references: ids by label.
        """

    def again(self, generation: int) -> Questions:
        """What anchors are asked beside a later generation, so that candidates can be compared with them."""

    def ask(self, candidates: Mapping[int, tuple[float, ...]], generation: int, totals: Mapping[str, int]) -> Questions:
        """The items that bring each candidate to `totals`.

        Args:
            candidates: genomes in the unit box by id.
            generation: counted from 0.
            totals: items of every task, those asked before included.
        """

    def rest(self, candidates: Sequence[int]) -> Questions:
        """All that these have not answered of what scores speak of; empty for a reader that does not promote."""

    def learn(self, answers: Answers) -> None:
        """Take in what was answered."""

    def told(self, candidates: Sequence[int], generation: int) -> dict[int, Told]:
        """What the answers come to; without those that failed."""

    def checks(self, generation: int) -> dict[str, Check]:
        """How true a generation found the model that reads its answers, by metric; empty without a model."""


class Assessment:
    """Scores one generation after another.

    Example:
        ::

            dialogue = assessment.generation(0, references, candidates)
            questions = next(dialogue)
            while True:
                questions = dialogue.send(answers_to(questions))  # StopIteration carries what was found

    Args:
        reader: chooses items and reads answers.
        objectives: what is optimized.
        contest: what candidates compete for.
        search: most items per task and candidate.
        race: how items are shared out; None asks everybody everything at once.
        promote: candidates of each generation that answer the rest.
        seed: of the draws that tell what is undecided.
    """

    def __init__(
        self,
        reader: Reader,
        objectives: Sequence[ObjectiveConfig],
        *,
        contest: Contest,
        search: int,
        race: RaceConfig | None,
        promote: int,
        seed: int,
    ) -> None:
        self._reader, self._race, self._promote, self._seed = reader, race, promote, seed
        self._contest: Contest = contest
        self._share = weights(objectives)
        self._search = search
        self._asked: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._rivals: dict[int, Told] = {}

    def generation(
        self, generation: int, references: Mapping[str, int], candidates: Mapping[int, tuple[float, ...]]
    ) -> Generator[Questions, Answers, dict[int, Told]]:
        """Score one generation; the first one with the anchors.

        Args:
            generation: counted from 0.
            references: anchors' ids by label.
            candidates: genomes by id.

        Yields:
            What is asked next; wants all that those asked have answered so far.

        Returns:
            What is known of the candidates, and of the anchors in generation 0; without those that failed.
        """
        known = [*references.values()] if generation == 0 else []
        beside = self._reader.start(references) if generation == 0 else self._reader.again(generation)
        racing = dict(candidates)
        for number, totals in enumerate(self._portions()):
            questions = {**(beside if number == 0 else {}), **self._reader.ask(racing, generation, totals)}
            if questions:
                self._reader.learn((yield questions))
            if self._race is None:
                break  # and workers wait, so nothing is estimated that nobody reads
            found = self._reader.told([*candidates], generation)
            open_ = self._open(self._race, found, [i for i in racing if i in found], generation, number)
            racing = {i: candidates[i] for i in open_}
            if not racing:
                break
        if self._promote:
            found = self._reader.told([*candidates], generation)
            if rest := self._reader.rest(self._promoted(found, generation)):
                self._reader.learn((yield rest))
        found = self._reader.told([*known, *candidates], generation)
        self._rivals |= found
        return found

    def took(self, items: ItemSet, tokens: Mapping[str, int]) -> None:
        """Learn what items cost; later generations are asked first what tells most for its tokens.

        Args:
            items: that somebody was asked.
            tokens: that they took by task; a task of which nobody knows is missing.
        """
        self._asked.update({task: len(ids) for task, ids in items.tasks if task in tokens})
        self._tokens.update(tokens)

    def beside(self, generation: int, references: Mapping[str, int]) -> Questions:
        """What anchors are asked for candidates that are scored one by one, beside those of one block.

        Args:
            generation: number of the block, which shares a draw of items.
            references: anchors' ids by label.
        """
        return self._reader.start(references) if generation == 0 else self._reader.again(generation)

    def alone(self, candidate: int, genome: tuple[float, ...], generation: int) -> ItemSet:
        """What a candidate is asked that is scored by itself, without a race."""
        totals = dict.fromkeys(self._reader.tasks, self._search)
        return self._reader.ask({candidate: genome}, generation, totals)[candidate]

    def told(self, candidates: Sequence[int], generation: int, answers: Answers) -> dict[int, Told]:
        """What is known of such candidates, or anchors; without those that failed.

        Args:
            candidates: their ids.
            generation: the block's number.
            answers: theirs, and those of the anchors that stand beside the block.
        """
        self._reader.learn(answers)
        return self._reader.told(candidates, generation)

    def most_items(self, generation: int, references: int, candidates: int) -> int:
        """Items that a generation may come to, at most."""
        return self.most_beside(generation, references) + self.most_of(candidates)

    def most_beside(self, generation: int, references: int) -> int:
        """Items that anchors are asked beside a generation, at most."""
        compared = sum(map(len, self._reader.again(generation).values()))
        return references * self._reader.size() if generation == 0 else compared

    def most_of(self, candidates: int) -> int:
        """Items that so many candidates are asked, at most."""
        few, everything = self._reader.size(self._search), self._reader.size()
        return candidates * few + min(self._promote, candidates) * (everything - few)

    def checks(self, generation: int) -> dict[str, Check]:
        """See `Reader.checks`."""
        return self._reader.checks(generation)

    def _portions(self) -> list[dict[str, int]]:
        """Items of every task after each round of a generation; equal shares while the cost of some is unknown."""
        tasks = self._reader.tasks
        costs = dict.fromkeys(tasks, 1.0)
        if all(self._tokens[task] for task in tasks):
            costs = {task: self._tokens[task] / self._asked[task] for task in tasks}
        return portions(costs, self._search, self._race.rounds if self._race else 1)

    def _open(
        self, race: RaceConfig, found: Mapping[int, Told], racing: Sequence[int], generation: int, number: int
    ) -> list[int]:
        """Those still racing that more items may decide."""
        if not racing:
            return []
        ids, means, sds = _matrices(found)
        if race.kind == "halving":
            rows = [ids.index(i) for i in racing]
            return [i for i, stays in zip(racing, halved(means[rows] @ self._share), strict=True) if stays]
        chance = self._chances(found, generation, number)
        open_ = undecided(chance, sds, sure=race.sure, target_sd=race.target_sd)
        return [i for i, stays in zip(ids, open_, strict=True) if stays and i in racing]

    def _promoted(self, found: Mapping[int, Told], generation: int) -> list[int]:
        """The candidates that most probably matter; of equals the higher upper bound."""
        if not found:
            return []
        ids, means, sds = _matrices(found)
        chance = self._chances(found, generation, -1)
        upper = means @ self._share + np.sqrt(sds**2 @ self._share**2)
        order = sorted(range(len(ids)), key=lambda row: (-chance[row], -upper[row], ids[row]))
        return [ids[row] for row in order[: self._promote]]

    def _chances(self, found: Mapping[int, Told], generation: int, number: int) -> Floats:
        """How probably each candidate survives or is on the front, among all that were scored `[c]`."""
        draws = stream(self._seed, "race", generation, number)
        if self._contest == "mean":
            _, means, sds = _matrices(found)
            mean, sd = means @ self._share, np.sqrt(sds**2 @ self._share**2)
            return survival_probability(mean[:, None], sd[:, None], (len(found) + 1) // 2, draws)
        _, means, sds = _matrices({**found, **{i: told for i, told in self._rivals.items() if i not in found}})
        return front_probability(means, sds, draws)[: len(found)]


def _matrices(found: Mapping[int, Told]) -> tuple[list[int], Floats, Floats]:
    """Ids, scores and standard deviations; what breaks a constraint scores worse than all that does not."""
    means = np.array([told.scores for told in found.values()])
    broken = np.array([told.violation for told in found.values()])
    spread = means.max(axis=0) - means.min(axis=0) + 1.0
    means = means - np.where(broken > 0, 1.0 + broken, 0.0)[:, None] * spread
    return list(found), means, np.array([told.sds for told in found.values()])
