"""Search spaces: genome in, recipe out."""

from evomerge.spaces.base import Gene, Genome, Layered, Models, Products, SearchSpace, build_space
from evomerge.spaces.crossing import Breeding
from evomerge.spaces.parameter import ParameterSpace

__all__ = [
    "Breeding",
    "Gene",
    "Genome",
    "Layered",
    "Models",
    "ParameterSpace",
    "Products",
    "SearchSpace",
    "build_space",
]
