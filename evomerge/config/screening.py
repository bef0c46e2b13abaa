"""What a user may write about screening: which candidates are not worth scoring. Reads no file and knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from evomerge.config.base import Finite, Strict

__all__ = ["ScreenConfig"]


class ScreenConfig(Strict):
    """A short text that a candidate of the search must predict, right after it was made; else it fails unscored.

    Base, experts and their average are not screened, and nothing is in the confirmation.
    """

    text: Path
    """A `.txt` file, or a `.jsonl` file with a key `text`."""
    tokens: Annotated[int, Field(ge=2, le=4096)] = 64
    """How many tokens of the text are used."""
    limit: Literal["uniform"] | Annotated[Finite, Field(gt=0)] = "uniform"
    """Worst mean loss, in nats per token; `uniform` is that of guessing, every token being as likely as any other."""
