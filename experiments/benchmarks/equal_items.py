"""What a search finds for the same number of answers, by how they are spent; on the tiny family of the quickstart.

Three ways, each with the same budget of search items: one fixed random subset, a fresh draw per generation, and chosen
items with a race. What is compared is the hypervolume of the front on items that no search saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, stdev

from family_search import searched
from table import QUICK, Row

SEEDS = range(2 if QUICK else 10)
ITEMS = 6_000 if QUICK else 16_000
COMMON = [
    "algorithm={kind: nsga2, population: 20}",
    "budget.evaluations=2000",
    f"budget.items={ITEMS}",
    "fitness.items.search=24",
]
ARMS = {
    "fixed subset": ["fitness.items.draw=fixed"],
    "fresh draws": ["fitness.items.draw=fresh"],
    "irt and race": [
        "fitness.estimator={kind: irt, universe: 96, promote: 1}",
        "fitness.race={kind: open, rounds: 3}",
    ],
}


def equal_items() -> Iterator[Row]:
    """The ways side by side: means over paired seeds, and the paired differences to the first."""
    fixed, *others = ARMS
    volumes: dict[str, list[float]] = {}
    for name, settings in ARMS.items():
        volumes[name] = [searched([*COMMON, *settings], seed).volume for seed in SEEDS]
        text = f"{fmean(volumes[name]):.4f}"
        yield Row(name=f"hypervolume, {ITEMS:,} items, {name}", target="-", measured=text, met=None)
    for name in others:
        gained = [a - b for a, b in zip(volumes[name], volumes[fixed], strict=True)]
        half = 1.96 * stdev(gained) / len(gained) ** 0.5
        text = f"{fmean(gained):+.4f} +- {half:.4f} over {len(gained)} seeds"
        yield Row(name=f"{name} over {fixed}", target="reported", measured=text, met=None)


if __name__ == "__main__":
    from table import conclude

    conclude("equal items", equal_items())
