"""Markdown of the reference pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["one_line", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; cells may hold bars and line breaks."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def one_line(text: str) -> str:
    """The text without line breaks."""
    return re.sub(r"\s+", " ", text).strip()
