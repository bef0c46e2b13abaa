"""Measured figures beside their targets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["QUICK", "Row", "conclude"]

QUICK = os.environ.get("QUICK", "") not in ("", "0")
"""A run under a minute, on less data; its figures are weaker evidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure.

    Attributes:
        met: whether the target was met; None where there is no target or nothing was measured.
    """

    name: str
    target: str
    measured: str
    met: bool | None


def conclude(title: str, found: Iterable[Row]) -> None:
    """Print each figure when it is measured, then the table, and exit: 0 if every target was met, else 1."""
    rows = []
    for row in found:
        print(f"{row.name}: {row.measured}", flush=True)
        rows.append(row)
    print(f"\n{title}{' (QUICK)' if QUICK else ''}")
    cells = [(row.name, row.target, row.measured) for row in rows]
    widths = [max(len(text) for text in column) for column in zip(*cells, strict=True)]
    for row in rows:
        mark = {True: "met", False: "MISSED", None: "-"}[row.met]
        print(f"  {row.name:{widths[0]}}  target {row.target:{widths[1]}}  measured {row.measured:{widths[2]}}  {mark}")
    sys.exit(any(row.met is False for row in rows))
