"""Algorithms and knots on synthetic merges of known truth: what answers are worth, what asking costs and kills change.

Every answer is measured noise-free. Seeds are paired: all rows meet the same tasks. `make bench NAME=search`.

What was chosen here: the shape of `landscapes`, so that per-layer searches do about as badly as published ones; 100
answers a candidate and objective, binomial; hypervolume from an accuracy of 0.25, relative to the true front of all 64
coefficients, which a space with knots cannot quite reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
from landscapes import GROUPS, LAYERS, Floats, Merge, front_volume, made, profile, volume
from pydantic import TypeAdapter
from real_search import real_search
from resuming import Resumed, resumed_cases
from routing import family_rows, landscape_rows
from scipy import stats
from table import QUICK, Row, conclude

from evomerge.config import AlgorithmConfig
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.spaces import Gene, Genome
from evomerge.spaces.knots import lift

SEEDS = range(8 if QUICK else 24)
STOPS = (200, 500, 1000)
ANSWERS = 100
CONFIG: TypeAdapter[Any] = TypeAdapter(AlgorithmConfig)
Worth = Callable[[Algorithm], float]


class Coefficients:
    """The space of so many numbers, each from the middle, in groups of knots over the layers."""

    def __init__(self, genes: int) -> None:
        self._knots = genes // GROUPS
        self.genes = tuple(Gene(name=f"weight.{i}", low=0.0, high=1.0, start=0.5) for i in range(genes))
        self.start = Genome((0.5,) * genes)

    def coarser(self, knots: int) -> tuple[Coefficients, Floats]:
        """Fewer knots, and the matrix that lifts their genomes."""
        return Coefficients(knots * GROUPS), np.kron(np.eye(GROUPS), lift(knots, self._knots, LAYERS))

    def decode(self, genome: Genome) -> Any:
        """Never asked for: what a genome means is the landscape's affair."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """An algorithm and a number of knots per group.

    Attributes:
        targets: at each stop; empty for a baseline or a complement.
    """

    name: str
    keys: dict[str, Any]
    knots: int
    targets: tuple[float, ...] = ()


PER_LAYER = LAYERS
GENETIC: dict[str, Any] = {
    "kind": "refined",
    "stages": [
        {"knots": 4, "evaluations": 200, "algorithm": {"kind": "nsga2", "population": 20}},
        {"algorithm": {"kind": "sms_emoa", "population": 40}},
    ],
}
GAUSSIAN: dict[str, Any] = {
    "kind": "refined",
    "stages": [{"knots": 4, "evaluations": 240, "algorithm": {"kind": "cma"}}, {"algorithm": {"kind": "cma"}}],
}
SINGLE = (
    Contender(name="default: cma 24, 8 knots", keys={"kind": "cma", "population": 24}, knots=8, targets=(68, 71, 72)),
    Contender(name="sep_cma 24, 8 knots", keys={"kind": "sep_cma", "population": 24}, knots=8),
    Contender(name="cat_cma 24, 8 knots", keys={"kind": "cat_cma", "population": 24}, knots=8),
    Contender(name="refined cma 24, 4 to 8 knots", keys=GAUSSIAN, knots=8),
    Contender(name="kinship 8, 4 knots", keys={"kind": "kinship"}, knots=4),
    Contender(name="frank_wolfe 12, 4 knots", keys={"kind": "frank_wolfe", "by": "layer"}, knots=4),
    Contender(name="reinforced 20, 4 knots", keys={"kind": "reinforced"}, knots=4),
    Contender(name="lr_adapt 24, 8 knots", keys={"kind": "cma", "population": 24, "lr_adapt": True}, knots=8),
    Contender(name="published style: cma 16 per layer", keys={"kind": "cma", "population": 16}, knots=PER_LAYER),
    Contender(name="random per layer", keys={"kind": "random", "population": 20}, knots=PER_LAYER),
)
DOUBLE = (
    Contender(name="default: refined, 2 to 8 knots", keys={"kind": "refined"}, knots=8, targets=(70, 84, 88)),
    Contender(name="refined nsga2 20, 4 knots, sms_emoa 40, 8 knots", keys=GENETIC, knots=8),
    Contender(name="islands 60, 4 knots", keys={"kind": "islands", "population": 60}, knots=4),
    Contender(name="islands 60, 8 knots", keys={"kind": "islands", "population": 60}, knots=8),
    Contender(name="nsga2 20, 4 knots", keys={"kind": "nsga2", "population": 20}, knots=4),
    Contender(name="nsga3 20, 4 knots", keys={"kind": "nsga3", "population": 20}, knots=4),
    Contender(name="sms_emoa 20, 4 knots", keys={"kind": "sms_emoa", "population": 20}, knots=4),
    Contender(name="sms_emoa 40, 8 knots", keys={"kind": "sms_emoa", "population": 40}, knots=8),
    Contender(name="qd 20, 4 knots", keys={"kind": "qd"}, knots=4),
    Contender(name="map 20, 4 knots", keys={"kind": "map", "population": 20}, knots=4),
    Contender(name="Bayesian map 20, 4 knots", keys={"kind": "map", "acquisition": "improvement"}, knots=4),
    Contender(name="published style: nsga2 40 per layer", keys={"kind": "nsga2", "population": 40}, knots=PER_LAYER),
    Contender(name="random per layer", keys={"kind": "random", "population": 20}, knots=PER_LAYER),
)
OF_OTHER_SPACES = {"map", "grid", "graft", "m2n2"}
"""Algorithms that search few genes, or paths, or spaces that cross genomes."""

ASKING = tuple(kind for kind in AlgorithmConfig.kinds if kind not in OF_OTHER_SPACES)


def built(keys: dict[str, Any], genes: int, objectives: int, seed: int) -> Algorithm:
    """A fresh algorithm."""
    config = CONFIG.validate_python(keys)
    return build_algorithm(config, Problem(space=Coefficients(genes), weights=(1.0,) * objectives, seed=seed))


def searched(contender: Contender, tasks: tuple[Merge, ...], seed: int, worth: Worth) -> list[float]:
    """What the answer is worth at each stop, in per cent."""
    rng = np.random.default_rng((seed, 1000))
    algorithm = built(contender.keys, contender.knots * GROUPS, len(tasks), seed)
    found, spent = [], 0
    for stop in STOPS:
        while 0 < algorithm.population <= stop - spent:
            genomes = algorithm.ask()
            truth = [accuracies(tasks, genome, contender.knots) for genome in genomes]
            scores = rng.binomial(ANSWERS, truth) / ANSWERS
            told = zip(genomes, scores.tolist(), strict=True)
            algorithm.tell([Evaluation(genome=g, costs=tuple(-score for score in row)) for g, row in told])
            spent += len(genomes)
        found.append(100.0 * worth(algorithm))
    return found


def accuracies(tasks: tuple[Merge, ...], genome: Genome, knots: int) -> tuple[float, ...]:
    """The truth about a genome."""
    coefficients = profile(genome.values, knots)
    return tuple(task.accuracy(coefficients) for task in tasks)


def single(contender: Contender, seed: int) -> list[float]:
    """True accuracy of the first answer."""
    tasks = (made(seed),)
    return searched(contender, tasks, seed, lambda a: accuracies(tasks, a.answer()[0], contender.knots)[0])


def double(contender: Contender, seed: int) -> list[float]:
    """True hypervolume of the answer, relative to the true front."""
    tasks = (made(seed, 0), made(seed, 1))
    most = front_volume(*tasks)

    def worth(algorithm: Algorithm) -> float:
        return float(volume([accuracies(tasks, genome, contender.knots) for genome in algorithm.answer()]) / most)

    return searched(contender, tasks, seed, worth)


def rows_of(title: str, contender: Contender, measure: Callable[[Contender, int], list[float]]) -> list[Row]:
    """Means and 95 % intervals over the seeds, one row for each stop."""
    figures: Floats = np.array([measure(contender, seed) for seed in SEEDS])
    means = figures.mean(axis=0)
    half = stats.t.ppf(0.975, len(figures) - 1) * figures.std(axis=0, ddof=1) / np.sqrt(len(figures))
    targets = contender.targets or (None,) * len(STOPS)
    return [
        Row(
            name=f"{title}, {contender.name} @{stop}",
            target="-" if target is None else f">= {target:.0f}",
            measured=f"{mean:.1f} +- {reach:.1f}",
            met=None if target is None else bool(mean >= target),
        )
        for stop, target, mean, reach in zip(STOPS, targets, means, half, strict=True)
    ]


def asking(kind: str) -> Row:
    """CPU time to ask and tell at 200 genes and two objectives, per candidate."""
    algorithm = built({"kind": kind}, 200, 2, 0)
    rng = np.random.default_rng(0)
    generations = 10
    seconds = []
    for _ in range(generations):
        started = time.process_time()
        told = [Evaluation(genome=genome, costs=tuple(rng.random(2).tolist())) for genome in algorithm.ask()]
        algorithm.tell(told)
        seconds.append(time.process_time() - started)
    spent = 1000.0 * float(np.median(seconds)) / algorithm.population
    return Row(name=f"ask and tell, 200 genes, {kind}", target="<= 2 ms", measured=f"{spent:.2f} ms", met=spent <= 2.0)


def replaying(kind: str) -> Row:
    """CPU time to take in 10,000 evaluations of 64 genes and two objectives again; in quick runs from a tenth of it."""
    algorithm = built({"kind": kind}, 64, 2, 0)
    rng = np.random.default_rng(0)
    wanted, told = 1_000 if QUICK else 10_000, 0
    started = time.process_time()
    while told < wanted:
        genomes = algorithm.ask()
        algorithm.tell([Evaluation(genome=genome, costs=tuple(rng.random(2).tolist())) for genome in genomes])
        told += len(genomes)
    spent = (time.process_time() - started) * 10_000 / told
    name = f"replay of 10,000 evaluations, {kind}"
    return Row(name=name, target="<= 30 s", measured=f"{spent:.1f} s", met=spent <= 30.0)


def resuming(case: str, found: Resumed) -> Row:
    """Whether a run that died at every step became what an undisturbed one is."""
    return Row(
        name=f"killed before each of {found.jobs} jobs, {case}",
        target="nothing lost, done twice or changed",
        measured=f"{found.deaths} deaths, {'the same' if found.same else 'another'} archive",
        met=found.met,
    )


def every_row() -> Iterator[Row]:
    """Everything, in the order in which it is measured; the searches on real models only in full runs."""
    for contender in SINGLE:
        yield from rows_of("accuracy", contender, single)
    for contender in DOUBLE:
        yield from rows_of("hypervolume", contender, double)
    yield from landscape_rows()
    yield from map(asking, ASKING)
    yield from map(replaying, ASKING)
    yield from starmap(resuming, resumed_cases(None if QUICK else 60))
    if not QUICK:
        yield from family_rows()
        yield from real_search()


if __name__ == "__main__":
    conclude("search", every_row())
