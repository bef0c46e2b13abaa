"""Text that a model goes on with: prompts encoded once, batches by length, each row stopped on its own.

lm-eval stops a batch when all rows have met the same stop string, and else at the cap; here a row ends where it meets
any of them. The texts are the same. Knows nothing of tasks.

Legend: B rows of a batch, L their padded length.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import TaskError

if TYPE_CHECKING:
    import torch

    from evomerge.engines.base import TextRequest

__all__ = ["Prompts", "Rules", "Written", "cut", "encoded", "generate", "make_prompts", "rules_of"]

_LOOK_BACK = 2
"""Tokens, beside those of a stop string itself, in which it is looked for: text may be cut into tokens otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How texts are written.

    Attributes:
        stops: strings at which a text ends; that of the end-of-text token among them.
        limit: most tokens of a text.
        settings: all others, by the names of transformers' `generate`, for example `do_sample`.
    """

    stops: tuple[str, ...]
    limit: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompts:
    """Prompts that are continued together.

    Attributes:
        tokens, mask: int64 `[B, L]`, padded on the left.
        owners: which request each row is.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    owners: tuple[int, ...]
    rules: Rules


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """One text, cut at its stop string; and the tokens that the model wrote until its end, those of the stop too."""

    text: str
    tokens: int


def make_prompts(lm: Any, requests: Sequence[TextRequest]) -> tuple[Prompts, ...]:
    """Lay requests out in batches of equal settings, longest first.

    Args:
        lm: lm-eval's view of the model, for its tokenizer, batch size and limits.
        requests: prompts, and lm-eval's `generation_kwargs`.

    Raises:
        TaskError: a cap on tokens that leaves no room for a prompt.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for owner, (_, settings) in enumerate(requests):
        alike[json.dumps(settings, sort_keys=True, default=str)].append(owner)
    return tuple(batch for owners in alike.values() for batch in _batches(lm, requests, owners))


def rules_of(lm: Any, settings: Mapping[str, Any]) -> Rules:
    """What lm-eval's `generation_kwargs` come to.

    Args:
        lm: lm-eval's view of the model, for its tokenizer and limits.
        settings: `generation_kwargs` of one request.

    Raises:
        TaskError: a cap on tokens that leaves no room for a prompt.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    known: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    stops = handle_stop_sequences(known.pop("until", None), eos)
    limit = known.pop("max_gen_toks")
    if not 0 < limit < lm.max_length:
        raise TaskError(
            f"generation_kwargs: expected max_gen_toks from 1 to {lm.max_length - 1}, the model's positions; "
            f"got {limit}; change it in the task file"
        )
    if not known.get("do_sample"):
        known = {**known, "do_sample": False}
        known.pop("temperature", None)
    return Rules(stops=tuple(stop for stop in stops if stop), limit=limit, settings=known)


def _batches(lm: Any, requests: Sequence[TextRequest], owners: Sequence[int]) -> Iterator[Prompts]:
    rules = rules_of(lm, requests[owners[0]][1])
    ordered = sorted(owners, key=lambda owner: (-len(lm.tok_encode(requests[owner][0])), requests[owner][0], owner))
    for start in range(0, len(ordered), lm.batch_size):
        rows = tuple(ordered[start : start + lm.batch_size])
        texts = [requests[owner][0] for owner in rows]
        tokens, mask = encoded(lm, texts, rules)
        yield Prompts(tokens=tokens.to(lm.device), mask=mask.to(lm.device), owners=rows, rules=rules)


def encoded(lm: Any, texts: list[str], rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask `[B, L]` of prompts, padded on the left; long ones lose their beginning."""
    room = lm.max_length - rules.limit
    tokens, mask = lm.tok_batch_encode(texts, left_truncate_len=room, truncation=lm.truncation)
    return tokens, mask


def generate(lm: Any, batches: Sequence[Prompts], count: int) -> list[Written]:
    """Continue every prompt.

    Args:
        lm: lm-eval's view of the model.
        batches: from `make_prompts`.
        count: how many requests they hold.
    """
    import torch

    written: list[Written | None] = [None] * count
    for batch in batches:
        ends = _Ends(lm, batch)
        with torch.inference_mode():
            rows = lm.model.generate(
                input_ids=batch.tokens,
                attention_mask=batch.mask,
                max_new_tokens=batch.rules.limit,
                stopping_criteria=[ends],
                pad_token_id=lm.tokenizer.pad_token_id,
                use_cache=True,
                **batch.rules.settings,
            )
        new = rows[:, batch.tokens.shape[1] :].tolist()
        for owner, tokens, length in zip(batch.owners, new, ends.lengths.tolist(), strict=True):
            written[owner] = Written(text=cut(lm.tok_decode(tokens[:length]), batch.rules.stops), tokens=length)
    return [text for text in written if text is not None]


def cut(text: str, stops: Sequence[str]) -> str:
    """What stands before the first of some strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


class _Ends:
    """Tells transformers which rows of a batch have ended, and counts their tokens.

    Attributes:
        lengths: int64 `[B]`, tokens of each row until its end.
    """

    def __init__(self, lm: Any, batch: Prompts) -> None:
        import torch

        self.lengths = torch.zeros(len(batch.owners), dtype=torch.int64, device=batch.tokens.device)
        self._done = torch.zeros_like(self.lengths, dtype=torch.bool)
        self._decode = lm.tokenizer.batch_decode
        self._stops = batch.rules.stops
        self._start = batch.tokens.shape[1]
        lengths = [len(lm.tokenizer.encode(stop, add_special_tokens=False)) for stop in batch.rules.stops]
        self._window = max(lengths, default=0) + _LOOK_BACK
        ends = lm.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [lm.eot_token_id if ends is None else ends]
        self._ends = torch.tensor(ends, device=batch.tokens.device)

    def __call__(self, tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        import torch

        self.lengths += ~self._done
        tails = self._decode(tokens[:, self._start :][:, -self._window :])
        met = [any(stop in tail for stop in self._stops) for tail in tails]
        self._done = self._done | torch.tensor(met, device=tokens.device) | torch.isin(tokens[:, -1], self._ends)
        return self._done
