"""What a user may write about scorers: tasks that lm-eval does not know.

Names a function and its items, or a text; imports nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from evomerge.config.base import Name, Strict

__all__ = ["FunctionConfig", "KlConfig", "LossConfig", "ScorerConfig", "TextConfig", "missing_files", "module_file"]


class FunctionConfig(Strict):
    """A function of yours: `function(engine, items)` gives one number per item.

    It is code, and a run runs it: name only what you would run yourself.
    """

    kind: Literal["function"]
    function: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
    """`module:function`. The module is a file beside this one, or installed."""
    items: Path | Annotated[int, Field(ge=2)]
    """A `.jsonl` file with one item per line; or how many there are, and the function gets their numbers from 0."""
    metrics: Annotated[tuple[Name, ...], Field(min_length=1)] = ("acc",)
    """What it measures; with several, it gives a mapping of metrics to lists of numbers."""
    folder: Path | None = None
    """Where the module is looked for first; the folder of this file if left out."""


class TextConfig(Strict):
    """A text in blocks of equal length; each block is an item."""

    text: Path
    """A `.txt` file, or a `.jsonl` file with a key `text`."""
    tokens: Annotated[int, Field(ge=1)] = 65536
    """How many tokens of the text are used."""
    block: Annotated[int, Field(ge=2)] = 128
    """Tokens of an item."""


class LossConfig(TextConfig):
    """Metric `loss`: how badly the model predicts a text, in nats per token; `exp` of it is the perplexity."""

    kind: Literal["loss"]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it measures."""
        return ("loss",)


class KlConfig(TextConfig):
    """Metric `kl`: how far the model's next-token distribution is from a reference's, in nats per token."""

    kind: Literal["kl"]
    reference: str = "base"
    """`base` or an expert."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it measures."""
        return ("kl",)


ScorerConfig = Annotated[FunctionConfig | LossConfig | KlConfig, Field(discriminator="kind")]


def module_file(scorer: FunctionConfig) -> Path | None:
    """The user's own file that holds the function; None for an installed module.

    Raises:
        LookupError: no such file, and no such package.
    """
    module = scorer.function.partition(":")[0]
    own = f"{module.replace('.', '/')}.py"
    if scorer.folder is not None and (scorer.folder / own).is_file():
        return scorer.folder / own
    if find_spec(module.partition(".")[0]) is None:
        raise LookupError(f"expected the module {module!r}: {own} in {scorer.folder}, or installed; got neither")
    return None


def missing_files(scorers: Mapping[str, ScorerConfig]) -> Iterator[tuple[tuple[str, str], str]]:
    """Files and modules that do not exist: the scorer and its key, and what was expected there."""
    for name, scorer in scorers.items():
        key, file = ("text", scorer.text) if isinstance(scorer, TextConfig) else ("items", scorer.items)
        if isinstance(file, Path) and not file.is_file():
            yield (name, key), f"expected a file; nothing at {file}"
        if isinstance(scorer, FunctionConfig):
            try:
                module_file(scorer)
            except LookupError as error:
                yield (name, "function"), str(error.args[0])
