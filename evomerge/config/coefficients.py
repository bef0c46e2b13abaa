"""Coefficients that were found elsewhere, by training or by an earlier search: their schema, and their files.

A file holds a list of records, as JSON, as YAML, or as CSV with the same names in its first line. Knows nothing of
spaces, nor of the models that the coefficients are for.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.errors import ConfigError, Fault
from evomerge.recipe import EDGE_ROLES, Role
from evomerge.yaml_lines import Document, KeyPath, Place, parse

__all__ = ["Coefficient", "read_coefficients"]


class Coefficient(Strict):
    """One value of one parameter at one place."""

    value: Finite
    layer: Annotated[int, Field(ge=0)] | None = None
    """Counted from 0; left out for `embed` and `head`, which lie outside the layers."""
    role: Role | None = None
    """attention, mlp, norm, embed or head; left out, every module of the layer."""
    expert: Name | None = None
    """Left out for parameters that all experts share."""
    parameter: str = "weight"

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if (self.layer is None) != (self.role in EDGE_ROLES):
            raise ValueError(f"expected a layer, or the role embed or head; got layer {self.layer}, role {self.role}")
        return self


def read_coefficients(file: Path) -> Document:
    """The records of a file, with the line of each.

    Raises:
        ConfigError: the file cannot be read, or is neither CSV nor JSON nor YAML.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [Fault(path="$", message=f"cannot be read: {error}")]) from error
    return _parse_csv(text, str(file)) if file.suffix == ".csv" else parse(text, str(file))


def _parse_csv(text: str, source: str) -> Document:
    """Rows as records; empty cells are left out, numbers are numbers, and the rest is text for the schema to judge."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    records: list[dict[str, Any]] = []
    places: dict[KeyPath, Place] = {(): Place(1)}
    for row in reader:
        places[(len(records),)] = Place(reader.line_num)
        records.append({str(name): _scalar(name, cell) for name, cell in row.items() if cell})
    return Document(source=source, data=records, places=places)


def _scalar(name: str, cell: str) -> Any:
    kinds = {"layer": int, "value": float}
    try:
        return kinds[name](cell) if name in kinds else cell
    except ValueError:
        return cell
