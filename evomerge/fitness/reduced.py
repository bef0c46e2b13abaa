"""Items chosen for each candidate, read through a model of items and abilities.

The model is fitted to what the run itself measured (anchors and promoted candidates answer everything, the others
little), or comes from a bank; a part of every candidate's items is random, so that the model is checked where the
search goes. Knows nothing of engines, stores or optimizers.

Legend: N items of a task that scores speak of (its universe); candidates' rows `[N]`, NaN where not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from evomerge.config import ConstraintConfig, IrtConfig, Measured, ObjectiveConfig
from evomerge.errors import TaskError
from evomerge.fitness.assessment import Answers, Check, Questions, Told
from evomerge.fitness.calibrated import CalibratedMetric, calibrated
from evomerge.fitness.estimate import Floats, costs
from evomerge.fitness.irt import (
    AbilityPrior,
    Family,
    ItemBank,
    MapAbility,
    audited,
    audited_batch,
    corrected,
    family_prior,
    map_abilities,
    population_prior,
    residuals_of,
)
from evomerge.fitness.irt.design import Mask, Places
from evomerge.fitness.items import ItemSplit
from evomerge.outcome import Answer, Exact, ItemSet, Responses
from evomerge.rng import stream

__all__ = ["ReducedItems"]

Genome = tuple[float, ...]

_Read = Mapping[str, tuple[Floats, Floats]]
"""By metric's name, scores and standard deviations of candidates, higher is better `[M]`."""

_REMEMBERED = 300
"""Latest candidates that a candidate's prior is learned from: older ones say little of where the search is now."""


@final
class ReducedItems:
    """Reads few, well-chosen answers as scores over a whole universe of items; a `Reader` of `assessment`.

    Args:
        split: what may be asked.
        objectives: what is optimized.
        constraints: what must be kept.
        config: estimator settings.
        digests: content digest of every task.
        banks: at most one per task and metric; all others are calibrated on the fly.
        seed: run seed.

    Raises:
        TaskError: a bank of another task or metric, or of other items and prompts.
    """

    def __init__(
        self,
        split: ItemSplit,
        objectives: Sequence[ObjectiveConfig],
        constraints: Sequence[ConstraintConfig],
        config: IrtConfig,
        *,
        digests: Mapping[str, str],
        banks: Sequence[ItemBank],
        seed: int,
    ) -> None:
        self._config, self._seed = config, seed
        self._objectives, self._constraints = objectives, constraints
        read = [metric for measured in (*objectives, *constraints) for metric in measured.metrics]
        self._metrics = calibrated(read, split, size=config.universe, digests=digests, banks=banks, seed=seed)
        self._lead = {metric.config.task: metric for metric in reversed(self._metrics)}
        self._genomes: dict[int, Genome] = {}
        self._audits: dict[str, dict[int, int]] = {task: {} for task in self._lead}
        self._labels: dict[str, int] = {}
        self._failed: set[int] = set()
        self._exact: dict[int, tuple[Answer, ...]] = {}
        self._generation = 0

    @property
    def tasks(self) -> Sequence[str]:
        """Those of objectives and constraints."""
        return [*self._lead]

    def size(self, total: int | None = None) -> int:
        """Items over all tasks for `total` per task, or for whole universes."""
        return sum(len(m.items) if total is None else min(total, len(m.items)) for m in self._lead.values())

    def start(self, references: Mapping[str, int]) -> Questions:
        """Everything: the anchors' abilities are what candidates' are predicted from."""
        self._labels = dict(references)
        return {number: ItemSet.of({task: m.items for task, m in self._lead.items()}) for number in references.values()}

    def again(self, generation: int) -> Questions:
        """Nothing: the anchors have answered everything."""
        return {}

    def ask(self, candidates: Mapping[int, Genome], generation: int, totals: Mapping[str, int]) -> Questions:
        """Random items while there is no model, then those that tell most beside a random audit."""
        self._genomes |= candidates
        self._generation = generation
        ids = list(candidates)
        if not ids:
            return {}
        masks = {task: self._designed(metric, ids, generation, totals[task]) for task, metric in self._lead.items()}
        found = {}
        for row, number in enumerate(ids):
            new = {task: _items(self._lead[task], mask[row]) for task, mask in masks.items()}
            if asked := {task: items for task, items in new.items() if items}:
                found[number] = ItemSet.of(asked)
        return found

    def rest(self, candidates: Sequence[int]) -> Questions:
        """All that they were not asked."""
        found = {}
        for number in candidates:
            rows = {task: _items(m, np.isnan(m.stacked([number])[0])) for task, m in self._lead.items()}
            if left := {task: items for task, items in rows.items() if items}:
                found[number] = ItemSet.of(left)
        return found

    def learn(self, answers: Answers) -> None:
        """Keep what was answered; fit the banks again where that is due."""
        for number, responses in answers.items():
            if responses is None:
                self._failed.add(number)
                continue
            found = [r for r in responses if isinstance(r, Responses)]
            self._exact[number] = tuple(r for r in responses if isinstance(r, Exact))
            by_metric = {(r.task, r.metric): dict(zip(r.items, r.values, strict=True)) for r in found}
            for metric in self._metrics:
                metric.learn(number, by_metric.get((metric.config.task, metric.config.metric), {}))
        for metric in self._metrics:
            for number in self._failed:
                metric.rows.pop(number, None)
            metric.refit(self._generation)

    def told(self, candidates: Sequence[int], generation: int) -> dict[int, Told]:
        """Posterior means and standard deviations over the universe."""
        ids = [number for number in candidates if number not in self._failed and number in self._metrics[0].rows]
        if not ids:
            return {}
        read = {m.config.name: self._read(m, ids, generation) for m in self._metrics}
        means, sds = zip(*(self._combined(objective, read, ids) for objective in self._objectives), strict=True)
        limits = self._violations(read, ids)
        used = [sum(int((~np.isnan(m.rows[i])).sum()) for m in self._lead.values()) for i in ids]
        return {
            number: Told(
                scores=tuple(float(mean[row]) for mean in means),
                sds=tuple(float(sd[row]) for sd in sds),
                items=used[row],
                violation=float(limits[row]),
            )
            for row, number in enumerate(ids)
        }

    def _combined(self, measured: Measured, read: _Read, ids: Sequence[int]) -> tuple[Floats, Floats]:
        """Means and standard deviations of an objective or constraint, higher is better `[M]`.

        Tasks are independent; of metrics of one task nobody knows how they go together, so their deviations add up.
        """
        mean = np.array([costs(self._exact[number], [measured])[0] for number in ids])
        sds: dict[str, Floats] = {}
        for metric in measured.metrics:
            each, sd = read[metric.name]
            mean = mean + metric.share * each
            sds[metric.task] = sds.get(metric.task, 0.0) + metric.share * sd
        return mean, np.sqrt(np.sum([sd**2 for sd in sds.values()], axis=0)) + np.zeros(len(ids))

    def _designed(self, metric: CalibratedMetric, ids: Sequence[int], generation: int, total: int) -> Mask:
        """The items that each candidate is to be asked now `[M, N]`."""
        total = min(total, len(metric.items))
        asked = ~np.isnan(metric.stacked(ids))
        audits = self._audits[metric.config.task]
        if metric.bank is None:
            mask, count = audited(self._shared_order(metric, len(ids), generation), total), total
        else:
            abilities = map_abilities(metric.bank, metric.stacked(ids), self._prior(metric, metric.bank, ids))
            orders = self._orders(metric, ids)
            mask, count = audited_batch(metric.bank, abilities, asked, orders, total=total, share=self._config.audit)
        audits.update(dict.fromkeys(ids, count))
        return np.asarray(mask & ~asked)

    def _shared_order(self, metric: CalibratedMetric, candidates: int, generation: int) -> Places:
        """Before there is a model all are asked the same items, which makes them comparable."""
        order = stream(self._seed, "audit", metric.config.task, generation).permutation(len(metric.items))
        return np.tile(order, (candidates, 1))

    def _orders(self, metric: CalibratedMetric, ids: Sequence[int]) -> Places:
        """For each candidate an order of its own, whose beginning is its audit."""
        task, size = metric.config.task, len(metric.items)
        return np.stack([stream(self._seed, "audit", task, -1, number).permutation(size) for number in ids])

    def _inclusion(self, metric: CalibratedMetric, ids: Sequence[int]) -> Floats:
        """Inclusion probabilities of the audit items, NaN elsewhere `[M, N]`."""
        counts = np.array([self._audits[metric.config.task].get(number, 0) for number in ids])
        ranks = self._orders(metric, ids).argsort(axis=1)
        return np.where(ranks < counts[:, None], counts[:, None] / len(metric.items), np.nan)

    def checks(self, generation: int) -> dict[str, Check]:
        """What the random items said, by objective or constraint."""
        return {m.config.name: m.checks[generation] for m in self._metrics if generation in m.checks}

    def _read(self, metric: CalibratedMetric, ids: Sequence[int], generation: int) -> tuple[Floats, Floats]:
        """Scores and standard deviations, higher is better `[M]`."""
        bank, rows = metric.bank, metric.stacked(ids)
        assert bank is not None, "it is fitted to the first answers, and without any there is nothing to read"
        prior = self._prior(metric, bank, ids)
        searched = np.array([number in self._genomes for number in ids])
        found = MapAbility(bank=bank, prior=prior)(rows)
        if searched.any():
            inclusion = self._inclusion(metric, np.array(ids)[searched])
            audit = metric.audit(generation, residuals_of(bank, _only(prior, searched), rows[searched], inclusion))
            found = corrected(found, audit, len(metric.items))
        sign = 1.0 if metric.config.goal == "max" else -1.0
        return sign * found.mean, found.sd

    def _prior(self, metric: CalibratedMetric, bank: ItemBank, ids: Sequence[int]) -> AbilityPrior:
        """From parents and genomes, learned from the candidates before; the population's for anchors."""
        parents = [n for label, n in self._labels.items() if label != "uniform" and n in metric.rows]
        population = population_prior(bank, len(ids))
        if not parents or not any(number in self._genomes for number in ids):
            return population
        known = map_abilities(bank, metric.stacked(parents), population_prior(bank, len(parents))).mean
        past = [number for number in self._genomes if number in metric.rows and number not in set(ids)][-_REMEMBERED:]
        archive = self._family(known, past) if past else None
        children = None
        if archive is not None:  # read as children, too: as strangers they would seem to lie nearer to the population
            children = map_abilities(bank, metric.stacked(past), family_prior(bank, archive))
        born = [number in self._genomes for number in ids]
        family = self._family(known, [n for n, searched in zip(ids, born, strict=True) if searched])
        return _scattered(population, family_prior(bank, family, archive, children), np.array(born))

    def _family(self, parents: Floats, ids: Sequence[int]) -> Family:
        genomes = np.array([self._genomes[number] for number in ids]) - 0.5
        return Family(parents=np.repeat(parents[None], len(ids), axis=0), coefficients=genomes)

    def _violations(self, read: _Read, ids: Sequence[int]) -> Floats:
        """What is missing to every limit, summed `[M]`."""
        total = np.zeros(len(ids))
        for constraint in self._constraints:
            mean, _ = self._combined(constraint, read, ids)
            total += np.maximum(0.0, constraint.limit - (mean - self._reference(constraint)))
        return total

    def _reference(self, constraint: ConstraintConfig) -> float:
        """The score that a limit is relative to; 0 if it is absolute."""
        if constraint.relative_to is None:
            return 0.0
        number = self._labels[constraint.relative_to]
        if number not in self._exact or number in self._failed:
            raise TaskError(
                f"constraint {constraint.name!r}: expected answers of {constraint.relative_to} to compare with; got "
                "none, because it failed; see its failure in the report"
            )
        read = {m.config.name: float(np.nanmean(m.rows[number])) for m in self._metrics if number in m.rows}
        sign = 1.0 if constraint.goal == "max" else -1.0
        exact = float(costs(self._exact[number], [constraint])[0])
        return exact + sign * sum(metric.share * read[metric.name] for metric in constraint.metrics)


def _items(metric: CalibratedMetric, mask: Mask) -> tuple[int, ...]:
    return tuple(metric.items[column] for column in np.flatnonzero(mask))


def _only(prior: AbilityPrior, chosen: Mask) -> AbilityPrior:
    return AbilityPrior(mean=prior.mean[chosen], scale=prior.scale[chosen], freedom=prior.freedom)


def _scattered(population: AbilityPrior, family: AbilityPrior, born: Mask) -> AbilityPrior:
    """The family's prior for those born of it, and the population's for the others, as one."""
    mean, scale = population.mean.copy(), population.scale * (family.freedom - 2.0) / family.freedom
    mean[born], scale[born] = family.mean, family.scale
    return AbilityPrior(mean=mean, scale=scale, freedom=family.freedom)
