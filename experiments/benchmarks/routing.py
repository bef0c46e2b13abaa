"""Layer routing: on a synthetic landscape beside the published encoding, and on the quickstart family with known truth.

The landscape's harms are chosen so that the published encoding does about as badly as published work does. On the
family all 256 whole-layer paths are scored once on all items (about ten CPU minutes, kept in `EVOMERGE_SCRATCH` or the
temporary folder); a search then sees fresh items each generation, as a run does, and its answer is the finalist that
does best on items it never saw. `make bench NAME=routing`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import TypeAdapter
from routes import DEPTH, routed
from scipy import stats
from table import QUICK, Row, conclude
from whole_layers import Truth, choice_of, opened, truth_of

from evomerge.config import AlgorithmConfig, SpaceConfig
from evomerge.fitness.items import ItemSplit
from evomerge.outcome import ItemSet
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.recipe import Hop
from evomerge.spaces import Models, SearchSpace, build_space
from evomerge.spaces.routing import RoutingSpace

__all__ = ["landscape_rows"]

SEEDS = range(8 if QUICK else 24)
STOPS = (200, 500) if QUICK else (200, 500, 1000)
ANSWERS = 100
OWN = tuple(Hop(layer=layer) for layer in range(DEPTH))
ROUTING = {"kind": "routing", "scales": {}, "fewest": 12, "most": 24}
PUBLISHED = {"kind": "indicators", "repeats": 2, "scales": {}, "scaling": "network", "fewest": 1, "most": 64}
CONTENDERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[int, float]]] = {
    "graft 12": (ROUTING, {"kind": "graft", "population": 12}, {500: 70.0}),
    "published encoding, cma 16": (PUBLISHED, {"kind": "cma", "population": 16}, {}),
    "published encoding, cat_cma 24": (PUBLISHED, {"kind": "cat_cma", "population": 24}, {}),
    "slots, nsga2 20": (ROUTING, {"kind": "nsga2", "population": 20}, {}),
}
FAMILY_SEEDS, BUDGET, ITEMS = 10, 80, 64 if QUICK else 512


def built(keys: dict[str, Any], space: SearchSpace, seed: int) -> Algorithm:
    """A fresh algorithm for one objective."""
    config: AlgorithmConfig = TypeAdapter(AlgorithmConfig).validate_python(keys)
    return build_algorithm(config, Problem(space=space, weights=(1.0,), seed=seed))


def searched(space: SearchSpace, keys: dict[str, Any], seed: int) -> list[float]:
    """True accuracy of the first answer at each stop, in per cent."""
    task, rng, algorithm = routed(seed), np.random.default_rng((seed, 1000)), built(keys, space, seed)
    found, spent = [], 0
    for stop in STOPS:
        while spent + algorithm.population <= stop:
            genomes = algorithm.ask()
            truth = [task.accuracy(space.decode(genome).path or OWN) for genome in genomes]
            scores = rng.binomial(ANSWERS, truth) / ANSWERS
            told = zip(genomes, scores.tolist(), strict=True)
            algorithm.tell([Evaluation(genome=genome, costs=(-score,)) for genome, score in told])
            spent += algorithm.population
        found.append(100.0 * task.accuracy(space.decode(algorithm.answer()[0]).path or OWN))
    return found


def landscape_rows() -> list[Row]:
    """Means and 95 % intervals over paired seeds; without any search it is 50."""
    models = Models(base="a", experts=("b",), layers=DEPTH, dtype="float32")
    rows = []
    for name, (space_keys, keys, targets) in CONTENDERS.items():
        space = build_space(TypeAdapter(SpaceConfig).validate_python(space_keys), models, 0)
        figures = np.array([searched(space, keys, seed) for seed in SEEDS])
        half = stats.t.ppf(0.975, len(figures) - 1) * figures.std(axis=0, ddof=1) / np.sqrt(len(figures))
        for stop, mean, reach in zip(STOPS, figures.mean(axis=0), half, strict=True):
            target = targets.get(stop)
            rows.append(
                Row(
                    name=f"routing, {name} @{stop}",
                    target="-" if target is None else f">= {target:.0f}",
                    measured=f"{mean:.1f} +- {reach:.1f}",
                    met=None if target is None else bool(mean >= target),
                )
            )
    return rows


def family_rows() -> list[Row]:
    """How many of ten searches of at most 80 evaluations end within a point of the best path."""
    experiment, space = opened()
    truth = truth_of(experiment, space, ITEMS)
    accuracy = {choice: 100.0 * float(answers.mean()) for choice, answers in truth.items()}
    best = max(accuracy, key=accuracy.__getitem__)
    short = [accuracy[best] - accuracy[confirmed(space, truth, seed)] for seed in range(FAMILY_SEEDS)]
    close = sum(gap <= 1.0 for gap in short)
    plain = max(accuracy[(source,) * space.stock.layers] for source in space.stock.sources)
    paths = f"{' '.join('base' if source is None else source for source in best)}: {accuracy[best]:.1f}"
    return [
        Row(
            name="whole layers, best of 256 paths (best model)", target="-", measured=f"{paths} ({plain:.1f})", met=None
        ),
        Row(
            name=f"whole layers, graft within 1 point @{BUDGET}",
            target=">= 9 of 10",
            measured=f"{close} of {FAMILY_SEEDS}, at most {max(short):.1f} short",
            met=None if QUICK else close >= 9,
        ),
    ]


def confirmed(space: RoutingSpace, truth: Truth, seed: int) -> tuple[str | None, ...]:
    """What a search answers: half of the items are set aside for the confirmation, the rest are drawn from."""
    many = next(iter(truth.values())).shape[1]
    order = np.random.default_rng((seed, 5)).permutation(many)
    unseen, pool = order[: many // 2], order[many // 2 :]
    split = ItemSplit(
        confirm=ItemSet(()),
        pool={"all": tuple(sorted(pool.tolist()))},
        size=many * 96 // 512,
        policy="fresh",
        seed=seed,
    )
    algorithm = built({"kind": "graft"}, space, seed)
    for generation in range(BUDGET // algorithm.population):
        items = list(dict(split.draw(generation).tasks)["all"])
        genomes = algorithm.ask()
        scores = [float(truth[choice_of(space.path_of(genome))][:, items].mean()) for genome in genomes]
        told = zip(genomes, scores, strict=True)
        algorithm.tell([Evaluation(genome=genome, costs=(-score,)) for genome, score in told])
    finalists = [choice_of(space.path_of(genome)) for genome in algorithm.answer()]
    return max(finalists, key=lambda choice: float(truth[choice][:, unseen].mean()))


if __name__ == "__main__":
    conclude("routing", [*landscape_rows(), *family_rows()])
