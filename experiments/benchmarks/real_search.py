"""Published searches and ours on the tiny family of the quickstart: same candidates, same items, confirmed on others.

Each published system is its algorithm and its genome, re-made from its paper or code; what it merges, how it is scored
and how what it answers is confirmed are the same for all, so this compares searches and not tools. Seeds are paired.
Published searches ask one fixed subset of items, ours a fresh one in each generation. `init` writes the first arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from family_search import Found, searched
from scipy import stats
from table import QUICK, Row

SEEDS = range(2 if QUICK else 8)
EVALUATIONS = 60 if QUICK else 180
ANCHORS = 5
COMMON = [f"budget.evaluations={EVALUATIONS + ANCHORS}", "fitness.items.search=32", "fitness.confirm.shortlist=8"]

PER_LAYER = 18  # genes of the tiny family with a coefficient for each expert and layer, embeddings and head
PYCMA_POPULATION = 4 + int(3 * math.log(PER_LAYER))
ONE_EACH = "space.genes={weight: {low: 0.0, high: 1.0, knots: 1, edges: first}}"
FIXED = "fitness.items.draw=fixed"

ARMS = {
    "ours: islands 30, 4 knots": ["algorithm={kind: islands, population: 30}"],
    "ours: nsga2 20, 4 knots": ["algorithm={kind: nsga2, population: 20}"],
    "mergekit-evolve: cma per layer, on the mean": [
        f"algorithm={{kind: cma, population: {PYCMA_POPULATION}, sigma: {1 / 6:.4f}}}",
        "space.knots=layer",
        FIXED,
    ],
    "Mergenetic: nsga2 10, one coefficient each": ["algorithm={kind: nsga2, population: 10}", ONE_EACH, FIXED],
    "M2N2: split points, competition, attraction": ["algorithm={kind: m2n2}", "space={kind: split_point}", FIXED],
    "MAP: quadratic models, one coefficient each": ["algorithm={kind: map, population: 20}", ONE_EACH, FIXED],
    "random, 4 knots": ["algorithm={kind: random, population: 20}"],
}


def real_search() -> Iterator[Row]:
    """Every arm: means over the seeds with 95 % intervals, and by how much the first one is better, seed by seed."""
    first: list[Found] = []
    for name, settings in ARMS.items():
        every = [searched([*COMMON, *settings], seed) for seed in SEEDS]
        first = first or every
        yield from rows_of(name, every, first)


def rows_of(name: str, every: Sequence[Found], first: Sequence[Found]) -> Iterator[Row]:
    """The figures of one arm."""
    figures = {
        "hypervolume": (column(every, "volume"), column(first, "volume")),
        "mean over the best parent's": (gains(every, "parent"), gains(first, "parent")),
        "mean over the uniform average's": (gains(every, "average"), gains(first, "average")),
    }
    for what, (values, others) in figures.items():
        text = interval(values)
        if every is not first:
            text += f"; first arm better by {interval([a - b for a, b in zip(others, values, strict=True)])}"
        yield Row(name=f"tiny family, {what}: {name}", target="reported", measured=text, met=None)


def column(every: Sequence[Found], what: str) -> list[float]:
    """One figure of each search."""
    return [getattr(found, what) for found in every]


def gains(every: Sequence[Found], anchor: str) -> list[float]:
    """How much better than an anchor each search's best is on the whole."""
    return [found.mean - getattr(found, anchor) for found in every]


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):+.3f} +- {half:.3f}"


if __name__ == "__main__":
    from table import conclude

    conclude(f"searches of {EVALUATIONS} candidates on the tiny family", real_search())
