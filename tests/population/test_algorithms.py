"""One contract for all algorithms, and what each promises beyond it."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge import config
from evomerge.errors import ConfigError
from evomerge.pareto import hypervolume, nondominated
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.spaces import Genome, ParameterSpace

CONFIGS: dict[str, dict[str, Any]] = {
    "cma": {"kind": "cma", "population": 8},
    "lr_adapt": {"kind": "cma", "population": 8, "lr_adapt": True},
    "sep_cma": {"kind": "sep_cma", "population": 8},
    "cat_cma": {"kind": "cat_cma", "population": 8},
    "nsga2": {"kind": "nsga2", "population": 8},
    "nsga3": {"kind": "nsga3", "population": 8},
    "sms_emoa": {"kind": "sms_emoa", "population": 8},
    "islands": {"kind": "islands", "population": 16},
    "map": {"kind": "map", "population": 8},
    "bayesian_map": {"kind": "map", "population": 8, "acquisition": "improvement"},
    "random": {"kind": "random", "population": 8},
    "kinship": {"kind": "kinship", "population": 8},
    "frank_wolfe": {"kind": "frank_wolfe", "population": 8},
    "by_layer": {"kind": "frank_wolfe", "population": 8, "by": "layer"},
    "reinforced": {"kind": "reinforced", "population": 8},
    "qd": {"kind": "qd", "population": 8},
    "refined": {
        "kind": "refined",
        "stages": [
            {"knots": 1, "evaluations": 16, "algorithm": {"kind": "cma", "population": 8}},
            {"knots": 2, "evaluations": 24, "algorithm": {"kind": "nsga2", "population": 8}},
            {"algorithm": {"kind": "cma", "population": 8}},
        ],
    },
}
CONFIG: TypeAdapter[Any] = TypeAdapter(config.AlgorithmConfig)
Costs = Callable[[Genome], tuple[float, ...]]


def space(genes: int = 6) -> ParameterSpace:
    """A space of `genes` genes, 3 or more: one shared parameter, its knots, embeddings and head."""
    data = {"kind": "parameter", "operator": {"name": "slerp"}, "genes": {"t": {}}, "knots": genes - 2}
    return ParameterSpace(
        config.ParameterSpaceConfig.model_validate(data),
        base="base",
        experts=("rev",),
        layers=genes,
        dtype="float32",
        seed=0,
    )


def build(kind: str, *, seed: int = 3, objectives: int = 2, genes: int = 6, **changes: Any) -> Algorithm:
    chosen = CONFIG.validate_python(CONFIGS[kind] | changes)
    return build_algorithm(chosen, Problem(space=space(genes), weights=(1.0,) * objectives, seed=seed))


def two_spheres(genome: Genome) -> tuple[float, ...]:
    """Two objectives whose optima lie apart, at 0.3 and at 0.8 in every gene."""
    return tuple(float(np.mean((np.array(genome.values) - centre) ** 2)) for centre in (0.3, 0.8))


def step(algorithm: Algorithm, costs: Costs = two_spheres) -> tuple[Genome, ...]:
    genomes = algorithm.ask()
    algorithm.tell([Evaluation(genome=genome, costs=costs(genome)) for genome in genomes])
    return genomes


def drive(algorithm: Algorithm, generations: int, costs: Costs = two_spheres) -> list[tuple[Genome, ...]]:
    return [step(algorithm, costs) for _ in range(generations)]


def values_of(generations: list[tuple[Genome, ...]]) -> list[list[list[float]]]:
    return [[list(genome.values) for genome in generation] for generation in generations]


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """Generations of every algorithm, from another process."""
    script = (
        "import json, runpy\n"
        f"module = runpy.run_path({__file__!r})\n"
        "drive, build, values_of = module['drive'], module['build'], module['values_of']\n"
        "print(json.dumps({kind: values_of(drive(build(kind), 6)) for kind in module['CONFIGS']}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
class TestConformance:
    def test_generations_are_full_and_fit_the_space(self, kind: str) -> None:
        algorithm = build(kind)
        for generation in drive(algorithm, 12):
            assert len(generation) == algorithm.population == CONFIGS[kind].get("population", 8)
            assert {len(genome) for genome in generation} == {6}

    def test_the_seed_decides(self, kind: str) -> None:
        assert drive(build(kind), 5) == drive(build(kind), 5)
        assert drive(build(kind), 1) != drive(build(kind, seed=4), 1)

    def test_instances_do_not_disturb_each_other_nor_the_process(self, kind: str) -> None:
        alone = drive(build(kind), 6)
        before = repr(np.random.get_state())  # noqa: NPY002  (the global state is what must not be touched)
        first, three = build(kind), build(kind, objectives=3, seed=9)
        together = []
        for _ in range(6):
            step(three, lambda genome: (*two_spheres(genome), genome.values[0]))
            together.append(step(first))
        assert together == alone
        assert repr(np.random.get_state()) == before  # noqa: NPY002

    def test_reading_its_state_changes_nothing(self, kind: str) -> None:
        watched, told = build(kind), []
        for _ in range(6):
            told.append(watched.state())
            step(watched)
        assert values_of([step(watched)]) == values_of([drive(build(kind), 7)[-1]])
        assert all(math.isfinite(value) for state in told for value in state.values())
        if kind in ("cma", "sep_cma", "cat_cma", "lr_adapt"):
            assert len({state["sigma"] for state in told}) == len(told), "it learns in each generation"
        elif kind == "refined":
            assert [state["stage"] for state in told] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
        elif kind == "islands":
            names = ("sigma, the middle", "sigma, objective 1", "sigma, objective 2", "restarts")
            assert all(tuple(state) == names for state in told)

    def test_replay_of_any_length_continues_bit_identically(self, kind: str) -> None:
        live = build(kind)
        history: list[list[Evaluation]] = []
        for _ in range(7):
            genomes = live.ask()
            replayed = build(kind)
            for evaluations in history:
                assert replayed.ask() == tuple(evaluation.genome for evaluation in evaluations)
                replayed.tell(evaluations)
            assert replayed.answer() == live.answer()
            assert replayed.ask() == genomes
            history.append([Evaluation(genome=genome, costs=two_spheres(genome)) for genome in genomes])
            live.tell(history[-1])

    def test_replay_in_another_process_is_bit_identical(self, kind: str, elsewhere: dict[str, Any]) -> None:
        assert elsewhere[kind] == values_of(drive(build(kind), 6))

    @pytest.mark.parametrize("trouble", [0.0, 1e9, 1e300])
    def test_replay_is_bit_identical_whatever_is_told(self, kind: str, trouble: float) -> None:
        def told(genome: Genome) -> tuple[float, ...]:
            return two_spheres(genome) if sum(genome.values) % 0.1 < 0.05 else (trouble, trouble)

        assert drive(build(kind), 12, told) == drive(build(kind), 12, told)

    def test_tell_leaves_its_argument_alone(self, kind: str) -> None:
        algorithm = build(kind)
        evaluations = [Evaluation(genome=g, costs=two_spheres(g)) for g in algorithm.ask()]
        evaluations_before = list(evaluations)
        algorithm.tell(evaluations)
        assert evaluations == evaluations_before

    def test_the_order_of_calls_is_enforced(self, kind: str) -> None:
        algorithm = build(kind)
        with pytest.raises(RuntimeError, match="without ask"):
            algorithm.tell([])
        genomes = algorithm.ask()
        with pytest.raises(RuntimeError, match="twice"):
            algorithm.ask()
        algorithm.tell([Evaluation(genome=genome, costs=(0.0, 1.0)) for genome in genomes])
        with pytest.raises(RuntimeError, match="without ask"):
            algorithm.tell([])

    def test_other_genomes_than_asked_are_refused_and_change_nothing(self, kind: str) -> None:
        algorithm = build(kind)
        evaluations = [Evaluation(genome=g, costs=two_spheres(g)) for g in algorithm.ask()]
        other = Evaluation(genome=Genome((0.123,) * 6), costs=(0.0, 0.0))
        for wrong in (evaluations[:-1], evaluations[::-1], [*evaluations[:-1], other], [*evaluations, other]):
            with pytest.raises(ValueError, match="in the same order"):
                algorithm.tell(wrong)
        algorithm.tell(evaluations)
        assert [algorithm.ask()] == drive(build(kind), 2)[1:]

    def test_constant_costs_are_survived(self, kind: str) -> None:
        algorithm = build(kind)
        drive(algorithm, 100, lambda _: (1.0, 1.0))
        drive(algorithm, 30)
        assert min(sum(two_spheres(genome)) for genome in algorithm.answer()) < 0.3

    def test_costs_of_any_size_are_survived(self, kind: str) -> None:
        algorithm = build(kind)
        for size in (1e-300, 1e300, 1e9, 1e-9, 0.0):
            drive(algorithm, 6, lambda genome, size=size: tuple(size * cost for cost in two_spheres(genome)))  # type: ignore[misc]

    def test_answer_is_distinct_and_empty_at_first(self, kind: str) -> None:
        algorithm = build(kind)
        assert algorithm.answer() == ()
        drive(algorithm, 6)
        assert len(set(algorithm.answer())) == len(algorithm.answer()) > 0

    @pytest.mark.parametrize("objectives", [1, 3])
    @pytest.mark.parametrize("genes", [3, 40])
    def test_other_sizes_work_or_are_refused(self, kind: str, objectives: int, genes: int) -> None:
        few = {"population": 16 if kind == "islands" else 4} if "population" in CONFIGS[kind] else {}
        if CONFIG.validate_python(CONFIGS[kind] | few).misfit(objectives, genes):
            with pytest.raises(ValueError, match=r"takes at most|needs at least"):
                build(kind, objectives=objectives, genes=genes, **few)
            return
        if kind == "refined" and genes == 3:
            with pytest.raises(ConfigError, match="at most as many knots as the space has; got 2"):
                build(kind, objectives=objectives, genes=genes)
            return
        algorithm = build(kind, objectives=objectives, genes=genes, **few)
        drive(algorithm, 10, lambda genome: genome.values[:objectives])


def test_one_gene_is_enough() -> None:
    from evomerge.population.cma import Cma
    from evomerge.population.genetic import Nsga2
    from evomerge.population.random_search import RandomSearch

    start = Genome((1.0,))
    for algorithm in (
        Cma(start=start, weights=(1.0,), population=6, sigma=0.2, seed=0),
        Nsga2(start=start, objectives=1, population=6, seed=0),
        RandomSearch(genes=1, population=6, seed=0),
    ):
        drive(algorithm, 20, lambda genome: ((genome.values[0] - 0.25) ** 2,))
        assert algorithm.answer()[0].values[0] == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("costs", [(), (math.nan,), (0.0, math.inf)])
def test_evaluations_need_finite_costs(costs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite costs"):
        Evaluation(genome=Genome((0.5,)), costs=costs)


@pytest.mark.parametrize("seed", range(3))
def test_cma_beats_random_on_the_weighted_mean(seed: int) -> None:
    def best(kind: str) -> float:
        algorithm = build(kind, seed=seed, genes=12, population=12)
        drive(algorithm, 25)
        return min(sum(two_spheres(genome)) for genome in algorithm.answer())

    optimum = 2 * 0.25**2
    assert best("cma") - optimum < 0.1 * (best("random") - optimum)


@pytest.mark.parametrize("seed", range(3))
def test_nsga2_beats_random_in_hypervolume(seed: int) -> None:
    def volume(kind: str) -> float:
        algorithm = build(kind, seed=seed, genes=12, population=20)
        drive(algorithm, 25)
        return hypervolume([two_spheres(genome) for genome in algorithm.answer()], (0.3, 0.3))

    optimum = 0.3**2 - 0.5**4 / 6  # the box up to the reference, less what lies under the true front (s^2, (1/2 - s)^2)
    assert optimum - volume("nsga2") < 0.6 * (optimum - volume("random"))


def test_cma_weighs_the_objectives() -> None:
    from evomerge.population.cma import Cma

    def where(weights: tuple[float, float]) -> float:
        algorithm = Cma(start=Genome((0.5,) * 4), weights=weights, population=12, sigma=0.2, seed=1)
        drive(algorithm, 60)
        return float(np.mean(algorithm.answer()[0].values))

    assert where((1.0, 0.0001)) == pytest.approx(0.3, abs=0.01)
    assert where((3.0, 1.0)) == pytest.approx(0.75 * 0.3 + 0.25 * 0.8, abs=0.01)


def test_cma_answers_with_the_mean_then_the_last_generation_best_first() -> None:
    algorithm = build("cma")
    *_, last = drive(algorithm, 30)
    mean, *rest = algorithm.answer()
    assert mean not in last
    assert rest == sorted(last, key=lambda genome: sum(two_spheres(genome)))
    assert sum(two_spheres(mean)) < sum(two_spheres(rest[-1]))


def test_cma_goes_on_after_it_converged() -> None:
    algorithm = build("cma", genes=3, population=12)
    drive(algorithm, 250)
    assert algorithm.answer()[0].values == pytest.approx([0.55] * 3, abs=0.05)
    spreads = [np.std([genome.values for genome in step(algorithm)]) for _ in range(100)]
    assert max(spreads) > 0.1, "the distribution never widened again"


def test_cma_first_steps_are_a_share_of_the_range() -> None:
    for sigma in (0.05, 0.2):
        values = [g.values for g in build("cma", sigma=sigma, population=400).ask()]
        assert np.std(values) == pytest.approx(sigma, rel=0.2)


def test_nsga2_begins_at_the_start() -> None:
    generation = build("nsga2", population=20).ask()
    assert generation[0] == space().start
    distance = np.abs(np.array([genome.values for genome in generation]) - 0.5).mean(axis=1)
    assert distance[1:6].max() < 0.2 < distance[6:].mean()


def test_nsga2_answers_with_the_front_of_its_population() -> None:
    algorithm = build("nsga2", population=20)
    generations = drive(algorithm, 20)
    answer = algorithm.answer()
    costs = [two_spheres(genome) for genome in answer]
    assert nondominated(costs) == list(range(len(costs)))
    assert set(answer) <= {genome for generation in generations for genome in generation}
    assert 5 < len(answer) <= 20


def test_random_search_answers_with_the_front_of_everything() -> None:
    algorithm = build("random")
    told = [genome for generation in drive(algorithm, 10) for genome in generation]
    front = {told[i] for i in nondominated([two_spheres(genome) for genome in told])}
    assert set(algorithm.answer()) == front


def test_the_package_loads_no_optimizer_library() -> None:
    script = (
        "import sys, evomerge.population, evomerge.spaces, evomerge.pareto\n"
        "heavy = {'torch', 'transformers', 'ray', 'vllm', 'lm_eval', 'cmaes', 'pymoo', 'scipy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
