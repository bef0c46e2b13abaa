"""The layer heat map: one parameter of a recipe over layers, module roles and source models."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from evomerge.recipe import DEPTH_ROLES, Field, Recipe, Role
from evomerge.reports.figures import Figure, layout

__all__ = ["Heatmap", "heatmap", "heatmap_figure"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heatmap:
    """One parameter of one recipe as a table.

    Attributes:
        columns: source and module roles; roles that share all values share a column.
        rows: `embed`, the layers, `head`.
        values: `[row][column]`; embed and head have one value per source, whatever the column's roles.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def constant(self) -> bool:
        """The same value everywhere: nothing to draw."""
        return len({value for row in self.values for value in row}) == 1


def heatmap(recipe: Recipe, parameter: str) -> Heatmap:
    """Layer x role x source of one parameter; parameters that all sources share have one source, `all`."""
    field = recipe.parameter(parameter)
    sources = recipe.variants if field.width == len(recipe.sources) else ("all",)
    columns = [(k, roles) for k in range(field.width) for roles in _roles_with_equal_values(field, k)]
    depth = [tuple(field.at(roles[0], layer)[k] for k, roles in columns) for layer in range(field.layers)]
    embed, head = (tuple(field.at(edge, None)[k] for k, _ in columns) for edge in ("embed", "head"))
    return Heatmap(
        columns=tuple(f"{sources[k]} · {_called(roles)}" for k, roles in columns),
        rows=("embed", *(f"layer {layer}" for layer in range(field.layers)), "head"),
        values=(embed, *depth, head),
    )


def _roles_with_equal_values(field: Field, source: int) -> list[tuple[Role, ...]]:
    groups: dict[tuple[float, ...], list[Role]] = {}
    for role in DEPTH_ROLES:
        values = tuple(field.at(role, layer)[source] for layer in range(field.layers))
        groups.setdefault(values, []).append(role)
    return [tuple(roles) for roles in groups.values()]


def _called(roles: tuple[Role, ...]) -> str:
    return "all modules" if len(roles) == len(DEPTH_ROLES) else " + ".join(roles)


def heatmap_figure(table: Heatmap, low: float, high: float) -> Figure:
    """A heat map; `low` and `high` fix the colours, so that candidates can be compared."""
    bound = max(-low, high)
    signed = {"colorscale": "PuOr", "zmin": -bound, "zmax": bound}
    unsigned = {"colorscale": "Cividis", "zmin": low, "zmax": high}
    trace = {
        "type": "heatmap",
        "x": [escape(column) for column in table.columns],
        "y": list(table.rows),
        "z": [list(row) for row in table.values],
        "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
        "xgap": 2,
        "ygap": 1,
    } | (signed if low < 0 else unsigned)
    axes = {
        "xaxis": {"type": "category", "tickangle": -30, "automargin": True},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
    }
    return {"data": [trace], "layout": layout(height=160 + min(26 * len(table.rows), 900), **axes)}
