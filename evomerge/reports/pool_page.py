"""What was measured of a pool, as one HTML file with heat maps that opens offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from evomerge.merging.kinship import Kinship, Products
from evomerge.recipe import DEPTH_ROLES, Role
from evomerge.reports.pages import render_page, write_page
from evomerge.reports.pool_tables import summary_lines
from evomerge.reports.words import percent

__all__ = ["render_kinship", "write_kinship"]


def write_kinship(kinship: Kinship, name: str, out: Path) -> Path:
    """Write the page of a pool; the file is there whole or not at all.

    Args:
        kinship: what was measured.
        name: what to call the pool.
        out: the HTML file.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        OSError: the file cannot be written.
    """
    return write_page(render_kinship(kinship, name), out)


def render_kinship(kinship: Kinship, name: str) -> str:
    """The page of a pool.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    tables = {
        "cosines": _cosines(kinship),
        "changes": _changes(kinship),
        "conflicts": _conflicts(kinship),
        "pairs": _pairs(kinship),
    }
    return render_page(
        "pool.html.j2",
        {},
        name=name,
        lines=summary_lines(kinship),
        chance=percent(1 - 2.0 ** (1 - len(kinship.experts))),
        tables={key: asdict(table) | {"range": _RANGES.get(key, _range(table))} for key, table in tables.items()},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Heatmap:
    """A table whose numbers are shown as colours.

    Attributes:
        values: `[row][column]`.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


_RANGES = {"cosines": (-1.0, 1.0), "pairs": (-1.0, 1.0), "conflicts": (0.0, 1.0)}
"""Ends of the colours; changes take their own."""


def _range(table: Heatmap) -> tuple[float, float]:
    return 0.0, max(value for row in table.values for value in row)


def _cosines(kinship: Kinship) -> Heatmap:
    indices = range(len(kinship.experts))
    values = tuple(tuple(kinship.total.cosine(one, other) for other in indices) for one in indices)
    return Heatmap(columns=kinship.experts, rows=kinship.experts, values=values)


def _changes(kinship: Kinship) -> Heatmap:
    experts = enumerate(kinship.experts)
    columns = [(f"{name} · {role}", role, partial(_norm, index)) for index, name in experts for role in DEPTH_ROLES]
    return _over_depth(kinship, columns)


def _norm(expert: int, cell: Products) -> float:
    return cell.norm(expert)


def _conflicts(kinship: Kinship) -> Heatmap:
    return _over_depth(kinship, [(role, role, lambda cell: cell.conflict_share) for role in DEPTH_ROLES])


def _pairs(kinship: Kinship) -> Heatmap:
    """Cosines of every two experts over depth; an expert alone makes a pair with itself."""
    pairs = list(combinations(enumerate(kinship.experts), 2)) or [((0, kinship.experts[0]),) * 2]
    columns = [(f"{one} · {other}", None, partial(_cosine, i, j)) for (i, one), (j, other) in pairs]
    return _over_depth(kinship, columns)


def _cosine(one: int, other: int, cell: Products) -> float:
    return cell.cosine(one, other)


Column = tuple[str, Role | None, Callable[[Products], float]]
"""A name, a module role (None: all modules of a layer) and what to show of them."""


def _over_depth(kinship: Kinship, columns: Sequence[Column]) -> Heatmap:
    """Embeddings, layers and head in rows; what a model lacks is 0."""
    nothing = Products(base=0.0, gram=((0.0,) * len(kinship.experts),) * len(kinship.experts), shared=0, conflicts=0)
    rows: dict[str, list[Products]] = {"embed": [kinship.cells.get(("embed", None), nothing)] * len(columns)}
    for layer, whole in kinship.layers.items():
        cells = [whole if role is None else kinship.cells.get((role, layer), nothing) for _, role, _ in columns]
        rows[f"layer {layer}"] = cells
    rows["head"] = [kinship.cells.get(("head", None), nothing)] * len(columns)
    return Heatmap(
        columns=tuple(name for name, _, _ in columns),
        rows=tuple(rows),
        values=tuple(
            tuple(show(cell) for cell, (_, _, show) in zip(cells, columns, strict=True)) for cells in rows.values()
        ),
    )
