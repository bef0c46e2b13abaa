"""Populations: optimizers that propose genomes and learn from scores."""

from evomerge.population.base import (
    FEWEST_EARLIER,
    Algorithm,
    Crossing,
    Evaluation,
    Item,
    Problem,
    SteadyAlgorithm,
    build_algorithm,
)
from evomerge.population.manager import PopulationManager

__all__ = [
    "FEWEST_EARLIER",
    "Algorithm",
    "Crossing",
    "Evaluation",
    "Item",
    "PopulationManager",
    "Problem",
    "SteadyAlgorithm",
    "build_algorithm",
]
