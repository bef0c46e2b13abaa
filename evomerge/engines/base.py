"""What a worker needs of an engine and of a scorer, and nothing about how either does it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.errors import TaskError

if TYPE_CHECKING:
    from evomerge.engines.generation import Written
    from evomerge.engines.loglikelihood import Pair
    from evomerge.outcome import ItemSet, Responses
    from evomerge.recipe import Recipe

__all__ = ["Backend", "Engine", "LoadStats", "Scorer", "TextRequest", "Watch", "check_chat_template", "stay_offline"]

TextRequest = tuple[str, Mapping[str, Any]]
"""A prompt, and lm-eval's `generation_kwargs`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadStats:
    """What writing one recipe into a live model took.

    Attributes:
        seconds: wall time.
        rewritten_share: share of the model's weights that were written, 0 to 1; the rest already held the right values.
    """

    seconds: float
    rewritten_share: float


class Watch(Protocol):
    """Watches the forward passes of a live model."""

    @property
    def seconds(self) -> float:
        """Wall time inside forward passes since the last restart."""
        ...

    def restart(self) -> None:
        """Forget what was seen so far."""
        ...

    def check_finite(self) -> None:
        """Judge the forward passes since the last restart.

        Raises:
            MergeError: one of them gave NaN or infinity.
        """
        ...


class Backend(Protocol):
    """How benchmarks ask a live language model. Requests are laid out once, and asked of whatever the model is then."""

    @property
    def lm(self) -> Any:
        """lm-eval's view of the model: tokenizer, limits, and all kinds of requests."""
        ...

    def scoring(self, pairs: Sequence[Pair]) -> Callable[[], list[tuple[float, bool]]]:
        """A function that scores prompts and answers.

        For each pair it gives the answer's log-likelihood in nats, and whether every answer token is the likeliest one.
        It raises `MergeError` where the model computes NaN.
        """
        ...

    def writing(self, requests: Sequence[TextRequest]) -> Callable[[], list[Written]]:
        """A function that lets the model go on with prompts.

        Raises:
            TaskError: settings that cannot be served.
        """
        ...


class Engine(Protocol):
    """A live model whose weights a recipe can overwrite."""

    @property
    def device(self) -> str:
        """Where the model lives, for example `cpu`."""
        ...

    @property
    def dtype(self) -> str:
        """What it computes in, for example `bfloat16`."""
        ...

    @property
    def watch(self) -> Watch:
        """Time and sanity of its forward passes."""
        ...

    def backend(self, *, chat_template: bool) -> Backend:
        """What benchmarks ask.

        Raises:
            TaskError: this model cannot be asked, or not with a chat template.
        """
        ...

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Make the live model the recipe's merge, whatever it was before.

        Args:
            recipe: what to merge.
            exact: from the models' own weights, even where the engine keeps approximations of them.

        Raises:
            MergeError: the recipe could not be turned into weights. The next load rewrites everything.
        """
        ...


class Scorer(Protocol):
    """Scores the live model on chosen items."""

    def sizes(self) -> Mapping[str, int]:
        """Number of items of every task."""
        ...

    def score(self, items: ItemSet) -> tuple[tuple[Responses, ...], Mapping[str, float]]:
        """Per-item outcomes, one record per (task, metric), sorted; and wall seconds by stage.

        Raises:
            TaskError: an item that does not exist, or a value that is no number.
            MergeError: the model computes NaN or infinity.
        """
        ...


def check_chat_template(tokenizer: Any, *, wanted: bool) -> None:
    """Whether a tokenizer can do what a fitness asks of it.

    Raises:
        TaskError: a chat template is wanted and there is none.
    """
    if wanted and not tokenizer.chat_template:
        raise TaskError(
            "fitness.chat_template: expected a tokenizer with a chat template; the base's has none; set it to false"
        )


def stay_offline() -> None:
    """Keep the Hugging Face libraries off the network, unless the user's environment says otherwise.

    They read these variables when they are imported, so this comes before any such import.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
