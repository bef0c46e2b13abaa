"""Populations: optimizers that propose genomes and learn from scores."""

from evomerge.population.base import Algorithm, Evaluation, build_algorithm
from evomerge.population.manager import PopulationManager

__all__ = ["Algorithm", "Evaluation", "PopulationManager", "build_algorithm"]
