from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import Cost, Hop, Sizes, uniform

PLAIN = uniform(["base"], layers=3, dtype="float32")
SIZES = Sizes(
    outside={"layers": 0, "kv_slots": 0, "parameters": 1000, "flops": 600},
    layers={"layers": (1, 1, 1), "kv_slots": (1, 0, 1), "parameters": (10, 20, 40), "flops": (18, 38, 78)},
)


def path(*layers: int) -> Any:
    return replace(PLAIN, path=tuple(Hop(source="base", layer=layer) for layer in layers))


def test_a_merge_without_a_path_has_the_models_own_layers() -> None:
    found = {cost: SIZES.of(PLAIN, cost) for cost in get_args(Cost)}
    assert found == {"layers": 3, "kv_slots": 2, "parameters": 1070, "flops": 734}


def test_a_layer_that_is_visited_twice_counts_twice() -> None:
    twice = path(0, 2, 2)
    assert SIZES.of(twice, "layers") == twice.depth == 3
    assert SIZES.of(twice, "kv_slots") == 3
    assert SIZES.of(twice, "parameters") == 1090


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_layers_are_the_depth(layers: list[int]) -> None:
    assert SIZES.of(path(*layers), "layers") == path(*layers).depth


def test_sizes_survive_json() -> None:
    assert Sizes.from_data(SIZES.to_data()) == SIZES


def test_a_missing_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the costs"):
        Sizes(outside={"layers": 0}, layers={"layers": (1,)})
