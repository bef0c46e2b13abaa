"""Lines of ancestors collapse into coefficients; what they stand for is what crossing the weights themselves gives."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import SplitPointConfig
from evomerge.recipe import Role, uniform
from evomerge.spaces import Breeding, Genome, Models
from evomerge.spaces.crossing import spherical
from evomerge.spaces.split_point import SplitPointSpace

LAYERS, SIZE = 3, 5
PLACES: list[tuple[Role, int | None]] = [
    ("embed", None),
    *product(("attention", "norm", "mlp"), range(LAYERS)),  # type: ignore[list-item]
    ("head", None),
]
WEIGHTS = {place: np.random.default_rng(i).standard_normal((3, SIZE)) + 1.0 for i, place in enumerate(PLACES)}
"""`[model, element]` of base, a and b at each place."""
PRODUCTS = [(role, layer, (values @ values.T).tolist()) for (role, layer), values in WEIGHTS.items()]


def space(*, places: str = "layer", base: bool = True, measured: bool = True) -> SplitPointSpace:
    config = SplitPointConfig.model_validate({"kind": "split_point", "places": places, "base": base})
    products = PRODUCTS if measured else None
    models = Models(base="base", experts=("a", "b"), layers=LAYERS, dtype="float32", products=products)
    return SplitPointSpace(config, models)


def merged(of: SplitPointSpace, genome: Genome) -> dict[tuple[Role, int | None], np.ndarray]:
    """The weights that a genome's recipe stands for."""
    recipe = of.decode(genome)
    rows = [("base", "a", "b").index(name) for name in recipe.sources]
    field = recipe.parameter("weight")
    return {place: np.array(field.at(*place)) @ values[rows] for place, values in WEIGHTS.items()}


def depth(place: tuple[Role, int | None], places: str) -> int:
    """Which place of the space a tensor lies in."""
    role, layer = place
    per_layer = 1 if places == "layer" else 2
    if layer is None:
        return 0 if role == "embed" else 1 + LAYERS * per_layer
    return 1 + layer * per_layer + (places == "module" and role == "mlp")


def slerp(one: dict, other: dict, *, split: int, share: float, places: str) -> dict:  # type: ignore[type-arg]
    """M2N2's crossover of two whole models, weight by weight."""
    whole = [np.concatenate([model[place] for place in PLACES]) for model in (one, other)]
    angle = math.acos(whole[0] @ whole[1] / math.sqrt((whole[0] @ whole[0]) * (whole[1] @ whole[1])))
    child = {}
    for place in PLACES:
        t = share if depth(place, places) < split else 1.0 - share
        child[place] = (math.sin((1 - t) * angle) * one[place] + math.sin(t * angle) * other[place]) / math.sin(angle)
    return child


SPLITS = st.lists(st.tuples(st.integers(0, 7), st.floats(0.05, 0.95), st.integers(0, 2)), min_size=1, max_size=6)


@given(SPLITS, st.sampled_from(["layer", "module"]))
def test_a_line_of_crossings_is_what_crossing_weights_gives(
    crossings: list[tuple[int, float, int]], places: str
) -> None:
    of = space(places=places)
    genome, weights = of.known[0], merged(of, of.known[0])
    for drawn, share, mate in crossings:
        split = drawn % of.splits
        other = of.known[mate] if of.known[mate] != genome else of.known[1]
        weights = slerp(weights, merged(of, other), split=split, share=share, places=places)
        genome = of.cross(genome, other, split=split, share=share)
    found = merged(of, genome)
    for place in PLACES:
        assert np.allclose(found[place], weights[place], atol=1e-5)


@given(st.floats(0.0, 1.0), st.floats(-1.0, 1.0))
def test_shares_on_the_sphere_keep_the_length(share: float, cosine: float) -> None:
    first, second = spherical(cosine, share)
    length = first**2 + second**2 + 2.0 * first * second * cosine
    flat = math.sqrt(1.0 - cosine**2) < 1e-4
    assert flat or math.isclose(length, 1.0, abs_tol=1e-9)
    assert not flat or (first, second) == (1.0 - share, share)


@given(st.floats(0.0, 1.0))
def test_where_the_angle_is_too_small_linear_shares_differ_by_nothing_that_a_recipe_keeps(share: float) -> None:
    angle = 1.1e-4
    exact = spherical(math.cos(angle), share)
    assert abs(exact[0] - (1.0 - share)) < 1e-7
    assert abs(exact[1] - share) < 1e-7


class TestSplitPointSpace:
    def test_it_breeds(self) -> None:
        assert isinstance(space(), Breeding)

    def test_seeds_are_the_models_as_the_anchors_have_them(self) -> None:
        of = space(measured=False)
        assert [of.decode(seed) for seed in of.known] == [
            uniform([name], layers=LAYERS, dtype="float32") for name in ("base", "a", "b")
        ]
        without = space(base=False)
        assert [without.decode(seed).sources for seed in without.known] == [("a",), ("b",)]

    def test_the_start_is_the_uniform_average(self) -> None:
        recipe = space().decode(space().start)
        assert {v for _, rows in recipe.parameter("weight").by_role() for row in rows for v in row} == {0.333333}

    def test_a_model_without_weight_is_left_out(self) -> None:
        of = space()
        child = of.cross(of.known[0], of.known[2], split=2, share=0.4)
        assert of.decode(child).sources == ("base", "b")

    @pytest.mark.parametrize(("places", "count"), [("layer", 2 + LAYERS), ("module", 2 + 2 * LAYERS)])
    def test_there_is_a_gene_for_each_place_and_model(self, places: str, count: int) -> None:
        of = space(places=places)
        names = [gene.name for gene in of.genes]
        assert (of.splits, len(names), len(set(names))) == (count, 3 * count, 3 * count)
        assert len(space(places=places, base=False).genes) == 2 * count

    @given(st.data())
    def test_every_genome_decodes_and_crosses(self, data: st.DataObject) -> None:
        of = space(places=data.draw(st.sampled_from(["layer", "module"])))
        one, other = (
            Genome(tuple(data.draw(st.lists(UNIT, min_size=len(of.genes), max_size=len(of.genes))))) for _ in "ab"
        )
        split, share = data.draw(st.integers(0, of.splits - 1)), data.draw(UNIT)
        child = of.cross(one, other, split=split, share=share)
        assert of.decode(child).operator == "linear"

    def test_what_is_missing_is_said(self) -> None:
        of = space(measured=False)
        with pytest.raises(ValueError, match="scalar products, which workers measure; got none"):
            of.cross(of.known[0], of.known[1], split=1, share=0.5)
        with pytest.raises(ValueError, match="15 genes; got a genome of 2"):
            of.decode(Genome((0.1, 0.2)))


UNIT = st.floats(0.0, 1.0)
