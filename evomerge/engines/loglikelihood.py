"""Log-likelihoods of answers after prompts, in prebuilt batches: one forward pass, one softmax and one gather each.

The numbers are those of lm-eval's `HFLM` with a float32 softmax; only its per-request work in Python is gone, and a
prompt is read once for all its answers where the model allows it. Knows nothing of tasks.

Legend: B rows of a batch, L their padded length, K the positions whose logits are kept, V vocabulary, N answer tokens
in a batch, P places (row and position) that predict them: answers to one prompt share the place of their first token.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from evomerge.errors import MergeError

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Branches", "Pair", "keeps_branches_apart", "log_likelihoods", "make_batches"]

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]
"""Token ids of a prompt and of its answer; neither is empty."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branches:
    """What keeps several answers behind one prompt from seeing each other.

    Attributes:
        positions: int64 `[B, L]`; every answer's begin where the prompt ends.
        visible: bool `[B, 1, L, L]`, which position sees which: the prompt and what comes before in the same answer.
            Padding sees its whole row, so that a NaN anywhere shows there.
    """

    positions: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Rows that go through the model together, and where in them the answer tokens are predicted.

    Attributes:
        tokens: int64 `[B, L]`, padded on the right with 0; causal attention never looks there.
        keep: int64 `[K]`, positions at which some row's answer token is predicted. As indices, not as a slice: a
            gathered copy is contiguous, and multiplying a slice by a large vocabulary costs several times as much.
        rows, columns: int64 `[P]`, row and position among the kept ones of each place.
        places, answers, owners: int64 `[N]`, place, token id and pair of each answer token.
        branches: None if every row is plain text.
    """

    tokens: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    places: torch.Tensor
    answers: torch.Tensor
    owners: torch.Tensor
    branches: Branches | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A prompt, and behind it what different answers need of their tokens; with the pairs that each one serves."""

    prompt: Tokens
    answers: Mapping[Tokens, Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def tokens(self) -> Tokens:
        return self.prompt + tuple(chain.from_iterable(self.answers))

    @property
    def is_plain(self) -> bool:
        return sum(map(bool, self.answers)) < 2

    @property
    def positions(self) -> list[int]:
        start = len(self.prompt)
        return [*range(start), *(start + place for answer in self.answers for place in range(len(answer)))]

    @property
    def branches(self) -> list[int]:
        """Of every position, the number of its answer; 0 in the prompt."""
        return [0] * len(self.prompt) + [n for n, answer in enumerate(self.answers, 1) for _ in answer]


def make_batches(
    pairs: Sequence[Pair], *, batch_size: int, max_length: int, device: str, share_prompts: bool = False
) -> tuple[Batch, ...]:
    """Lay pairs out in batches, longest first; pairs that differ only in their last token share a row.

    Args:
        pairs: prompts and answers.
        batch_size: rows per batch.
        max_length: positions the model has; longer prompts lose their beginning.
        device: where the tensors go.
        share_prompts: also let different answers to one prompt share its row; see `keeps_branches_apart`.
    """
    rows: dict[Tokens, dict[Tokens, list[int]]] = {}
    for owner, (prompt, answer) in enumerate(pairs):
        text = (prompt + answer)[-(max_length + 1) : -1]
        split = len(text) - len(answer) + 1 if share_prompts else len(text)
        rows.setdefault(text[:split], {}).setdefault(text[split:], []).append(owner)
    ordered = [_Row(prompt=prompt, answers=answers) for prompt, answers in rows.items()]
    ordered.sort(key=lambda row: (-len(row), row.tokens))
    return tuple(_batch(ordered[at : at + batch_size], pairs, device) for at in range(0, len(ordered), batch_size))


def _batch(rows: Sequence[_Row], pairs: Sequence[Pair], device: str) -> Batch:
    import torch

    found = torch.tensor([*_places(rows, pairs)], device=device)
    distinct, places = torch.unique(found[:, :2], dim=0, return_inverse=True)
    row, position = distinct.unbind(1)
    keep, columns = torch.unique(position, return_inverse=True)
    return Batch(
        tokens=_padded([row.tokens for row in rows], 0).to(device),
        keep=keep,
        rows=row,
        columns=columns,
        places=places,
        answers=found[:, 2],
        owners=found[:, 3],
        branches=None if all(row.is_plain for row in rows) else _branches(rows, device),
    )


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    import torch

    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def _branches(rows: Sequence[_Row], device: str) -> Branches:

    own = _padded([row.branches for row in rows], -1)
    seeing, seen = own[:, :, None], own[:, None, :]
    visible = ((seen == 0) | (seen == seeing) | (seeing == -1)).tril()
    positions = _padded([row.positions for row in rows], 0)
    return Branches(positions=positions.to(device), visible=visible[:, None].to(device))


def _places(rows: Sequence[_Row], pairs: Sequence[Pair]) -> Iterator[tuple[int, int, int, int]]:
    """For each answer token: its row, the position that predicts it, its id, its pair."""
    for number, row in enumerate(rows):
        start = end = len(row.prompt)
        for branch, owners in row.answers.items():
            end += len(branch)
            for owner in owners:
                answer = pairs[owner][1]
                first = start + len(branch) - len(answer)  # in the row, if the branch stood right behind the prompt
                for place, token in enumerate(answer, first):
                    yield number, place if place < start else place - start + end - len(branch), token, owner


def keeps_branches_apart(model: Any) -> bool:
    """Whether different answers may share a prompt's row: no answer may change what the model makes of another.

    True of attention that takes a mask and positions as they are given; recurrent layers and other masks fail. A
    window, too, would be overridden by the mask.
    """
    import torch

    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None):
        return False
    one, other, text = (_Row(prompt=(1, 2), answers=dict.fromkeys(a, ())) for a in _PROBES)
    with torch.inference_mode():
        try:
            first, second, alone = (_probe(model, row)[:, -2:] for row in (one, other, text))
        except (TypeError, ValueError, RuntimeError):
            return False
    return torch.equal(first, second) and bool((first - alone).norm() < 0.05 * alone.norm())


_PROBES = (((3, 4), (5, 6)), ((7, 1), (5, 6)), ((5, 6),))
"""Answers: the second of the first two is the third."""


def _probe(model: Any, row: _Row) -> torch.Tensor:
    """Logits `[1, L, V]` of one row with its mask."""
    import torch

    branches = _branches([row], model.device)
    logits: torch.Tensor = model(
        input_ids=torch.tensor([row.tokens], device=model.device),
        position_ids=branches.positions,
        attention_mask=branches.visible,
        use_cache=False,
    ).logits.float()
    return logits


def log_likelihoods(model: Any, batches: Sequence[Batch], pairs: int) -> list[tuple[float, bool]]:
    """Score every pair.

    Args:
        model: a causal language model.
        batches: from `make_batches`.
        pairs: how many pairs they hold.

    Returns:
        For each pair the answer's log-likelihood in nats, and whether every answer token is the likeliest one.

    Raises:
        MergeError: a log-likelihood is NaN.
    """
    import torch

    total = torch.zeros(pairs, dtype=torch.float64, device=model.device)
    misses = torch.zeros(pairs, dtype=torch.int64, device=model.device)
    forward = _forward_of(model)
    with torch.inference_mode():
        for batch in batches:
            logits = forward(batch)[batch.rows, batch.columns].float()  # [P, V]
            chosen = logits[batch.places, batch.answers] - logits.logsumexp(1)[batch.places]
            total.index_add_(0, batch.owners, chosen.double())
            misses.index_add_(0, batch.owners, (logits.argmax(1)[batch.places] != batch.answers).long())
    scores = total.tolist()
    if any(map(math.isnan, scores)):
        raise MergeError("expected finite logits; got NaN: the merged weights overflow; narrow their search range")
    return [(score, missed == 0) for score, missed in zip(scores, misses.tolist(), strict=True)]


def _forward_of(model: Any) -> Callable[[Batch], torch.Tensor]:
    """A function that gives the logits `[B, K, V]` of the kept positions; the rest is not computed where possible."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(batch: Batch) -> torch.Tensor:
        inputs: dict[str, Any] = {"logits_to_keep": batch.keep} if keeps else {}
        if batch.branches is not None:
            inputs |= {"position_ids": batch.branches.positions, "attention_mask": batch.branches.visible}
        logits: torch.Tensor = model(input_ids=batch.tokens, use_cache=False, **inputs).logits
        return logits if keeps else logits[:, batch.keep]

    return forward
