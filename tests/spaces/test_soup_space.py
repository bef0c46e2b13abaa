"""Shares of many checkpoints: they sum to one, reach every corner, and survive crossing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import SoupConfig
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, uniform
from evomerge.spaces import Breeding, Genome, Models
from evomerge.spaces.soup import SoupSpace

LAYERS = 4
KINDS: list[dict[str, Any]] = [
    {},
    {"select": True},
    {"knots": 3},
    {"shares": "signed"},
    {"shares": "signed", "knots": 2, "select": True},
]


def space(experts: int = 5, **keys: Any) -> SoupSpace:
    names = tuple(f"step{number}" for number in range(experts))
    config = SoupConfig.model_validate({"kind": "soup", **keys})
    return SoupSpace(config, Models(base="base", experts=names, layers=LAYERS, dtype="float32"))


def rows(recipe: Recipe) -> np.ndarray:
    return np.array([row for _, found in recipe.parameter("weight").by_role() for row in found])


def genomes(of: SoupSpace) -> st.SearchStrategy[Genome]:
    values = st.lists(st.floats(0.0, 1.0), min_size=len(of.genes), max_size=len(of.genes))
    return values.map(lambda drawn: Genome(tuple(drawn)))


@pytest.mark.parametrize("keys", KINDS, ids=str)
class TestEveryKind:
    @given(data=st.data())
    def test_shares_sum_to_one_everywhere(self, keys: dict[str, Any], data: st.DataObject) -> None:
        of = space(**keys)
        found = rows(of.decode(data.draw(genomes(of))))
        assert np.allclose(found.sum(axis=1), 1.0, atol=1e-5)
        assert keys.get("shares") == "signed" or (found >= 0.0).all()

    def test_seeds_are_the_experts_as_the_anchors_have_them(self, keys: dict[str, Any]) -> None:
        of = space(**keys)
        for number, seed in enumerate(of.known):
            assert of.decode(seed) == uniform([f"step{number}"], layers=LAYERS, dtype="float32")

    def test_the_start_is_the_uniform_average(self, keys: dict[str, Any]) -> None:
        of = space(**keys)
        assert np.allclose(rows(of.decode(of.start)), 0.2, atol=1e-6)

    @given(data=st.data())
    def test_children_of_seeds_lie_on_the_line_between_them(self, keys: dict[str, Any], data: st.DataObject) -> None:
        of = space(**keys)
        split, share = data.draw(st.integers(0, of.splits - 1)), data.draw(st.floats(0.01, 0.99))
        recipe = of.decode(of.cross(of.known[1], of.known[3], split=split, share=share))
        left = share if split > 0 else 1.0 - share
        assert recipe.sources == ("step1", "step3")
        assert recipe.parameter("weight").at("embed", None) == pytest.approx((1.0 - left, left), abs=2e-6)
        assert recipe.parameter("weight").at("head", None) == pytest.approx((share, 1.0 - share), abs=2e-6)

    def test_it_breeds(self, keys: dict[str, Any]) -> None:
        assert isinstance(space(**keys), Breeding)


@given(st.data())
def test_on_the_simplex_a_child_is_the_mixture_of_its_parents(data: st.DataObject) -> None:
    of = space()
    one, other = data.draw(genomes(of)), data.draw(genomes(of))
    child = of.cross(one, other, split=0, share=0.25)

    def shares(genome: Genome) -> np.ndarray:
        recipe = of.decode(genome)
        found = dict(zip(recipe.sources, recipe.parameter("weight").at("mlp", 0), strict=True))
        return np.array([found.get(f"step{number}", 0.0) for number in range(5)])

    assert np.allclose(shares(child), 0.25 * shares(one) + 0.75 * shares(other), atol=3e-6)


def test_experts_that_are_not_chosen_are_not_read() -> None:
    of = space(select=True)
    values = [0.7] * 5 + [0.9, 0.1, 0.1, 0.9, 0.1]
    assert of.decode(Genome(tuple(values))).sources == ("step0", "step3")
    assert len(of.decode(Genome((*[0.7] * 5, *[0.1] * 5))).sources) == 5


def test_thirty_two_checkpoints_decode_in_no_time() -> None:
    of = space(32, select=True, knots=4)
    began = time.perf_counter()
    for _ in range(20):
        of.decode(of.cross(of.start, of.known[3], split=2, share=0.3))
    assert time.perf_counter() - began < 2.0


def test_faults_are_told() -> None:
    with pytest.raises(ConfigError, match="two experts or more; got step0"):
        space(1)
    with pytest.raises(ConfigError, match="at most 4, the models' number of layers; got 9"):
        space(knots=9)
    with pytest.raises(ValueError, match="5 genes; got a genome of 1"):
        space().decode(Genome((0.1,)))
