"""The manager: sign of costs, the failure policy, the answer."""

import math
from collections.abc import Sequence
from typing import final

import pytest

from evomerge.population import Algorithm, Evaluation, PopulationManager
from evomerge.population.genetic import Nsga2
from evomerge.spaces import Genome


@final
class Recorder(Algorithm):
    """Asks for two new genomes each time and keeps what it is told."""

    population = 2

    def __init__(self) -> None:
        self.told: list[tuple[float, ...]] = []

    def answer(self) -> tuple[Genome, ...]:
        return tuple(Genome((i / 100,)) for i in range(len(self.told)))

    def _propose(self) -> tuple[Genome, ...]:
        return tuple(Genome(((len(self.told) + i) / 100,)) for i in range(2))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        self.told.extend(evaluation.costs for evaluation in evaluations)


def test_scores_become_costs() -> None:
    recorder = Recorder()
    manager = PopulationManager(recorder, objectives=2)
    manager.ask()
    manager.tell([(0.25, 1.0), (0.5, -3.0)])
    assert recorder.told == [(-0.25, -1.0), (-0.5, 3.0)]


def test_failures_cost_more_than_anything_seen_in_each_objective() -> None:
    recorder = Recorder()
    manager = PopulationManager(recorder, objectives=2)
    manager.anchors([(0.9, 0.1), None, (0.2, 0.8)])
    manager.ask()
    manager.tell([None, (0.5, 0.05)])
    assert recorder.told == [(1.8, 1.95), (-0.5, -0.05)]
    manager.ask()
    manager.tell([(0.1, 0.5), None])
    assert recorder.told[2:] == [(-0.1, -0.5), (1.9, 1.95)]


def test_failures_before_any_score_are_finite_and_worse_than_later_ones() -> None:
    recorder = Recorder()
    manager = PopulationManager(recorder, objectives=1)
    manager.anchors([None])
    manager.ask()
    manager.tell([None, None])
    manager.ask()
    manager.tell([(-1000.0,), None])
    assert all(math.isfinite(cost) for costs in recorder.told for cost in costs)
    assert recorder.told[0] == recorder.told[1] > recorder.told[3] > recorder.told[2]


def test_failed_genomes_are_never_an_answer() -> None:
    manager = PopulationManager(Recorder(), objectives=1)
    first = manager.ask()
    manager.tell([None, (0.5,)])
    assert manager.answer() == first[1:]


def test_an_algorithm_lives_through_failures_only() -> None:
    manager = PopulationManager(Nsga2(start=Genome((0.5, 0.5)), objectives=2, population=4, seed=0), objectives=2)
    for _ in range(5):
        manager.tell([None] * len(manager.ask()))
    assert manager.answer() == ()
    manager.tell([genome.values for genome in manager.ask()])
    assert len(manager.answer()) > 0


def test_generations_are_counted_when_told() -> None:
    manager = PopulationManager(Recorder(), objectives=1)
    assert manager.generation == 0
    manager.ask()
    assert manager.generation == 0
    manager.tell([(0.0,), (1.0,)])
    assert manager.generation == 1


def test_wrong_tells_are_refused() -> None:
    manager = PopulationManager(Recorder(), objectives=2)
    with pytest.raises(RuntimeError, match="without ask"):
        manager.tell([])
    manager.ask()
    with pytest.raises(RuntimeError, match="twice"):
        manager.ask()
    with pytest.raises(ValueError, match="2 candidates"):
        manager.tell([(0.0, 0.0)])
    for wrong in ((0.0,), (0.0, math.nan), (0.0, -math.inf)):
        with pytest.raises(ValueError, match="2 finite scores"):
            manager.tell([(0.0, 0.0), wrong])
        with pytest.raises(ValueError, match="2 finite scores"):
            manager.anchors([wrong])
    manager.tell([(0.0, 0.0), None])
    with pytest.raises(RuntimeError, match="without ask"):
        manager.tell([(0.0, 0.0), None])


def test_feasibility_comes_first_and_failures_last() -> None:
    recorder = Recorder()
    manager = PopulationManager(recorder, objectives=2)
    manager.anchors([(0.1, 0.2)])
    manager.ask()
    manager.tell([(0.9, 0.9), (0.0, 0.3)], [0.5, 0.0])
    manager.ask()
    manager.tell([(0.9, 0.9), None], [3.0, 0.0])
    broken, feasible, worse, failed = recorder.told
    assert feasible == (0.0, -0.3)
    for better, than in ((feasible, broken), (broken, worse), (worse, failed)):
        assert all(a < b for a, b in zip(better, than, strict=True))


def test_a_feasible_candidate_is_better_than_one_that_broke_a_constraint_before() -> None:
    recorder = Recorder()
    manager = PopulationManager(recorder, objectives=1)
    manager.anchors([(0.9,)])
    manager.ask()
    manager.tell([(0.9,), (0.95,)], [0.02, 0.0])
    manager.ask()
    manager.tell([(0.0,), None], [0.0, 0.0])
    broken, _, feasible, failed = recorder.told
    assert feasible < broken < failed


def test_violations_are_one_for_each_candidate() -> None:
    manager = PopulationManager(Recorder(), objectives=1)
    manager.ask()
    with pytest.raises(ValueError, match="shorter"):
        manager.tell([(0.1,), (0.2,)], [0.0])
