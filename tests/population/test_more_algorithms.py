"""What each of the further algorithms promises beyond the common contract."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge import config
from evomerge.pareto import hypervolume
from evomerge.population import FEWEST_EARLIER, Algorithm, Evaluation, Problem, build_algorithm
from evomerge.population.cma import Cma, learned_from
from evomerge.spaces import Gene, Genome

CONFIG: TypeAdapter[Any] = TypeAdapter(config.AlgorithmConfig)
Costs = Callable[[Genome], tuple[float, ...]]


class Box:
    """A space of numbers, and of choices after them, that nothing decodes."""

    def __init__(self, numbers: int, choices: tuple[int, ...] = ()) -> None:
        self.genes = (
            *(Gene(name=f"n{i}", low=0.0, high=1.0, start=0.5) for i in range(numbers)),
            *(
                Gene(name=f"c{i}", low=0.0, high=1.0, start=0.5 / size, choices=tuple("abcdefgh"[:size]))
                for i, size in enumerate(choices)
            ),
        )
        self.start = Genome(tuple(gene.start for gene in self.genes))

    def decode(self, genome: Genome) -> Any:
        raise NotImplementedError


def build(
    kind: str,
    *,
    box: Box | None = None,
    objectives: int = 2,
    seed: int = 0,
    told: tuple[Evaluation, ...] = (),
    **keys: Any,
) -> Algorithm:
    return build_algorithm(
        CONFIG.validate_python({"kind": kind, **keys}),
        Problem(space=box or Box(8), weights=(1.0,) * objectives, seed=seed, earlier=told),
    )


def drive(algorithm: Algorithm, evaluations: int, costs: Costs) -> list[Evaluation]:
    told: list[Evaluation] = []
    while len(told) + algorithm.population <= evaluations:
        generation = [Evaluation(genome=genome, costs=costs(genome)) for genome in algorithm.ask()]
        algorithm.tell(generation)
        told += generation
    return told


def sphere(genome: Genome) -> tuple[float, ...]:
    return (float(np.sum((np.array(genome.values) - 0.3) ** 2)),)


def two_spheres(genome: Genome) -> tuple[float, ...]:
    return tuple(float(np.mean((np.array(genome.values) - centre) ** 2)) for centre in (0.3, 0.8))


def volume(kind: str, seed: int, **keys: Any) -> float:
    algorithm = build(kind, seed=seed, **keys)
    drive(algorithm, 300, two_spheres)
    return hypervolume([two_spheres(genome) for genome in algorithm.answer()], (0.3, 0.3))


FRONT = 0.3**2 - 0.5**4 / 6
"""The box up to the reference, less what lies under the true front (s^2, (1/2 - s)^2)."""


@pytest.mark.parametrize("kind", ["nsga3", "sms_emoa", "islands", "map"])
def test_fronts_are_better_than_those_of_random_search(kind: str) -> None:
    gaps = [FRONT - volume(kind, seed) for seed in range(3)]
    random = [FRONT - volume("random", seed) for seed in range(3)]
    assert np.mean(gaps) < 0.85 * np.mean(random)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("sep_cma", {"population": 16}), ("cat_cma", {}), ("map", {})],
)
def test_single_objectives_are_solved_better_than_by_random_search(kind: str, keys: dict[str, Any]) -> None:
    def left(kind: str, seed: int, **keys: Any) -> float:
        algorithm = build(kind, objectives=1, seed=seed, **keys)
        drive(algorithm, 300, sphere)
        return sphere(algorithm.answer()[0])[0]

    assert np.mean([left(kind, seed, **keys) for seed in range(3)]) < 0.4 * np.mean(
        [left("random", seed) for seed in range(3)]
    )


@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_adapted_learning_rates_converge_though_they_widen_the_distribution_first(sigma: float) -> None:
    algorithm = build("cma", objectives=1, lr_adapt=True, sigma=sigma)
    drive(algorithm, 1200, sphere)
    assert sphere(algorithm.answer()[0])[0] < 0.02


class TestChoices:
    BOX = Box(4, choices=(5, 2, 3))
    BEST = (3, 0, 1)
    """Neighbours of the best are no better than the rest."""

    def chosen(self, genome: Genome) -> tuple[int, ...]:
        return tuple(g.index(v) for g, v in zip(self.BOX.genes, genome.values, strict=True) if g.choices)

    def costs(self, genome: Genome) -> tuple[float, ...]:
        wrong = sum(pick != best for pick, best in zip(self.chosen(genome), self.BEST, strict=True))
        return (float(np.sum((np.array(genome.values[:4]) - 0.3) ** 2)) + wrong,)

    @pytest.mark.parametrize("seed", range(4))
    def test_the_right_ones_are_found(self, seed: int) -> None:
        algorithm = build("cat_cma", box=self.BOX, objectives=1, seed=seed)
        drive(algorithm, 24 * 40, self.costs)
        answer = algorithm.answer()[0]
        assert self.chosen(answer) == self.BEST
        assert self.costs(answer)[0] < 0.01

    def test_every_one_is_tried_at_first_and_none_dies_out(self) -> None:
        algorithm = build("cat_cma", box=self.BOX, objectives=1, population=60)
        told = drive(algorithm, 60 * 30, self.costs)
        for part in (told[:60], told[-600:]):
            seen = [Counter(picks) for picks in zip(*(self.chosen(e.genome) for e in part), strict=True)]
            assert [len(counter) for counter in seen] == [5, 2, 3]

    def test_they_stand_in_the_middle_of_their_part(self) -> None:
        genome = build("cat_cma", box=self.BOX, objectives=1).ask()[0]
        shares = [value * size for value, size in zip(genome.values[4:], (5, 2, 3), strict=True)]
        assert [share % 1 for share in shares] == pytest.approx([0.5] * 3)

    def test_choices_alone_are_enough(self) -> None:
        box = Box(0, choices=(4, 4))
        algorithm = build("cat_cma", box=box, objectives=1)
        drive(algorithm, 24 * 20, lambda genome: (abs(genome.values[0] - 0.625) + abs(genome.values[1] - 0.375),))
        assert algorithm.answer()[0].values == (0.625, 0.375)

    def test_equal_costs_widen_the_choices_again(self) -> None:
        algorithm = build("cat_cma", box=self.BOX, objectives=1)
        drive(algorithm, 24 * 40, self.costs)
        told = drive(algorithm, 24 * 20, lambda _: (1.0,))
        assert min(Counter(self.chosen(e.genome)[1] for e in told[-240:]).values()) > 24


class TestIslands:
    def test_a_generation_is_shared_evenly(self) -> None:
        algorithm = build("islands", population=13)
        assert len(drive(algorithm, 13, two_spheres)) == 13

    def test_each_looks_at_its_own_corner(self) -> None:
        algorithm = build("islands", population=36)
        drive(algorithm, 36 * 40, two_spheres)
        middle, first, second = (float(np.mean(genome.values)) for genome in algorithm.answer()[:3])
        assert first == pytest.approx(0.3, abs=0.15)
        assert second == pytest.approx(0.8, abs=0.15)
        assert first + 0.1 < middle < second - 0.1

    def test_points_between_the_means_answer_too(self) -> None:
        algorithm = build("islands", population=36)
        drive(algorithm, 36 * 40, two_spheres)
        middle, first, second, *others = (float(np.mean(genome.values)) for genome in algorithm.answer())
        for low, high in ((first, middle), (middle, second)):
            assert sum(low < value < high for value in others[:6]) == 3

    def test_a_failed_generation_moves_nobody(self) -> None:
        algorithm = build("islands", population=36)
        drive(algorithm, 36, lambda _: (1e9, 1e9))
        assert algorithm.answer()[0].values == pytest.approx((0.5,) * 8)


def test_a_guest_pulls_the_mean_but_no_farther_than_a_sample() -> None:
    def mean(guest: Evaluation | None) -> float:
        algorithm = Cma(start=Genome((0.5,) * 4), weights=(1.0,), population=12, sigma=0.05, seed=0)
        genomes = algorithm.ask()
        if guest is not None:
            algorithm.invite(guest)
        algorithm.tell([Evaluation(genome=genome, costs=(float(i),)) for i, genome in enumerate(genomes)])
        return float(np.mean(algorithm.answer()[0].values))

    far = Evaluation(genome=Genome((0.95,) * 4), costs=(-1.0,))
    assert mean(None) + 0.01 < mean(far) < 0.65


class TestWarmStart:
    def test_the_first_generation_lies_where_the_earlier_best_did(self) -> None:
        earlier = tuple(drive(build("cma", objectives=1), 240, sphere))
        for kind in ("cma", "sep_cma"):
            cold, warm = (build(kind, objectives=1, seed=7, told=told) for told in ((), earlier))
            costs = [np.mean([sphere(genome)[0] for genome in algorithm.ask()]) for algorithm in (cold, warm)]
            assert costs[1] < 0.5 * costs[0]

    def test_the_distribution_is_that_of_the_best_tenth(self) -> None:
        rng = np.random.default_rng(0)
        genomes = [Genome((float(a), float(1 - a))) for a in rng.random(400)]
        cost = [(abs(genome.values[0] - 0.6),) for genome in genomes]
        learned = learned_from([Evaluation(genome=g, costs=c) for g, c in zip(genomes, cost, strict=True)], (1.0,))
        assert learned.covariance is not None
        assert np.sin(2 * learned.mean) * 0.5 + 0.5 == pytest.approx([0.6, 0.4], abs=0.02)
        assert np.linalg.det(learned.covariance) == pytest.approx(1.0)
        assert learned.covariance[0, 1] < 0.0

    def test_too_little_is_refused(self) -> None:
        told = [Evaluation(genome=Genome((0.5,)), costs=(0.0,))] * (FEWEST_EARLIER - 1)
        with pytest.raises(ValueError, match="at least 10 evaluations; got 9"):
            learned_from(told, (1.0,))


@pytest.mark.parametrize(
    ("keys", "objectives", "genes", "expected"),
    [
        ({"kind": "nsga3"}, 1, 1, "at least 2 objectives; got 1"),
        ({"kind": "sms_emoa"}, 5, 1, "at most 4 objectives; got 5"),
        ({"kind": "islands", "population": 15}, 3, 1, "population of at least 16"),
        ({"kind": "map"}, 2, 9, "at most 8 genes; got 9"),
        ({"kind": "cma"}, 9, 900, None),
    ],
)
def test_what_an_algorithm_cannot_take_is_said(
    keys: dict[str, Any], objectives: int, genes: int, expected: str | None
) -> None:
    misfit = CONFIG.validate_python(keys).misfit(objectives, genes)
    assert (misfit is None) if expected is None else (misfit is not None and expected in misfit)
