"""Items of lm-eval tasks, ready to be scored: their requests and tokens, built once for all candidates.

Knows lm-eval's requests and how they become tokens; knows nothing of a model's weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.engines.lm_tasks import BenchTask
from evomerge.engines.loglikelihood import Pair
from evomerge.errors import TaskError

__all__ = ["Item", "build_items", "digest_of", "prompt_hash", "question"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item, ready to be scored.

    Attributes:
        requests: lm-eval `Instance`s, in the order of their `idx`.
        pairs: tokens of each request, if they are log-likelihood requests.
        tokens: what it takes to ask: tokens of its prompts, each text once, and of the answers that are scored.
    """

    doc: Any
    requests: tuple[Any, ...]
    pairs: tuple[Pair, ...]
    tokens: int


def digest_of(items: Sequence[Item]) -> str:
    """32 hexadecimal digits that change with any document, prompt or answer."""
    content = [[item.doc, [request.args for request in item.requests]] for item in items]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def question(item: Item) -> str:
    """All that a model is asked, settings included; items of one question get one answer, whatever their documents."""
    return json.dumps([request.args for request in item.requests], sort_keys=True, default=str)


def prompt_hash(item: Item) -> str:
    """The hash of an item's first prompt, as lm-eval's sample logs carry it."""
    return hashlib.sha256(item.requests[0].args[0].encode()).hexdigest()


def build_items(task: BenchTask, lm: Any, *, chat_template: bool) -> tuple[Item, ...]:
    """Every item of a task: prompts, worked examples, tokens."""
    # samples and cache_requests stay off: together they mislabel items (lm-eval issue 4084)
    task.task.build_all_requests(
        apply_chat_template=chat_template, chat_template=lm.apply_chat_template if chat_template else None
    )
    requests = defaultdict(list)
    for request in task.task.instances:
        requests[request.doc_id].append(request)
    items = []
    for item in range(task.size):
        mine = tuple(sorted(requests[item], key=lambda request: request.idx))
        pairs = tuple(_pair(lm, request) for request in mine if request.request_type == "loglikelihood")
        items.append(Item(doc=mine[0].doc, requests=mine, pairs=pairs, tokens=_tokens(lm, mine, pairs)))
    _check_lengths(task.name, items, lm.max_length)
    return tuple(items)


def _tokens(lm: Any, requests: Sequence[Any], pairs: Sequence[Pair]) -> int:
    """Tokens that are read to ask some requests; the engine may share more than equal prompts, or less."""
    texts = {request.args[0] for request in requests if request.request_type != "loglikelihood"}
    read = sum(len(prompt) for prompt in {prompt for prompt, _ in pairs}) + sum(len(answer) for _, answer in pairs)
    return read + sum(len(lm.tok_encode(text)) for text in texts)


def _pair(lm: Any, request: Any) -> Pair:
    """Tokens of a log-likelihood request, split as lm-eval splits them (`TemplateLM.loglikelihood`)."""
    prompt, answer = request.args
    if prompt:
        prompt_ids, answer_ids = lm._encode_pair(prompt, answer)
    else:
        prompt_ids, answer_ids = [lm.prefix_token_id], lm.tok_encode(answer, add_special_tokens=False)
        if answer_ids[:1] == prompt_ids:
            answer_ids = answer_ids[1:]
    return tuple(prompt_ids), tuple(answer_ids)


def _check_lengths(name: str, items: Sequence[Item], max_length: int) -> None:
    """Refuse answers that cannot be scored; warn of prompts that lose their beginning."""
    truncated = 0
    for number_, item in enumerate(items):
        for prompt, answer in item.pairs:
            if not prompt or not 0 < len(answer) <= max_length:
                raise TaskError(
                    f"task {name!r}, item {number_}: expected a prompt and an answer of 1 to {max_length} tokens; got "
                    f"{len(prompt)} and {len(answer)}; mend or remove the item"
                )
            truncated += len(prompt) + len(answer) > max_length + 1
    if truncated:
        _log.warning("task %r: %d requests exceed %d tokens and lose their beginning", name, truncated, max_length)
