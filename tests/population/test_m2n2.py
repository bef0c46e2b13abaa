"""M2N2: its three functions by hand, and what the algorithm promises on a space that crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.config import SoupConfig
from evomerge.population import Evaluation, PopulationManager
from evomerge.population.base import Item
from evomerge.population.m2n2 import M2n2, Member, attraction, competition, survivors
from evomerge.spaces import Genome, Models
from evomerge.spaces.soup import SoupSpace

NAN = math.nan
NAMES = tuple(f"step{number}" for number in range(6))


def space() -> SoupSpace:
    config = SoupConfig.model_validate({"kind": "soup", "knots": 3})
    return SoupSpace(config, Models(base="base", experts=NAMES, layers=3, dtype="float32"))


def algorithm(*, seed: int = 0, population: int = 8, archive: int = 5, mutation: float = 0.0) -> M2n2:
    return M2n2(
        space=space(),
        weights=(1.0,),
        population=population,
        archive=archive,
        alpha=1.0,
        mutation=mutation,
        seed=seed,
    )


def solved(genome: Genome, asked: range = range(24)) -> dict[Item, float]:
    """Items that each want one expert's share, or two of them."""
    recipe = space().decode(genome)
    shares = dict(zip(recipe.sources, recipe.parameter("weight").at("mlp", 1), strict=True))
    return {(0, 0, item): float(shares.get(NAMES[item % 6], 0.0) > 0.1 + item / 100.0) for item in asked}


def told(genome: Genome, items: Mapping[Item, float]) -> Evaluation:
    return Evaluation(genome=genome, costs=(-float(np.mean([*items.values()])),), items=items)


def step(of: M2n2) -> tuple[Genome, ...]:
    genomes = of.ask()
    of.tell([told(genome, solved(genome)) for genome in genomes])
    return genomes


def member(number: int, scores: list[float]) -> Member:
    items = {(0, 0, item): score for item, score in enumerate(scores) if not math.isnan(score)}
    return Member(genome=Genome((number / 10,)), costs=(0.0,), items=items)


class TestCompetition:
    def test_an_item_is_shared_by_those_who_solve_it(self) -> None:
        scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        taken = competition(scores, np.ones(3))
        assert taken.tolist() == [[0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]
        assert competition(scores, np.ones(3), alpha=0.0).tolist() == scores.tolist()

    def test_capacity_is_what_there_is_to_share(self) -> None:
        taken = competition(np.array([[1.0, 0.5], [1.0, 0.5]]), np.array([1.0, 3.0]))
        assert taken.sum(axis=0).tolist() == [1.0, 3.0]

    def test_who_was_not_asked_is_taken_to_score_like_the_others(self) -> None:
        taken = competition(np.array([[1.0], [1.0], [NAN], [NAN]]), np.ones(1))
        assert taken[:2].ravel().tolist() == [0.25, 0.25]
        assert np.isnan(taken[2:]).all()

    @given(arrays(float, (4, 6), elements=st.sampled_from([0.0, 0.5, 1.0, NAN])))
    def test_no_item_gives_more_than_its_capacity(self, scores: np.ndarray) -> None:
        taken = competition(scores, np.full(6, 2.0))
        assert (np.nansum(taken, axis=0) <= 2.0 + 1e-9).all()
        assert (np.isnan(taken) == np.isnan(scores)).all()


class TestAttraction:
    def test_who_solves_what_the_first_fails_attracts(self) -> None:
        taken = competition(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), np.ones(3))
        assert attraction(taken, 0).tolist() == pytest.approx([0.0, 0.0, 2.0 / 3.0])

    def test_nobody_attracts_who_solves_all(self) -> None:
        taken = competition(np.array([[1.0, 1.0], [1.0, 0.0]]), np.ones(2))
        assert attraction(taken, 0).tolist() == [0.0, 0.0]

    def test_items_that_one_was_not_asked_say_nothing(self) -> None:
        taken = competition(np.array([[0.0, NAN], [NAN, 1.0], [1.0, 1.0]]), np.ones(2))
        assert attraction(taken, 0)[:2].tolist() == [0.0, 0.0]
        assert attraction(taken, 0)[2] > 0.0


class TestSurvivors:
    def test_a_specialist_outlives_better_models_of_a_crowd(self) -> None:
        crowd = [member(number, [1.0, 1.0, 1.0, 0.0]) for number in range(4)]
        alone = member(9, [0.0, 0.0, 0.0, 1.0])
        assert alone in survivors([*crowd, alone], 4, weights=(1.0,), alpha=1.0)
        assert alone not in survivors([*crowd, alone], 4, weights=(1.0,), alpha=0.0)

    def test_of_equals_the_eldest_goes(self) -> None:
        twins = [member(number, [1.0, 0.0]) for number in range(3)]
        assert survivors(twins, 2, weights=(1.0,), alpha=1.0) == tuple(twins[1:])

    def test_scores_beyond_the_unit_interval_are_scaled(self) -> None:
        low, high = member(1, [-40.0, -10.0]), member(2, [-20.0, -5.0])
        assert survivors([low, high], 1, weights=(1.0,), alpha=1.0) == (high,)

    def test_answers_to_other_items_neither_help_nor_hurt(self) -> None:
        good, bad = member(1, [1.0, 1.0, NAN, NAN]), member(2, [NAN, NAN, 1.0, 0.0])
        assert survivors([good, bad], 1, weights=(1.0,), alpha=1.0) == (good,)


class TestM2n2:
    def test_first_come_the_founders_then_their_children(self) -> None:
        of = algorithm()
        assert of.ask()[:6] == space().known
        assert of.lineage[:6] == (None,) * 6
        assert all(crossing is not None and crossing.first in space().known for crossing in of.lineage[6:])

    def test_many_founders_take_several_generations(self) -> None:
        of = algorithm(population=4)
        assert step(of) == space().known[:4]
        assert step(of)[:2] == space().known[4:]

    def test_lineage_is_how_children_came_about(self) -> None:
        of = algorithm()
        step(of)
        genomes = of.ask()
        for child, crossing in zip(genomes, of.lineage, strict=True):
            assert crossing is not None
            assert child == space().cross(crossing.first, crossing.second, split=crossing.split, share=crossing.share)

    def test_it_finds_merges_that_solve_more_than_any_founder(self) -> None:
        of = algorithm(archive=10)
        for _ in range(12):
            step(of)
        best = max(sum(solved(genome).values()) for genome in of.answer())
        assert best > max(sum(solved(seed).values()) for seed in space().known)

    def test_answers_begin_with_the_best(self) -> None:
        of = algorithm(archive=10)
        for _ in range(5):
            step(of)
        means = [sum(solved(genome).values()) for genome in of.answer()]
        assert means == sorted(means, reverse=True)
        assert 0 < len(means) <= 10

    def test_mutation_moves_children_only(self) -> None:
        of = algorithm(mutation=0.01)
        assert of.ask()[:6] == space().known
        child, crossing = of.ask.__self__._asked[7], of.lineage[7]  # type: ignore[attr-defined]
        assert crossing is not None
        plain = space().cross(crossing.first, crossing.second, split=crossing.split, share=crossing.share)
        assert child != plain
        assert np.abs(np.array(child.values) - plain.values).max() < 0.06

    def test_replay_is_bit_identical(self) -> None:
        live = algorithm(mutation=0.02)
        history = [step(live) for _ in range(6)]
        assert [step(again) for again in [algorithm(mutation=0.02)] for _ in range(6)] == history
        assert step(algorithm(seed=1)) != history[0]

    def test_races_and_fresh_draws_leave_gaps(self) -> None:
        of = algorithm()
        for generation in range(6):
            genomes = of.ask()
            asked = [range(generation * 4, generation * 4 + (8 if slot % 2 else 4)) for slot in range(len(genomes))]
            of.tell([told(g, solved(g, items)) for g, items in zip(genomes, asked, strict=True)])
        assert of.answer()

    def test_it_goes_on_when_everybody_fails(self) -> None:
        manager = PopulationManager(algorithm(), objectives=1)
        for _ in range(3):
            manager.ask()
            manager.tell([None] * 8, [0.0] * 8, [{}] * 8)
        assert manager.answer() == ()
        genomes = manager.ask()
        answered = [solved(genome) for genome in genomes]
        scores = [(float(np.mean([*items.values()])),) for items in answered]
        manager.tell(scores, [0.0] * 4 + [1.0] * 4, answered)
        assert {*manager.answer()} <= {*genomes[:4]}
