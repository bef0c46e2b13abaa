"""Which items score a candidate, what the scores say about it, and what may honestly be claimed at the end."""

from evomerge.fitness.assessment import Assessment, Told
from evomerge.fitness.build import build_assessment
from evomerge.fitness.constraints import broken, violation
from evomerge.fitness.estimate import Estimate, scores, scores_and_mean, with_costs
from evomerge.fitness.honest import MEAN, ConfirmedFront, Difference, confirm_front, paired_difference
from evomerge.fitness.items import ItemSplit, duplicates_of, require_items, split_items
from evomerge.fitness.leaks import public_split

__all__ = [
    "MEAN",
    "Assessment",
    "ConfirmedFront",
    "Difference",
    "Estimate",
    "ItemSplit",
    "Told",
    "broken",
    "build_assessment",
    "confirm_front",
    "duplicates_of",
    "paired_difference",
    "public_split",
    "require_items",
    "scores",
    "scores_and_mean",
    "split_items",
    "violation",
    "with_costs",
]
