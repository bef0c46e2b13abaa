"""Spaces of paths: every genome is a path, every path has a genome, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evomerge.config import ParameterSpaceConfig, SpaceConfig
from evomerge.errors import ConfigError
from evomerge.recipe import Hop, uniform
from evomerge.spaces import Genome, Models, build_space
from evomerge.spaces.indicators import IndicatorSpace
from evomerge.spaces.paths import Route
from evomerge.spaces.routing import RoutingSpace

CONFIG: TypeAdapter[Any] = TypeAdapter(SpaceConfig)
MODELS = Models(base="base", experts=("rev", "sort"), layers=8, dtype="float32")
MERGE = {
    "kind": "parameter",
    "operator": {"name": "task_arithmetic"},
    "knots": 1,
    "genes": {"weight": {"edges": "first"}},
}
SPACES: dict[str, dict[str, Any]] = {
    "plain": {"kind": "routing"},
    "scaled": {"kind": "routing", "scales": {"low": 0.25, "high": 2.0}},
    "aligned": {"kind": "routing", "aligned": True, "ends": "sort"},
    "aligned and scaled": {"kind": "routing", "aligned": True, "scales": {}},
    "joint": {"kind": "routing", "merge": MERGE, "scales": {}},
    "long": {"kind": "routing", "fewest": 12, "most": 20, "models": ["rev", "sort"]},
    "short": {"kind": "routing", "fewest": 2, "most": 5},
    "indicators": {"kind": "indicators"},
    "matrix": {"kind": "indicators", "repeats": 2, "scales": {}},
    "network": {"kind": "indicators", "repeats": 2, "scales": {}, "scaling": "network", "hidden": 3},
}
OWN = tuple(Hop(layer=layer) for layer in range(8))


def space(name: str = "plain", pool: Models = MODELS, **changes: Any) -> Any:
    return build_space(CONFIG.validate_python(SPACES[name] | changes), pool, seed=0)


def genomes(genes: int) -> st.SearchStrategy[Genome]:
    """Random ones, of which some have genes on the border."""

    def drawn(seed: int, border: float) -> Genome:
        random = np.random.default_rng(seed)
        values = random.random(genes)
        return Genome(tuple(np.where(random.random(genes) < border, np.round(values), values)))

    return st.builds(drawn, st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]))


@pytest.mark.parametrize("name", SPACES)
class TestEverySpace:
    @settings(max_examples=30)
    @given(data=st.data())
    def test_every_genome_is_a_recipe_within_the_lengths(self, name: str, data: st.DataObject) -> None:
        found = space(name)
        recipe = found.decode(data.draw(genomes(len(found.genes))))
        fewest, most = CONFIG.validate_python(SPACES[name]).lengths(8)
        assert fewest <= recipe.depth <= most
        assert set(recipe.models) <= {"base", "rev", "sort"}

    def test_it_starts_with_the_plainest_path(self, name: str) -> None:
        found = space(name)
        assert found.start == found.known[0] == Genome(tuple(gene.start for gene in found.genes))
        recipe = found.decode(found.start)
        assert all(hop.scale == 1.0 for hop in recipe.path)
        if 8 in range(*CONFIG.validate_python(SPACES[name]).lengths(8)):
            ends = recipe.sources if name == "joint" else ("sort",) if name == "aligned" else ("base",)
            assert (recipe.path, recipe.sources) == ((), ends)

    def test_seeds_are_distinct_paths(self, name: str) -> None:
        found = space(name)
        recipes = [found.decode(seed) for seed in found.known]
        assert len({recipe.digest for recipe in recipes}) == len(recipes)

    def test_a_genome_of_another_length_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="genes; got a genome of 1"):
            space(name).decode(Genome((0.5,)))


@pytest.mark.parametrize("name", [name for name, keys in SPACES.items() if keys["kind"] == "routing"])
@settings(max_examples=30)
@given(data=st.data())
def test_a_path_has_a_genome(name: str, data: st.DataObject) -> None:
    found = space(name)
    genome = data.draw(genomes(len(found.genes)))
    path = found.path_of(genome)
    again = found.genome_of(path, genome)
    assert found.path_of(again) == path
    assert found.decode(again) == found.decode(genome)


def test_the_genome_of_a_plain_path_is_the_plain_model() -> None:
    found = space()
    assert isinstance(found, RoutingSpace)
    assert found.decode(found.genome_of(OWN, found.start)) == uniform(("base",), layers=8, dtype="float32")
    assert found.known[1] == found.genome_of(tuple(Hop(source="rev", layer=layer) for layer in range(8)), found.start)


def test_empty_slots_are_dropped_and_too_short_a_path_goes_on() -> None:
    found = space(fewest=3, most=4)
    wanted = [None, Hop(source="rev", layer=6), None, Hop(source="sort", layer=1)]
    told = [gene.choices for gene in found.genes]
    names = ["-", "rev.6", "-", "sort.1"]
    genome = Genome(tuple((options.index(n) + 0.5) / len(options) for options, n in zip(told, names, strict=True)))
    assert found.path_of(genome) == (Hop(layer=0), *(hop for hop in wanted if hop))
    nothing = Genome((0.0,) * 4)
    assert found.path_of(nothing) == (Hop(layer=0), Hop(layer=1), Hop(layer=2))


def test_a_repaired_path_repeats_the_last_layer() -> None:
    found = space(fewest=3, most=3)
    last = found.genes[0].choices.index("sort.7")
    genome = Genome(((last + 0.5) / len(found.genes[0].choices), 0.0, 0.0))
    assert found.path_of(genome) == (Hop(source="sort", layer=7),) * 3


def test_aligned_paths_choose_models() -> None:
    found = space("aligned")
    assert [gene.choices for gene in found.genes] == [(f"base.{j}", f"rev.{j}", f"sort.{j}") for j in range(8)]
    recipe = found.decode(Genome((0.1, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)))
    assert recipe.sources == ("sort",)
    assert [hop.source for hop in recipe.path] == ["base", "rev", *[None] * 6]


def test_scales_are_logarithmic() -> None:
    found = space("scaled")
    values = list(found.start.values)
    values[1], values[3] = 0.0, 1.0
    path = found.path_of(Genome(tuple(values)))
    assert [hop.scale for hop in path[:3]] == [0.25, 2.0, 1.0]


def test_seeds_hold_layer_swaps_and_depth_up_scaling() -> None:
    found = space()

    def runs(path: Route) -> list[tuple[str | None, int]]:
        return [(hop.source, hop.layer) for hop in path]

    paths = [runs(found.path_of(seed)) for seed in found.known]
    swapped = [*((None, j) for j in (0, 1)), *(("rev", j) for j in range(2, 6)), *((None, j) for j in (6, 7))]
    solar = [*((None, j) for j in range(6)), *((None, j) for j in range(2, 8))]
    assert swapped in paths
    assert solar in paths


def test_a_joint_genome_holds_a_path_and_a_merge() -> None:
    found = space("joint")
    merge = build_space(ParameterSpaceConfig.model_validate(MERGE), MODELS, seed=0)
    assert [gene.name for gene in found.genes[found.slots :]] == [gene.name for gene in merge.genes]
    assert found.genes[0].choices[1:9] == tuple(f"merge.{j}" for j in range(8))
    genome = Genome((*found.start.values[: found.slots], 0.25, 0.75))
    assert found.decode(genome) == merge.decode(Genome((0.25, 0.75)))
    visiting = found.genome_of((*OWN[:7], Hop(source="base", layer=7)), genome)
    recipe = found.decode(visiting)
    assert recipe.parameters == found.decode(genome).parameters
    assert recipe.path[-1] == Hop(source="base", layer=7)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (OWN[:3], "paths here have 6 to 12 layers; got 3"),
        ((*OWN[:7], Hop(source="ciph", layer=7)), "slot 7 does not take"),
        ((*OWN[:7], Hop(layer=8)), "slot 7 does not take"),
        ((*OWN[:7], Hop(layer=7, scale=1.5)), "does not scale"),
    ],
)
def test_paths_from_elsewhere_have_no_genome(path: Route, message: str) -> None:
    found = space()
    with pytest.raises(ValueError, match=message):
        found.genome_of(path, found.start)


class TestIndicators:
    def test_the_row_keeps_its_order(self) -> None:
        found = space("indicators", repeats=2, fewest=1, most=48)
        assert isinstance(found, IndicatorSpace)
        names = [gene.name for gene in found.genes]
        assert names[0] == "use.base.0.r0"
        assert names[-1] == "use.sort.7.r1"
        used = {"use.sort.1.r0", "use.rev.4.r0", "use.rev.4.r1", "use.base.0.r1"}
        recipe = found.decode(Genome(tuple(0.6 if name in used else 0.5 for name in names)))
        path = [(hop.source, hop.layer) for hop in recipe.path]
        assert path == [("rev", 4), ("sort", 1), (None, 0), ("rev", 4)]

    def test_the_highest_indicators_repair_a_path(self) -> None:
        found = space("indicators", repeats=1, fewest=2, most=3)
        few = found.decode(Genome(tuple(0.4 if i in (3, 9) else 0.1 for i in range(24))))
        many = found.decode(Genome(tuple(0.9 if i in (3, 9, 20) else 0.8 for i in range(24))))
        assert [(hop.source, hop.layer) for hop in few.path] == [(None, 3), ("rev", 1)]
        assert [(hop.source, hop.layer) for hop in many.path] == [(None, 3), ("rev", 1), ("sort", 4)]

    def test_a_matrix_scales_the_pairs_that_follow_each_other(self) -> None:
        found = space("matrix")
        names = [gene.name for gene in found.genes]
        assert len(names) == 48 + 24 * 24
        values = list(found.start.values)
        values[names.index("log_scale.base.2.base.3")] = 1.0
        values[names.index("log_scale.base.3.base.2")] = 0.0
        assert [hop.scale for hop in found.decode(Genome(tuple(values))).path] == [1.0] * 3 + [2.0] + [1.0] * 4

    def test_a_network_scales_within_the_range(self) -> None:
        found = space("network")
        assert len(found.genes) == 48 + 5 * 3 + 1
        values = [*found.start.values[:48], *[0.9] * 16]
        scales = [hop.scale for hop in found.decode(Genome(tuple(values))).path]
        assert scales[0] == 1.0
        assert len(set(scales)) > 4
        assert all(0.5 <= scale <= 2.0 for scale in scales)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"most": 3, "fewest": 4}, "expected most >= fewest; got most 3, fewest 4"),
        ({"models": ["rev", "rev"]}, "models: expected each once"),
        ({"models": []}, "at least 1 item"),
        ({"fewest": 0}, "greater than or equal to 1"),
        ({"scales": {"low": 1.1}}, "expected low <= 1 <= high"),
        ({"scales": {"low": 1.0, "high": 1.0}}, "expected low <= 1 <= high"),
        ({"scales": {"low": -1.0}}, "greater than or equal to 0.01"),
        ({"scales": {"low": 1e-9}}, "greater than or equal to 0.01"),
        ({"scales": {"high": 1e30}}, "less than or equal to 100"),
        ({"most": 1_000_000_000}, "less than or equal to 1024"),
        ({"aligned": True, "fewest": 3}, "aligned: a path has as many layers as the models"),
        ({"aligned": True, "fewest": 3, "most": 4}, "aligned: a path has as many layers as the models"),
        ({"models": ["merge", "rev"]}, "needs a parameter space"),
        ({"merge": MERGE, "models": ["base", "rev"]}, "expected 'merge' among them"),
        ({"merge": MERGE, "ends": "rev"}, "ends: with a merge"),
        ({"merge": {"kind": "routing"}}, "kind"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"kind": "routing"} | keys)


@pytest.mark.parametrize(
    ("name", "changes", "path", "message"),
    [
        ("plain", {"models": ["rev", "srot"]}, "$.space.models", "got 'srot'; did you mean 'sort'"),
        ("plain", {"ends": "knee"}, "$.space.ends", "expected one of base, rev, sort; got 'knee'"),
        ("indicators", {"models": ["ciph"]}, "$.space.models", "got 'ciph'"),
        ("aligned", {"fewest": 6, "most": 6}, "$.space.fewest", "aligned paths of these models have 8 layers; got 6"),
        ("aligned", {"models": ["rev"]}, "$.space.models", "aligned paths choose between two models or more; got rev"),
        ("indicators", {"fewest": 80, "most": 90}, "$.space.fewest", "the row holds 72 layers; got 80"),
    ],
)  # fmt: skip
def test_spaces_that_contradict_the_pool_are_refused(
    name: str, changes: dict[str, Any], path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        space(name, **changes)
    assert [fault.path for fault in caught.value.faults] == [path]


def test_an_expert_may_not_be_called_merge() -> None:
    models = Models(base="base", experts=("merge",), layers=8, dtype="float32")
    with pytest.raises(ConfigError, match="give the expert another name"):
        space("joint", pool=models)
    assert space(pool=models).decode(Genome((0.9,) * 12)).models == ("base", "merge")
