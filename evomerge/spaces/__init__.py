"""Search spaces: genome in, recipe out."""

from evomerge.spaces.base import Gene, Genome, SearchSpace
from evomerge.spaces.parameter import ParameterSpace, build_space

__all__ = ["Gene", "Genome", "ParameterSpace", "SearchSpace", "build_space"]
