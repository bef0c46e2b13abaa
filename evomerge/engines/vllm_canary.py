"""Proof that a live vLLM engine holds the weights that it should: the same texts, asked of it and of transformers.

Exchanging weights in a running engine has gone wrong without an error for many architectures and versions of vLLM:
heads that kept an old copy of the embedding, experts in another layout, tensors that were not written. Knows nothing of
tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.engines.loglikelihood import log_likelihoods, make_batches
from evomerge.engines.vllm_process import logprobs_of
from evomerge.rng import stream

if TYPE_CHECKING:
    pass

__all__ = ["TOLERANCE", "answers_of", "canary_texts", "distance", "expected_answers"]

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
    return [logprob for text in logprobs_of(llm, texts) for logprob, _ in text]


def expected_answers(folder: Path, texts: Sequence[Sequence[int]], dtype: str) -> list[float]:
    """The same of a checkpoint, by transformers on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
    ).eval()
    pairs = [(tuple(text[:at]), (text[at],)) for text in texts for at in range(1, len(text))]
    batches = make_batches(pairs, batch_size=_TEXTS, max_length=_LENGTH, device="cpu")
    return [logprob for logprob, _ in log_likelihoods(model, batches, len(pairs))]


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean difference, nats per token."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)
