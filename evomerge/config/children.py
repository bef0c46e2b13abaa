"""What a user may write about a model that an earlier run found. Knows nothing of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from evomerge.config.base import Strict

__all__ = ["ChildConfig", "Expert"]


class ChildConfig(Strict):
    """A candidate of an earlier run, in place of a folder: written out once, and then an expert like any other."""

    run: Path
    """Folder of that run."""
    candidate: str = "knee"
    """`knee` or `best:OBJECTIVE` of a finished run, or a candidate's number; a name is settled when a run begins."""
    number: Annotated[int, Field(ge=0)] | None = None
    """Which candidate that was; a run records it."""
    recipe: str | None = None
    """Digest of that candidate's recipe; a run records it."""

    @field_validator("candidate", mode="before")
    @classmethod
    def _numbers_are_names(cls, candidate: Any) -> Any:
        return str(candidate) if type(candidate) is int else candidate


def _is_child(value: Any) -> str:
    return "[child]" if isinstance(value, dict | ChildConfig) else "[folder]"


Expert = Annotated[Annotated[Path, Tag("[folder]")] | Annotated[ChildConfig, Tag("[child]")], Discriminator(_is_child)]
"""A folder, or a candidate of an earlier run."""
