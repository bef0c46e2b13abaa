"""Texts in blocks of equal length, as items: how well a live model predicts them, and how far it is from a reference.

Knows nothing of candidates. Legend: n blocks, L tokens of a block, V vocabulary, K tokens kept of a distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, final

from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.errors import TaskError
from evomerge.fitness import duplicates_of
from evomerge.merging.calibrated import documents
from evomerge.recipe import OutputDtype, uniform

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from evomerge.config import KlConfig, LossConfig
    from evomerge.engines.base import Engine

__all__ = ["KEPT", "KlScorer", "LossScorer", "token_ids"]

KEPT = 256
"""Tokens of the reference's distribution that are kept at each position; 2 KiB of memory for each token of the text."""

_MOST_LOGITS = 2**26
"""Logits that one forward pass may give, so that a large vocabulary does not need a large memory."""


def token_ids(tokenizer: Any, file: Path, most: int) -> list[int]:
    """The first tokens of a text.

    Raises:
        PoolError: the file cannot be read, or holds no text.
    """
    ids: list[int] = []
    for text in documents(file):
        ids += tokenizer(text, verbose=False)["input_ids"]
        if len(ids) >= most:
            break
    return ids[:most]


class _Blocks:
    """The blocks `[n, L]` of one text; what does not fill a block is left out.

    Raises:
        TaskError: fewer than two blocks, or blocks that are longer than the model's positions.
    """

    def __init__(self, name: str, config: LossConfig | KlConfig, tokenizer: Any, positions: int) -> None:
        ids = token_ids(tokenizer, config.text, config.tokens)
        if config.block > positions:
            raise TaskError(
                f"scorer {name!r}: expected blocks of at most {positions} tokens; got block: {config.block}"
            )
        self.size = len(ids) // config.block
        if self.size < 2:
            raise TaskError(
                f"scorer {name!r}: expected at least 2 blocks of {config.block} tokens; got {len(ids)} tokens in "
                f"{config.text}; choose a longer text or a smaller block"
            )
        self.tokens = [tuple(ids[at * config.block : (at + 1) * config.block]) for at in range(self.size)]
        self.content = hashlib.blake2b(repr([config.kind, config.block, ids]).encode(), digest_size=16)


class _Logits:
    """What the live model of transformers answers on blocks."""

    def __init__(self, name: str, config: LossConfig | KlConfig, engine: TransformersEngine) -> None:
        engine.require_language_model(f"scorer {name!r}")
        settings = engine.model.config.get_text_config()
        positions = getattr(settings, "max_position_embeddings", None) or config.block
        self.blocks = _Blocks(name, config, engine.tokenizer, positions)
        self._engine = engine
        self._rows = max(1, min(engine.config.batch_size, _MOST_LOGITS // (config.block * settings.vocab_size)))

    def of(self, items: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each block its tokens `[L]` and the live model's logits behind them, `[L, V]` in float32."""
        import torch

        for at in range(0, len(items), self._rows):
            rows = [self.blocks.tokens[item] for item in items[at : at + self._rows]]
            tokens = torch.tensor(rows, device=self._engine.device)
            with torch.inference_mode():
                found = self._engine.model(input_ids=tokens, use_cache=False).logits
            for row, logits in zip(tokens, found, strict=True):
                yield row, logits.float()

    def losses(self, items: Sequence[int]) -> list[float]:
        """Mean negative log-likelihood of each block's tokens but the first."""
        from torch.nn.functional import cross_entropy

        return [float(cross_entropy(logits[:-1], row[1:])) for row, logits in self.of(items)]


class _Likelihoods:
    """What any other engine answers on blocks."""

    def __init__(self, name: str, config: LossConfig, engine: Engine) -> None:
        self._backend = engine.backend(chat_template=False)
        self.blocks = _Blocks(name, config, self._backend.lm.tokenizer, self._backend.lm.max_length)

    def losses(self, items: Sequence[int]) -> list[float]:
        """As `_Logits.losses`."""
        rows = [self.blocks.tokens[item] for item in items]
        found = self._backend.scoring([(row[:1], row[1:]) for row in rows])()
        return [-score / (len(row) - 1) for row, (score, _) in zip(rows, found, strict=True)]


@final
class LossScorer:
    """Mean negative log-likelihood of a block's tokens but the first, in nats; the exponential is the perplexity.

    Args:
        name: of the scorer.
        config: text and blocks.
        engine: holds the live model.

    Raises:
        PoolError: the text cannot be read.
        TaskError: it does not make blocks.
    """

    metrics = ("loss",)

    def __init__(self, name: str, config: LossConfig, engine: Engine) -> None:
        self._model = (
            _Logits(name, config, engine)
            if isinstance(engine, TransformersEngine)
            else _Likelihoods(name, config, engine)
        )
        self.size, self.block = self._model.blocks.size, config.block
        self.digest = self._model.blocks.content.hexdigest()
        self.duplicates = duplicates_of(self._model.blocks.tokens)

    def score(self, items: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """The loss of each block."""
        return {"loss": self._model.losses(items)}


@final
class KlScorer:
    """Mean over a block's positions of `KL(reference || candidate)` between next-token distributions, in nats.

    The reference answers once, when the scorer is made. Of each of its distributions the `KEPT` likeliest tokens are
    kept and the rest is one event, so the figure is a lower bound of the whole divergence (data processing
    inequality), and exact where the vocabulary is no larger.

    Args:
        name: of the scorer.
        config: text, blocks and reference.
        engine: holds the live model, which becomes the reference's.

    Raises:
        MergeError: the reference cannot be made, or computes NaN.
        PoolError: the text cannot be read.
        TaskError: it does not make blocks.
    """

    metrics = ("kl",)

    def __init__(self, name: str, config: KlConfig, engine: TransformersEngine) -> None:
        self._model = _Logits(name, config, engine)
        blocks = self._model.blocks
        self.size, self.block = blocks.size, config.block
        blocks.content.update(repr((KEPT, config.reference)).encode())
        self.digest = blocks.content.hexdigest()
        self.duplicates = duplicates_of(blocks.tokens)
        dtype = cast("OutputDtype", engine.dtype)
        engine.load(uniform((config.reference,), layers=engine.pool.layers, dtype=dtype))
        engine.watch.restart()
        self._kept = [_likeliest(logits) for _, logits in self._model.of(range(self.size))]
        engine.watch.check_finite()

    def score(self, items: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """The divergence on each block."""
        found = []
        for item, (_, logits) in zip(items, self._model.of(items), strict=True):
            ids, logs = (kept.to(logits.device) for kept in self._kept[item])
            found.append(_divergence(ids.long(), logs, logits))
        return {"kl": found}


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities `[L, K]` of the likeliest tokens, in the main memory."""
    logs, ids = logits.log_softmax(-1).topk(min(KEPT, logits.shape[-1]), dim=-1)
    return ids.int().cpu(), logs.cpu()


def _divergence(ids: torch.Tensor, reference: torch.Tensor, logits: torch.Tensor) -> float:
    """Mean of `sum p log(p / q)` over the kept tokens `[L, K]` and the rest, which is one event; `logits` `[L, V]`."""
    reference = reference.double()
    candidate = logits.log_softmax(-1).gather(-1, ids).double()
    total = (reference.exp() * (reference - candidate)).sum(-1)
    if ids.shape[-1] < logits.shape[-1]:
        p, q = ((1.0 - logs.exp().sum(-1)).clamp(min=1e-12) for logs in (reference, candidate))
        total = total + p * (p / q).log()
    return float(total.mean().clamp(min=0.0))
