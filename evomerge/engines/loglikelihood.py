"""Log-likelihoods of answers after prompts, in prebuilt batches: one forward pass, one softmax and one gather each.

The numbers are those of lm-eval's `HFLM` with a float32 softmax; only its per-request work in Python is gone. Knows
nothing of tasks.

Legend: B rows of a batch, L their padded length, K the last positions whose logits are kept, V vocabulary, N answer
tokens in a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Pair", "log_likelihoods", "make_batches"]

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of its answer; neither is empty."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Rows that go through the model together, and where in them the answer tokens are predicted.

    Attributes:
        tokens: int64 `[B, L]`, padded on the right with 0; causal attention never looks there.
        keep: int64 `[K]`, positions at which some row's answer token is predicted. As indices, not as a slice: a
            gathered copy is contiguous, and multiplying a slice by a large vocabulary costs several times as much.
        rows, columns, answers, owners: int64 `[N]`: row, position among the kept ones, token id and pair of each answer
            token.
    """

    tokens: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    answers: torch.Tensor
    owners: torch.Tensor


def make_batches(pairs: Sequence[Pair], *, batch_size: int, max_length: int, device: str) -> tuple[Batch, ...]:
    """Lay pairs out in batches, longest first; pairs that differ only in their last token share a row.

    Args:
        pairs: prompts and answers.
        batch_size: rows per batch.
        max_length: positions the model has; longer prompts lose their beginning.
        device: where the tensors go.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for owner, (prompt, answer) in enumerate(pairs):
        rows.setdefault((prompt + answer)[-(max_length + 1) : -1], []).append(owner)
    ordered = iter(sorted(rows.items(), key=lambda row: (-len(row[0]), row[0])))
    chunks = iter(lambda: list(islice(ordered, batch_size)), [])
    return tuple(_batch(chunk, pairs, device) for chunk in chunks)


def _batch(rows: Sequence[tuple[tuple[int, ...], list[int]]], pairs: Sequence[Pair], device: str) -> Batch:
    import torch

    length = len(rows[0][0])
    places = list(_places(rows, pairs))
    row, position, answer, owner = torch.tensor(places, device=device).unbind(1)
    keep, columns = torch.unique(position, return_inverse=True)
    return Batch(
        tokens=torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens, _ in rows], device=device),
        keep=keep,
        rows=row,
        columns=columns,
        answers=answer,
        owners=owner,
    )


def _places(
    rows: Sequence[tuple[tuple[int, ...], list[int]]], pairs: Sequence[Pair]
) -> Iterator[tuple[int, int, int, int]]:
    """For each answer token: its row, the position that predicts it, its id, its pair."""
    for row, (tokens, owners) in enumerate(rows):
        for owner in owners:
            answer = pairs[owner][1]
            start = len(tokens) - len(answer)
            for offset, token in enumerate(answer):
                yield row, start + offset, token, owner


def log_likelihoods(model: Any, batches: Sequence[Batch], pairs: int) -> list[tuple[float, bool]]:
    """Score every pair.

    Args:
        model: a causal language model.
        batches: from `make_batches`.
        pairs: how many pairs they hold.

    Returns:
        For each pair the answer's log-likelihood in nats, and whether every answer token is the likeliest one.
    """
    import torch

    total = torch.zeros(pairs, dtype=torch.float64, device=model.device)
    misses = torch.zeros(pairs, dtype=torch.int64, device=model.device)
    forward = _forward_of(model)
    with torch.inference_mode():
        for batch in batches:
            logits = forward(batch)[batch.rows, batch.columns].float()  # [N, V]
            chosen = logits.gather(1, batch.answers[:, None])[:, 0] - logits.logsumexp(1)
            total.index_add_(0, batch.owners, chosen.double())
            misses.index_add_(0, batch.owners, (logits.argmax(1) != batch.answers).long())
    return [(score, missed == 0) for score, missed in zip(total.tolist(), misses.tolist(), strict=True)]


def _forward_of(model: Any) -> Callable[[Batch], torch.Tensor]:
    """A function that gives the logits `[B, K, V]` of the kept positions; the rest is not computed where possible."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return lambda batch: model(input_ids=batch.tokens, use_cache=False, logits_to_keep=batch.keep).logits
    return lambda batch: model(input_ids=batch.tokens, use_cache=False).logits[:, batch.keep]
