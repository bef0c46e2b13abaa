"""What all configuration classes share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = ["Finite", "Name", "Strict"]


class Strict(BaseModel):
    """A mapping of a configuration: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""Letters, digits, `_`, `.` and `-`: safe in file names and in the report."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
