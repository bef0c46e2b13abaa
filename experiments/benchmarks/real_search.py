"""Published searches and ours on the tiny family of the quickstart: same candidates, same items, confirmed on others.

Each published system is its algorithm and its genome, re-made from its paper or code; what it merges and how it is
scored is the same for all, so this compares searches and not tools. Seeds are paired.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

from equal_items import confirmed_front, confirmed_volume, run
from scipy import stats
from table import QUICK, Row

from evomerge.reports import Summary

SEEDS = range(2 if QUICK else 8)
EVALUATIONS = 65 if QUICK else 245
COMMON = [f"budget.evaluations={EVALUATIONS}"]

PER_LAYER = 18  # genes of the tiny family with a coefficient for each expert and layer, embeddings and head
PYCMA_POPULATION = 4 + int(3 * math.log(PER_LAYER))
ONE_EACH = "space.genes={weight: {low: 0.0, high: 1.0, knots: 1, edges: first}}"

ARMS = {
    "ours: nsga2 20, 4 knots, fresh items": [],
    "ours: islands 60, 4 knots, fresh items": ["algorithm={kind: islands, population: 60}"],
    "mergekit-evolve: cma per layer on the mean, fixed items": [
        f"algorithm={{kind: cma, population: {PYCMA_POPULATION}, sigma: {1 / 6:.4f}}}",
        "space.knots=layer",
        "fitness.items.draw=fixed",
    ],
    "Mergenetic: nsga2 10, one coefficient each, fixed items": [
        "algorithm={kind: nsga2, population: 10}",
        ONE_EACH,
        "fitness.items.draw=fixed",
    ],
    "M2N2: split points, competition, attraction": [
        "algorithm={kind: m2n2}",
        "space={kind: split_point}",
        "fitness.items.draw=fixed",
    ],
    "MAP: quadratic surrogate, one coefficient each": [
        "algorithm={kind: map, population: 20}",
        ONE_EACH,
        "fitness.items.draw=fixed",
    ],
    "random, 4 knots": ["algorithm={kind: random, population: 20}"],
}


def confirmed(summary: Summary) -> tuple[float, float]:
    """Of the confirmed front: its hypervolume, and the best mean of a member."""
    return confirmed_volume(summary), max(map(fmean, confirmed_front(summary)))


def real_search() -> list[Row]:
    """Every arm: means with 95 % intervals, and the paired difference of the first to it."""
    found = {name: [confirmed(run([*COMMON, *settings], seed)) for seed in SEEDS] for name, settings in ARMS.items()}
    ours = next(iter(found.values()))
    rows = []
    for name, figures in found.items():
        for what, column in (("hypervolume", 0), ("best mean", 1)):
            values = [pair[column] for pair in figures]
            gains = [mine[column] - value for mine, value in zip(ours, values, strict=True)]
            text = f"{interval(values)}; first arm better by {interval(gains)}"
            rows.append(Row(name=f"tiny family, {what}: {name}", target="reported", measured=text, met=None))
    return rows


def interval(values: list[float]) -> str:
    """Mean and half of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.4f} +- {half:.4f}"


if __name__ == "__main__":
    from table import conclude

    conclude(f"searches of {EVALUATIONS} candidates on the tiny family", real_search())
