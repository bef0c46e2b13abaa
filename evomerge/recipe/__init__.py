"""Recipes: explicit, canonical descriptions of one merge."""

from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.recipe import DEPTH_ROLES, EDGE_ROLES, ROLES, Field, OutputDtype, Recipe, Role, options_of, uniform
from evomerge.recipe.schema import Operator, OptionValue, Parameter, Preset

__all__ = [
    "DEPTH_ROLES",
    "EDGE_ROLES",
    "OPERATORS",
    "ROLES",
    "Field",
    "Operator",
    "OptionValue",
    "OutputDtype",
    "Parameter",
    "Preset",
    "Recipe",
    "Role",
    "options_of",
    "uniform",
]
