"""What the fitness benchmark asks and how it reads the answers: the product's way, and the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from response_sets import Merges
from table import QUICK

from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    PROMOTED_WEIGHT,
    AbilityPrior,
    Estimates,
    GmpIrt,
    GpIrt,
    ItemBank,
    MapAbility,
    MpIrt,
    PIrt,
    PlainMean,
    Stratified,
    audit_of,
    audit_order,
    audited,
    audited_batch,
    corrected,
    fit_bank,
    gp_weight,
    inclusion_of,
    kmeans_anchors,
    map_abilities,
    random_items,
    residuals_of,
    strata_of,
    stratified_items,
)
from evomerge.fitness.irt.design import Places

__all__ = [
    "BATCH",
    "SEEDS",
    "SIZES",
    "Asked",
    "adaptive",
    "baselines",
    "coverage",
    "error",
    "fitted",
    "only",
    "overclaim",
    "part",
]

SIZES = (10, 20, 50) if QUICK else (10, 20, 30, 50, 100)
SEEDS = (0,) if QUICK else (0, 1, 2, 3)
BATCH = 10
GENERATION = 25
Estimate = Callable[[int, int], tuple[Floats, Estimates]]
"""From seed and number of items to the truth and what is estimated."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """What an adaptive design knows after one of its batches: responses, inclusion probabilities, estimates.

    Attributes:
        estimates: of all candidates at once, with the audit of all.
        gradual: of candidates that come 25 at a time, each with the audit of those before it, as in a search.
    """

    responses: Floats
    inclusion: Floats
    estimates: Estimates
    gradual: Estimates


def fitted(
    responses: Floats, start: ItemBank | None = None, promoted: int = 0, dimensions: int | None = None
) -> ItemBank:
    """A bank; the last rows may be promoted candidates."""
    weights = np.where(np.arange(len(responses)) < len(responses) - promoted, 1.0, PROMOTED_WEIGHT)
    return fit_bank(
        responses,
        task="benchmark",
        items=range(responses.shape[1]),
        digest="benchmark",
        weights=weights,
        dimensions=dimensions,
        start=start,
    )


def adaptive(
    bank: ItemBank, prior: AbilityPrior, tests: Floats, seed: int, audit: float = 0.2
) -> Iterator[tuple[int, Asked]]:
    """The product's way: batches of 10, one fifth of the items an audit, estimates corrected by its residuals."""
    rng = np.random.default_rng(seed)
    order = audit_order(rng, *tests.shape)
    asked, abilities = np.zeros(tests.shape, dtype=bool), prior.abilities()
    for total in range(BATCH, max(SIZES) + 1, BATCH):
        asked, count = audited_batch(bank, abilities, asked, order, total=total, share=audit)
        responses = np.where(asked, tests, np.nan)
        abilities = map_abilities(bank, responses, prior)
        if total in SIZES:
            inclusion = inclusion_of(audited(order, count), count)
            estimates, gradual = (
                in_generations(bank, prior, responses, inclusion, n) for n in (len(tests), GENERATION)
            )
            yield total, Asked(responses=responses, inclusion=inclusion, estimates=estimates, gradual=gradual)


def in_generations(bank: ItemBank, prior: AbilityPrior, responses: Floats, inclusion: Floats, size: int) -> Estimates:
    """Estimates of candidates that come so many at a time; the order of the tests is random."""
    found, residuals = [], []
    for rows in np.array_split(np.arange(len(responses)), max(len(responses) // size, 1)):
        own = part(prior, rows)
        residuals.append(residuals_of(bank, own, responses[rows], inclusion[rows]))
        estimates = MapAbility(bank=bank, prior=own)(responses[rows], inclusion[rows])
        found.append(corrected(estimates, audit_of(residuals), responses.shape[1]))
    whole = {field.name: np.concatenate([getattr(each, field.name) for each in found]) for field in fields(Estimates)}
    return Estimates(**whole)


def part(prior: AbilityPrior, rows: Places) -> AbilityPrior:
    """The prior of some candidates."""
    return AbilityPrior(mean=prior.mean[rows], scale=prior.scale[rows], freedom=prior.freedom)


def only(tests: Floats, places: Places) -> Floats:
    """The responses to some items, the same for all candidates."""
    responses = np.full(tests.shape, np.nan)
    responses[:, places] = tests[:, places]
    return responses


def baselines(data: Merges, bank: ItemBank, parents: Floats, prior: AbilityPrior) -> dict[str, Estimate]:
    """Estimators on items that are the same for all candidates."""
    tests, items = data.tests, data.tests.shape[1]
    held = np.arange(len(data.calibrators)) % 5 == 0
    weaker = fitted(data.calibrators[~held])
    strata = strata_of(data.calibrators.mean(axis=0), 5)
    features = np.hstack([bank.slopes, bank.difficulties[:, None]])

    def shared(estimator: Callable[[Floats], Estimates]) -> Estimate:
        def estimate(seed: int, n: int) -> tuple[Floats, Estimates]:
            return tests.mean(axis=1), estimator(only(tests, random_items(np.random.default_rng(seed), items, n)))

        return estimate

    def stratified(seed: int, n: int) -> tuple[Floats, Estimates]:
        places, _ = stratified_items(np.random.default_rng(seed), strata, n)
        return tests.mean(axis=1), Stratified(strata=strata)(only(tests, places))

    def tiny(seed: int, n: int) -> tuple[Floats, Estimates]:
        places, shares = kmeans_anchors(np.random.default_rng(seed), features, n)
        weights = np.zeros(items)
        weights[places] = shares
        weight = gp_weight(weaker, data.calibrators[held], n)
        return tests.mean(axis=1), GpIrt(bank=bank, weight=weight, anchors=weights)(only(tests, places))

    return {
        "random, mean": shared(PlainMean()),
        "stratified by difficulty": stratified,
        "random, p-IRT": shared(PIrt(bank=bank)),
        "tinyBenchmarks: anchors, gp-IRT": tiny,
        "MERGE^3: random, mp-IRT": shared(MpIrt(bank=bank, parents=parents)),
        "MERGE^3: random, gmp-IRT": shared(GmpIrt(bank=bank, parents=parents)),
        "random, MAP with parent prior": shared(MapAbility(bank=bank, prior=prior)),
    }


def error(truth: Floats, estimates: Estimates) -> float:
    """Mean absolute error in points."""
    return 100.0 * float(np.abs(estimates.mean - truth).mean())


def coverage(truth: Floats, estimates: Estimates) -> float:
    """Share of 90 % intervals that hold the truth, in per cent."""
    return 100.0 * float((np.abs(estimates.mean - truth) <= 1.645 * estimates.sd).mean())


def overclaim(truth: Floats, estimates: Estimates) -> float:
    """What the apparent winner's estimate claims too much, in points."""
    winner = int(estimates.mean.argmax())
    return 100.0 * float(estimates.mean[winner] - truth[winner])
