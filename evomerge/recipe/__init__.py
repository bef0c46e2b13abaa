"""Recipes: explicit, canonical descriptions of one merge."""

from evomerge.recipe.costs import Cost, Sizes
from evomerge.recipe.field import DEPTH_ROLES, EDGE_ROLES, ROLES, Field, Role
from evomerge.recipe.operators import OPERATORS, register_operator
from evomerge.recipe.recipe import OutputDtype, Recipe, Space, options_of, uniform
from evomerge.recipe.route import Hop
from evomerge.recipe.schema import Operator, OptionValue, Parameter, Preset

__all__ = [
    "DEPTH_ROLES",
    "EDGE_ROLES",
    "OPERATORS",
    "ROLES",
    "Cost",
    "Field",
    "Hop",
    "Operator",
    "OptionValue",
    "OutputDtype",
    "Parameter",
    "Preset",
    "Recipe",
    "Role",
    "Sizes",
    "Space",
    "options_of",
    "register_operator",
    "uniform",
]
