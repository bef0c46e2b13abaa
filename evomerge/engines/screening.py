"""Screening: one look at a live model, a forward pass over a few tokens, that tells broken models from others.

Most random paths through layers make models that predict worse than a guess; scoring them would cost a hundred times as
much and tell no more. Knows nothing of candidates or tasks.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, final

from evomerge.engines.texts import token_ids
from evomerge.errors import MergeError, TaskError

if TYPE_CHECKING:
    from evomerge.config import ScreenConfig
    from evomerge.engines.base import Engine

__all__ = ["Screen"]


@final
class Screen:
    """A text, and how well a model must predict it.

    Args:
        config: text and limit.
        engine: holds the live model.

    Attributes:
        limit: worst mean loss, in nats per token.
        digest: of the tokens and the limit.

    Raises:
        PoolError: the text cannot be read.
        TaskError: it has less than two tokens, or more are wanted than the model has positions, or this is no language
            model.
    """

    def __init__(self, config: ScreenConfig, engine: Engine) -> None:
        backend = engine.backend(chat_template=False)
        ids = token_ids(backend.lm.tokenizer, config.text, config.tokens)
        if not 2 <= len(ids) <= backend.lm.max_length:
            raise TaskError(
                f"fitness.screen: expected 2 to {backend.lm.max_length} tokens, the model's positions; got "
                f"{len(ids)} of {config.text}; choose another text, or change tokens"
            )
        self._engine = engine
        self._count = len(ids) - 1
        self._score = backend.scoring([(tuple(ids[:1]), tuple(ids[1:]))])
        self.limit = math.log(len(backend.lm.tokenizer)) if config.limit == "uniform" else config.limit
        self.digest = hashlib.blake2b(repr((ids, self.limit)).encode(), digest_size=16).hexdigest()

    def check(self) -> float:
        """Look at the live model.

        Returns:
            Wall seconds.

        Raises:
            MergeError: it predicts the text worse than the limit, or computes NaN.
        """
        self._engine.watch.restart()
        ((likelihood, _),) = self._score()
        self._engine.watch.check_finite()
        loss = -likelihood / self._count
        if not loss <= self.limit:
            raise MergeError(
                f"expected a mean loss of at most {self.limit:.3f} nats on the {self._count} tokens of fitness.screen; "
                f"got {loss:.3f}"
            )
        return self._engine.watch.seconds
