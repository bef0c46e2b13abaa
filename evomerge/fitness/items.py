"""Which items score a candidate: confirmation items are set aside first, the search draws from the rest.

Knows nothing of what an item asks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from evomerge.errors import TaskError
from evomerge.outcome import ItemSet
from evomerge.rng import stream

if TYPE_CHECKING:
    from evomerge.config import ItemsConfig

__all__ = ["ItemSplit", "duplicates_of", "require_items", "split_items"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemSplit:
    """The items of every task in two parts that share none.

    Attributes:
        confirm: items that only the final confirmation uses.
        pool: item ids that the search may use, by task, sorted.
        size: items per task in one draw.
        policy: `fresh` draws anew for each generation, `fixed` keeps the draw of generation 0.
        seed: run seed.

    Raises:
        ValueError: the two parts share an item.
    """

    confirm: ItemSet
    pool: Mapping[str, tuple[int, ...]]
    size: int
    policy: Literal["fresh", "fixed"]
    seed: int

    def __post_init__(self) -> None:
        for task, ids in self.confirm.tasks:
            if shared := set(ids).intersection(self.pool[task]):
                raise ValueError(f"task {task!r}: items {sorted(shared)} both steer the search and confirm it")

    def draw(
        self, generation: int, start: Mapping[str, int] | None = None, stop: Mapping[str, int] | None = None
    ) -> ItemSet:
        """The items that score every candidate of one generation, or a portion of them; the same on every call.

        Args:
            generation: counted from 0.
            start: first item of each task's draw; None is the very first.
            stop: the one after the last; None is all.
        """
        when = 0 if self.policy == "fixed" else generation
        order = {task: _order(ids, self.size, self.seed, task, when) for task, ids in self.pool.items()}
        chosen = {task: ids[start[task] if start else 0 : stop[task] if stop else None] for task, ids in order.items()}
        return ItemSet.of({task: ids for task, ids in chosen.items() if ids})


@lru_cache(maxsize=64)
def _order(ids: tuple[int, ...], size: int, seed: int, task: str, when: int) -> tuple[int, ...]:
    """All candidates of a generation share a draw, so it is made once."""
    return tuple(stream(seed, "draw", task, when).choice(ids, size, replace=False).tolist())


def duplicates_of(contents: Iterable[Hashable]) -> tuple[int, ...]:
    """Ids of the items that ask what an item before them asks.

    Example:
        >>> duplicates_of(["2 + 2", "3 + 3", "2 + 2"])
        (2,)

    Args:
        contents: what each item asks.
    """
    seen: set[Hashable] = set()
    found = []
    for item, content in enumerate(contents):
        if content in seen:
            found.append(item)
        seen.add(content)
    return tuple(found)


def require_items(
    sizes: Mapping[str, int], items: ItemsConfig, duplicates: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> None:
    """See that every task has enough items; see `split_items`.

    Raises:
        TaskError: every task that is too small.
    """
    needed, small = items.search + items.confirm, []
    for task, size in sorted(sizes.items()):
        different = size - len(duplicates.get(task, ()))
        if different < needed:
            small.append(f"task {task!r} has {size} items" + (f", {different} different" if different < size else ""))
    if small:
        raise TaskError(
            f"{'; '.join(small)}: expected at least {needed} in each, {items.search} to search and {items.confirm} "
            "others to confirm; lower fitness.items.search or fitness.items.confirm, or add items"
        )


def split_items(
    sizes: Mapping[str, int],
    items: ItemsConfig,
    seed: int,
    duplicates: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> ItemSplit:
    """Set confirmation items aside, at random and for good. Of equal items only the first is in either part.

    Example:
        >>> from evomerge.config import ItemsConfig
        >>> split = split_items({"math": 10}, ItemsConfig(search=3, confirm=4), seed=0)
        >>> len(split.confirm), len(split.draw(0)), len(split.pool["math"])
        (4, 3, 6)

    Args:
        sizes: number of items of every task.
        items: how many the search and the confirmation need, per task.
        seed: run seed.
        duplicates: items of a task that ask what an earlier one asks; see `duplicates_of`.

    Raises:
        TaskError: every task that is too small.
    """
    require_items(sizes, items, duplicates)
    order = {task: _shuffled(size, seed, frozenset(duplicates.get(task, ()))) for task, size in sizes.items()}
    return ItemSplit(
        confirm=ItemSet.of({task: tuple(ids[: items.confirm]) for task, ids in order.items()}),
        pool={task: tuple(sorted(ids[items.confirm :])) for task, ids in order.items()},
        size=items.search,
        policy=items.draw,
        seed=seed,
    )


def _shuffled(size: int, seed: int, left_out: frozenset[int]) -> list[int]:
    """A task's items in random order; keyed by size, so tasks over one list of documents are split alike."""
    return [item for item in stream(seed, "split", size).permutation(size).tolist() if item not in left_out]
