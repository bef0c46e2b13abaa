"""Populations: optimizers that propose genomes and learn from scores."""

from evomerge.population.base import FEWEST_EARLIER, Algorithm, Evaluation, build_algorithm
from evomerge.population.manager import PopulationManager

__all__ = ["FEWEST_EARLIER", "Algorithm", "Evaluation", "PopulationManager", "build_algorithm"]
