import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import ItemsConfig
from evomerge.errors import TaskError
from evomerge.fitness import ItemSplit, duplicates_of, split_items
from evomerge.outcome import ItemSet

SIZES = {"math": 50, "code": 31}


def split(draw: str = "fresh", seed: int = 0, search: int = 8, confirm: int = 20) -> ItemSplit:
    return split_items(SIZES, ItemsConfig.model_validate({"search": search, "confirm": confirm, "draw": draw}), seed)


@settings(deadline=None, derandomize=True)
@given(
    sizes=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(12, 60), min_size=1),
    search=st.integers(2, 6),
    confirm=st.integers(2, 6),
    seed=st.integers(0, 2**40),
    generation=st.integers(0, 1000),
)
def test_the_two_parts_share_nothing_and_lose_nothing(
    sizes: dict[str, int], search: int, confirm: int, seed: int, generation: int
) -> None:
    parts = split_items(sizes, ItemsConfig(search=search, confirm=confirm), seed)
    kept, drawn = dict(parts.confirm.tasks), dict(parts.draw(generation).tasks)
    assert kept.keys() == drawn.keys() == sizes.keys()
    for task, size in sizes.items():
        assert len(kept[task]) == confirm
        assert len(drawn[task]) == search
        assert sorted({*kept[task], *parts.pool[task]}) == list(range(size))
        assert set(drawn[task]) <= set(parts.pool[task])


def test_a_draw_is_the_same_on_every_call() -> None:
    assert split().draw(5) == split().draw(5)


def test_fresh_draws_differ_between_generations_and_reach_the_whole_pool() -> None:
    parts = split()
    draws = [dict(parts.draw(generation).tasks)["math"] for generation in range(40)]
    assert len(set(draws)) == 40
    assert {item for draw in draws for item in draw} == set(parts.pool["math"])


def test_a_fixed_draw_is_that_of_generation_0() -> None:
    fixed = split(draw="fixed")
    assert fixed.draw(17) == fixed.draw(0) == split(draw="fresh").draw(0)


def test_seeds_and_sizes_split_differently_and_equal_sizes_alike() -> None:
    """Tasks that ask about the same documents must not confirm on what another one has searched."""
    a, b = dict(split(seed=0).confirm.tasks), dict(split(seed=1).confirm.tasks)
    assert a["math"] != b["math"]
    tasks = split_items({"one": 40, "two": 40, "other": 41}, ItemsConfig(search=2, confirm=20), 0)
    confirm = dict(tasks.confirm.tasks)
    assert confirm["one"] == confirm["two"] != confirm["other"]
    assert tasks.pool["one"] == tasks.pool["two"]


def test_a_task_that_just_fits_is_used_up() -> None:
    parts = split_items({"math": 10}, ItemsConfig(search=4, confirm=6), 0)
    assert sorted(dict(parts.draw(3).tasks)["math"] + dict(parts.confirm.tasks)["math"]) == list(range(10))


def test_every_task_that_is_too_small_is_named() -> None:
    with pytest.raises(TaskError) as caught:
        split_items({"code": 9, "math": 3, "prose": 10}, ItemsConfig(search=4, confirm=6), 0)
    message = str(caught.value)
    assert message.startswith("task 'code' has 9 items; task 'math' has 3 items: expected at least 10 in each")
    assert "fitness.items.confirm" in message
    assert "prose" not in message


def test_an_overlapping_split_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"items \[3\] both steer the search and confirm it"):
        ItemSplit(confirm=ItemSet.of({"math": (3, 4)}), pool={"math": (1, 3)}, size=2, policy="fresh", seed=0)


@settings(deadline=None, derandomize=True)
@given(texts=st.lists(st.integers(0, 20), min_size=1, max_size=80), seed=st.integers(0, 2**40))
def test_equal_items_are_never_on_both_sides(texts: list[int], seed: int) -> None:
    items, duplicates = ItemsConfig(search=2, confirm=2), {"math": duplicates_of(texts)}
    if len(set(texts)) < 4:
        with pytest.raises(TaskError):
            split_items({"math": len(texts)}, items, seed, duplicates)
        return
    parts = split_items({"math": len(texts)}, items, seed, duplicates)
    confirmed = [texts[item] for item in dict(parts.confirm.tasks)["math"]]
    searched = [texts[item] for item in parts.pool["math"]]
    assert sorted(confirmed + searched) == sorted(set(texts))


def test_without_duplicates_nothing_changes() -> None:
    items = ItemsConfig(search=8, confirm=20)
    assert split_items(SIZES, items, 0, {"math": ()}) == split_items(SIZES, items, 0)


def test_different_items_are_what_counts() -> None:
    with pytest.raises(TaskError, match="task 'math' has 12 items, 6 different: expected at least 10"):
        split_items({"math": 12}, ItemsConfig(search=4, confirm=6), 0, {"math": tuple(range(6, 12))})
