"""`Field`: one parameter of an operator over depth and module role. Knows nothing of operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

__all__ = ["DEPTH_ROLES", "EDGE_ROLES", "ROLES", "Field", "Role"]

Role = Literal["attention", "mlp", "norm", "embed", "head"]
ROLES: tuple[Role, ...] = get_args(Role)
DEPTH_ROLES: tuple[Role, ...] = ("attention", "mlp", "norm")
"""Roles inside a layer; `norm` also takes whatever else a layer holds."""
EDGE_ROLES: tuple[Role, ...] = ("embed", "head")
"""Roles outside the layers; `head` is the output projection and the final norm."""


def _plain(row: tuple[float, ...]) -> tuple[float, ...]:
    return tuple([float(value) + 0.0 for value in row])  # + 0.0 turns -0.0 into 0.0


@dataclass(frozen=True, slots=True)
class Field:
    """One operator parameter over depth and module role.

    Attributes:
        rows: for each role in the order of `ROLES`, its values `[depth][source]`. Depth is the number of layers for
            `DEPTH_ROLES` and 1 for `EDGE_ROLES`; the inner length is 1 for parameters shared by all sources.

    Raises:
        ValueError: a role without values, ragged rows, or a number that is not finite.
    """

    rows: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(ROLES):
            raise ValueError(f"a field has {len(ROLES)} roles {ROLES}; got {len(self.rows)}")
        widths = {len(row) for role in self.rows for row in role}
        depths = {len(self.rows[ROLES.index(role)]) for role in DEPTH_ROLES}
        if len(widths) != 1 or 0 in widths or len(depths) != 1 or 0 in depths:
            raise ValueError(f"a field needs equal depths and widths, at least 1; got depths {depths}, widths {widths}")
        if any(len(self.rows[ROLES.index(role)]) != 1 for role in EDGE_ROLES):
            raise ValueError(f"roles {EDGE_ROLES} lie outside the layers and have one row each")
        if not all(map(math.isfinite, chain.from_iterable(chain.from_iterable(self.rows)))):
            raise ValueError(f"a recipe holds finite numbers; got {self.rows}")
        object.__setattr__(self, "rows", self._each(_plain))

    def _each(self, of: Callable[[tuple[float, ...]], tuple[float, ...]]) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """A function of every row, computed once for equal ones: fields repeat themselves over depth and roles."""
        known = {row: of(row) for role in self.rows for row in dict.fromkeys(role)}
        return tuple(tuple([known[row] for row in role]) for role in self.rows)

    @classmethod
    def constant(cls, values: Sequence[float], layers: int) -> Field:
        """The same values, one per source, at every depth and role."""
        row = tuple(values)
        return cls(tuple((row,) * (layers if role in DEPTH_ROLES else 1) for role in ROLES))

    @classmethod
    def of(cls, by_role: Mapping[Role, Sequence[Sequence[float]]]) -> Field:
        """From a mapping role -> `[depth][source]`; every role must be there."""
        missing = [role for role in ROLES if role not in by_role]
        if missing:
            raise ValueError(f"a field needs every role; missing {missing}")
        return cls(tuple(tuple(tuple(row) for row in by_role[role]) for role in ROLES))

    def rounded(self, decimals: int) -> Field:
        """The same with so many places behind the point."""
        rows = self._each(lambda row: tuple([round(v, decimals) for v in row]))
        return self if rows == self.rows else Field(rows)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.rows[0])

    @property
    def width(self) -> int:
        """Number of sources; 1 for shared parameters."""
        return len(self.rows[0][0])

    def at(self, role: Role, layer: int | None) -> tuple[float, ...]:
        """Values for one tensor, one per source.

        Args:
            role: the tensor's module role.
            layer: its layer, counted from 0; None (or anything, for edge roles) outside the layers.
        """
        rows = self.rows[ROLES.index(role)]
        return rows[layer or 0] if role in DEPTH_ROLES else rows[0]

    def by_role(self) -> Iterator[tuple[Role, tuple[tuple[float, ...], ...]]]:
        """Pairs of role and its rows `[depth][source]`."""
        return zip(ROLES, self.rows, strict=True)
