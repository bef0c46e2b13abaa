"""Proof that a live vLLM engine holds the weights that it should: the same texts, asked of it and of transformers.

Exchanging weights in a running engine has gone wrong without an error for many architectures and versions of vLLM:
heads that kept an old copy of the embedding, experts in another layout, tensors that were not written. Knows nothing of
tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.config import TransformersConfig
from evomerge.engines.loglikelihood import log_likelihoods, make_batches
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.engines.vllm_backend import Asked, skeleton_of
from evomerge.engines.vllm_process import logprobs_of
from evomerge.errors import ConfigError, MergeError
from evomerge.recipe import uniform
from evomerge.rng import stream

if TYPE_CHECKING:
    from evomerge.engines.base import LoadStats
    from evomerge.engines.vllm_process import Likelihood
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import OutputDtype, Recipe

__all__ = ["TOLERANCE", "answers_of", "canary_texts", "check_adapters", "distance", "expected_answers"]

TOLERANCE = {"float32": 0.005, "bfloat16": 0.25, "float16": 0.05}
"""Mean difference of log-probabilities, in nats, that the order of sums may make, by dtype of arithmetic."""

_TEXTS, _LENGTH = 6, 24


def canary_texts(vocabulary: int) -> list[list[int]]:
    """Texts of arbitrary tokens, always the same: they reach rows of the embedding that few others reach."""
    draws = stream(0, "canary").integers(0, vocabulary, (_TEXTS, _LENGTH))
    return [[int(token) for token in row] for row in draws]


def answers_of(llm: Any, texts: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of every token but the first, text by text, in a live engine.

    Raises:
        MergeError: the model computes NaN.
    """
    return _flat(logprobs_of(llm, texts))


def expected_answers(folder: Path, texts: Sequence[Sequence[int]], dtype: str) -> list[float]:
    """The same of a checkpoint, by transformers on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
    ).eval()
    return _answers_of_transformers(model, texts)


def _answers_of_transformers(model: Any, texts: Sequence[Sequence[int]]) -> list[float]:
    pairs = [(tuple(text[:at]), (text[at],)) for text in texts for at in range(1, len(text))]
    batches = make_batches(pairs, batch_size=_TEXTS, max_length=_LENGTH, device="cpu")
    return [logprob for logprob, _ in log_likelihoods(model, batches, len(pairs))]


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean difference, nats per token."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)


class Serving(Asked, Protocol):
    """A live base that candidates are given to as adapters."""

    @property
    def dtype(self) -> OutputDtype:
        """What it computes in."""
        ...

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """See `Engine.load`."""
        ...


def check_adapters(engine: Serving) -> None:
    """Make sure that a live base answers as the merge does when it is given the adapter of a merge.

    Args:
        engine: holds the live base, which is given the average of all experts. Where memory is too small for a model
            beside it, only that this changes answers is checked.

    Raises:
        MergeError: it does not.
    """
    pool = engine.pool
    texts = canary_texts(skeleton_of(pool).config.get_text_config().vocab_size)
    recipe = uniform(pool.experts, layers=pool.layers, dtype=engine.dtype)
    engine.load(uniform((pool.base,), layers=pool.layers, dtype=engine.dtype))
    plain = _flat(engine.logprobs(texts))
    engine.load(recipe)
    live = _flat(engine.logprobs(texts))
    if live == plain:
        raise MergeError(
            "expected adapters to change how likely a prompt's tokens are; they change nothing: the engine leaves them "
            "out; restrict it to the modules that they change (vllm serve --lora-target-modules)"
        )
    expected = _expected_of(pool, recipe, engine)
    off = 0.0 if expected is None else distance(live, expected)
    print(f"adapters: {'not compared with transformers' if expected is None else f'{off:.2g} nats per token off'}")
    if off > TOLERANCE[engine.dtype]:
        raise MergeError(
            f"expected the average of all experts, served as an adapter, to answer as transformers does in "
            f"{engine.dtype}, up to {TOLERANCE[engine.dtype]} nats per token; got {off:.2g}: the engine holds another "
            "base, computes in another dtype than engine.dtype, or leaves out some of what the adapters change"
        )


def _expected_of(pool: ModelPool, recipe: Recipe, engine: Serving) -> list[float] | None:
    """What transformers answers, if memory holds the model."""
    config = TransformersConfig(device="cpu", dtype=engine.dtype, threads=engine.config.threads)
    try:
        merged = TransformersEngine(pool, config)
    except ConfigError:
        return None
    merged.load(recipe)
    texts = canary_texts(merged.model.config.get_text_config().vocab_size)
    return _answers_of_transformers(merged.model, texts)


def _flat(answers: Sequence[Sequence[Likelihood]]) -> list[float]:
    return [logprob for text in answers for logprob, _ in text]
