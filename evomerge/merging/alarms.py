"""What a pool's measurements say to someone who is about to merge it: alarms, and clusters of close relatives.

The limits are rules of thumb: they tell where to look, not what to do. Knows nothing of weights or reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from statistics import median

from evomerge.merging.kinship import Kinship
from evomerge.recipe import OutputDtype

__all__ = ["RELATED", "ROUNDING", "alarms", "clusters"]

RELATED = 0.5
"""Cosine from which two task vectors count as close relatives: 60 degrees."""

_FOREIGN = 0.5
"""Relative change of attention, MLP or all weights that no fine-tuning makes; unrelated models reach 1.4."""

_DOMINANT = 5.0
"""Times the median change of the other experts."""

_ALIKE = 0.01
"""Relative distance of task vectors up to which two experts count as one."""

ROUNDING: Mapping[OutputDtype, float] = {"bfloat16": 1.7e-3, "float16": 2.1e-4, "float32": 2.5e-8}
"""Norm of the error of rounding to a dtype, relative to the weights: 0.43 of its unit roundoff, 2^-8, 2^-11, 2^-24."""


def alarms(kinship: Kinship) -> list[str]:
    """What looks wrong in a pool, one line each, every line beginning with an expert's name.

    An expert equal to the base; changes smaller than what rounding the merged weights destroys; changes so large that
    the model is no fine-tune of this base, or was rotated to protect it against merging; changes that dwarf those of
    the other experts; two experts that are the same.
    """
    found = [line for index in range(len(kinship.experts)) for line in _alarms_of(kinship, index)]
    return [*found, *_duplicates(kinship)]


def _alarms_of(kinship: Kinship, index: int) -> Iterator[str]:
    name, total = kinship.experts[index], kinship.total
    norm = total.norm(index)
    if not norm:
        yield f"{name}: equal to the base in every weight; remove it"
        return
    if norm < ROUNDING[kinship.dtype]:
        yield (
            f"{name}: changes the base by {norm:.2g} of its norm, less than rounding to {kinship.dtype} does; "
            "merges will hardly show it: merge in float32"
        )
    others = [total.norm(other) for other in range(len(kinship.experts)) if other != index and total.norm(other)]
    if others and norm > _DOMINANT * median(others):
        yield (
            f"{name}: changes the base {norm / median(others):.1f} times as much as the other experts do; "
            "equal weights would drown them: give it a smaller one"
        )
    yield from _foreign(kinship, index)


def _foreign(kinship: Kinship, index: int) -> Iterator[str]:
    parts = [(role, cell.norm(index)) for role, cell in kinship.roles.items() if role in ("attention", "mlp")]
    for part, norm in [*parts, ("all", kinship.total.norm(index))]:
        if norm >= _FOREIGN:
            yield (
                f"{kinship.experts[index]}: changes {part} weights by {norm:.2g} of the base's norm; expected below "
                f"{_FOREIGN}: not fine-tuned from this base, or rotated against merging; do not merge it as it is"
            )
            return


def _duplicates(kinship: Kinship) -> Iterator[str]:
    total = kinship.total
    for one, other in combinations(range(len(kinship.experts)), 2):
        apart = total.distance(one, other)
        if total.norm(one) and apart <= _ALIKE:
            how = "equal in every weight" if not apart else f"only {apart:.2g} of their change apart"
            yield f"{kinship.experts[one]}: the same as {kinship.experts[other]} ({how}); keep one of them"


def clusters(kinship: Kinship) -> list[tuple[str, ...]]:
    """Experts joined wherever two task vectors have a cosine of at least `RELATED` (single linkage), largest first.

    Members of one cluster are variants of one skill: a merge of them averages noise away. New combinations of skills
    come from merging across clusters.
    """
    groups: list[set[int]] = []
    for index in range(len(kinship.experts)):
        near = [group for group in groups if any(kinship.total.cosine(index, other) >= RELATED for other in group)]
        groups = [group for group in groups if group not in near] + [{index}.union(*near)]
    ordered = sorted(groups, key=lambda group: (-len(group), min(group)))
    return [tuple(kinship.experts[index] for index in sorted(group)) for group in ordered]
