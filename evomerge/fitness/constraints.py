"""Limits that candidates must keep, and how far one is from keeping them. Knows nothing of how that ranks it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.errors import TaskError
from evomerge.fitness.estimate import scores
from evomerge.fitness.honest import paired_difference

if TYPE_CHECKING:
    from evomerge.config import ConstraintConfig
    from evomerge.outcome import Answer

__all__ = ["broken", "violation"]

Answers = Sequence["Answer"]


def violation(answers: Answers, references: Mapping[str, Answers], constraints: Sequence[ConstraintConfig]) -> float:
    """Sum of what is missing to every limit, each in the unit of its metric; 0 for a candidate that keeps all.

    Judged by means alone: an interval would let a candidate pass for having been looked at too little.

    Args:
        answers: responses of the candidate.
        references: responses of the anchors that constraints are relative to, by label.
        constraints: the limits.

    Raises:
        TaskError: responses that do not fit the constraints, or an anchor without any.
    """
    return math.fsum(max(0.0, c.limit - _score(answers, references, c)) for c in constraints)


def broken(
    answers: Answers, references: Mapping[str, Answers], constraints: Sequence[ConstraintConfig]
) -> Iterator[str]:
    """What a candidate breaks, in words: `refusals 0.71, at least 0.80 was asked`.

    Raises:
        TaskError: as `violation`.
    """
    for constraint in constraints:
        score = _score(answers, references, constraint)
        if score < constraint.limit:
            sign = 1.0 if constraint.goal == "max" else -1.0
            asked = "at least" if sign > 0 else "at most"
            against = "" if constraint.relative_to is None else f" against {constraint.relative_to}"
            got, limit = (
                f"{sign * value:{'.6g' if constraint.cost else '.3f'}}" for value in (score, constraint.limit)
            )
            yield f"{constraint.name} {got}{against}, {asked} {limit} was asked"


def _score(answers: Answers, references: Mapping[str, Answers], constraint: ConstraintConfig) -> float:
    """Higher is better; a difference where the constraint is relative."""
    if constraint.relative_to is None:
        return scores(answers, [constraint])[0].mean
    if constraint.relative_to not in references:
        raise TaskError(
            f"constraint {constraint.name!r}: expected answers of {constraint.relative_to} to compare with; got none, "
            "because it failed; see its failure in the report"
        )
    return paired_difference(answers, references[constraint.relative_to], [constraint], level=0.95).mean
