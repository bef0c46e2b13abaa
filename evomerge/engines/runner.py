"""Scores a live model on chosen items of lm-eval tasks, and of scorers.

Everything that does not depend on the weights is done once: tasks, worked examples, prompts and tokens. A candidate
then costs its forward passes and little else. Knows nothing of recipes, directions of objectives or statistics.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from evomerge.config.faults import near
from evomerge.engines.items import Item, build_items, digest_of, prompt_hash, question
from evomerge.engines.lm_tasks import TOKENS, BenchTask, load_tasks
from evomerge.engines.scorers import load_scorers, responses_of
from evomerge.errors import TaskError
from evomerge.fitness import duplicates_of
from evomerge.outcome import ItemSet, Responses
from evomerge.rng import derive_seed

if TYPE_CHECKING:
    from evomerge.config import FitnessConfig
    from evomerge.engines.base import Backend, Engine
    from evomerge.engines.generation import Written

__all__ = ["EvalRunner", "check_items", "number"]


_WRITING = "generate_until"
"""lm-eval's name for requests that a model answers with a text."""

_KEPT = 4096
"""Items whose requests stay laid out, beside those of the last set: a candidate may come in shards."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Prepared:
    """The requests of one item set, laid out for the model.

    Attributes:
        chosen: task name -> its items, in the order of their ids.
        scored, score: log-likelihood requests, and what answers them.
        written, write: requests for text, and what answers them.
        others: all other requests, by lm-eval request type, which `lm` answers.
    """

    chosen: Mapping[str, Sequence[Item]]
    scored: Sequence[Any]
    score: Callable[[], Sequence[tuple[float, bool]]]
    written: Sequence[Any]
    write: Callable[[], Sequence[Written]]
    others: Mapping[str, Sequence[Any]]
    lm: Any


@final
class EvalRunner:
    """Scores the engine's live model through requests that were built once.

    Log-likelihood requests (lm-eval's `loglikelihood` and `multiple_choice` tasks) and requests for text
    (`generate_until`) are laid out once; all other kinds go through lm-eval.

    Args:
        engine: holds the live model.
        fitness: tasks, scorers and objectives.
        seed: run seed; picks worked examples and seeds any sampling, equally for every candidate.

    Attributes:
        tokens: that the last `score` read and wrote, by task; those of a function scorer are not known.

    Raises:
        TaskError: every fault of every objective, together; else every fault of every scorer.
    """

    def __init__(self, engine: Engine, fitness: FitnessConfig, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._tasks = {task.name: task for task in load_tasks(fitness, seed)}
        self._scorers = load_scorers(engine, fitness)
        self._backend: Backend | None = None  # there may be scorers alone
        self._items: dict[str, tuple[Item, ...]] = {}
        if self._tasks:
            self._backend = engine.backend(chat_template=fitness.chat_template)
            for name, task in self._tasks.items():
                self._items[name] = build_items(task, self._backend.lm, chat_template=fitness.chat_template)
                first = _requests_for_text(self._items[name][:1])
                self._backend.writing([request.args for request in first])  # refuses bad settings
        self._prepared: dict[ItemSet, _Prepared] = {}  # the latest last
        self.tokens: Mapping[str, int] = {}

    def sizes(self) -> dict[str, int]:
        """Number of items of every task."""
        own = {name: scorer.size for name, scorer in self._scorers.items()}
        return {name: task.size for name, task in self._tasks.items()} | own

    def digests(self) -> dict[str, str]:
        """Content digest of every task: its documents and the prompts made of them, few-shot examples included."""
        own = {name: scorer.digest for name, scorer in self._scorers.items()}
        return {name: digest_of(items) for name, items in self._items.items()} | own

    def duplicates(self) -> dict[str, tuple[int, ...]]:
        """Ids of the items that repeat an earlier one, of every task that has such items."""
        own = {name: scorer.duplicates for name, scorer in self._scorers.items()}
        found = {name: duplicates_of(map(question, items)) for name, items in self._items.items()} | own
        return {name: ids for name, ids in found.items() if ids}

    def prompt_hashes(self, task: str) -> tuple[str, ...]:
        """Hash of the prompt of every item; none for a scorer."""
        return tuple(map(prompt_hash, self._items.get(task, ())))

    def score(self, items: ItemSet) -> tuple[tuple[Responses, ...], dict[str, float]]:
        """Score the live model.

        Args:
            items: chosen item ids; an id counts the task's documents from 0.

        Returns:
            Per-item outcomes, one record per (task, metric), sorted; and wall seconds: `forward` inside the model's
            forward passes, `evaluate` for everything else.

        Raises:
            TaskError: an item that does not exist, a scorer that fails, or a metric value that is no finite number.
            MergeError: the model computes NaN or infinity.
        """
        started, watch = time.perf_counter(), self._engine.watch
        check_items(items, self.sizes())
        watch.restart()
        own = {name: self._ask(name, ids) for name, ids in items.tasks if name in self._scorers}
        bench = ItemSet.of({name: ids for name, ids in items.tasks if name in self._tasks})
        prepared = self._prepare(bench)
        tokens = self._answer(prepared)
        watch.check_finite()
        blocks = {name: len(ids) * self._scorers[name].block for name, ids in items.tasks if name in own}
        self.tokens = {name: _taken(chosen, tokens) for name, chosen in prepared.chosen.items()} | {
            name: read for name, read in blocks.items() if read
        }
        responses = tuple(
            response
            for name, ids in items.tasks
            for response in (
                responses_of(name, self._scorers[name], ids, own[name])
                if name in own
                else _responses(self._tasks[name], ids, prepared.chosen[name], tokens)
            )
        )
        return responses, {"forward": watch.seconds, "evaluate": time.perf_counter() - started - watch.seconds}

    def _ask(self, name: str, items: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """What a scorer says of some items."""
        with self._seeded(name):
            return self._scorers[name].score(items)

    def _prepare(self, items: ItemSet) -> _Prepared:
        """Lay the requests out; all candidates of a generation share their items, so the last layouts are kept."""
        prepared = self._prepared.pop(items, None) or self._laid_out(items)
        self._prepared[items] = prepared
        while len(self._prepared) > 1 and sum(map(len, self._prepared)) > _KEPT:
            del self._prepared[next(iter(self._prepared))]
        return prepared

    def _laid_out(self, items: ItemSet) -> _Prepared:
        chosen = {name: [self._items[name][i] for i in ids] for name, ids in items.tasks}
        every = [item for selected in chosen.values() for item in selected]
        written = _requests_for_text(every)
        others: dict[str, list[Any]] = defaultdict(list)
        for request in (request for item in every for request in item.requests):
            if request.request_type not in ("loglikelihood", _WRITING):
                others[request.request_type] += [request] * request.repeats
        backend = self._backend
        return _Prepared(
            chosen=chosen,
            scored=[request for item in every if item.pairs for request in item.requests],
            score=backend.scoring([pair for item in every for pair in item.pairs]) if backend else list,
            written=written,
            write=backend.writing([request.args for request in written]) if backend else list,
            others=others,
            lm=backend and backend.lm,
        )

    def _answer(self, prepared: _Prepared) -> dict[int, int]:
        """Put the model's answers into the requests.

        Returns:
            How many tokens were written for a request, by its identity.
        """
        for request, answer in zip(prepared.scored, prepared.score(), strict=True):
            request.resps = [answer] * request.repeats
        for kind, requests in prepared.others.items():
            with self._seeded(kind):
                _give(requests, getattr(prepared.lm, kind)(requests, disable_tqdm=True))
        with self._seeded(_WRITING):
            texts = prepared.write()
        _give(prepared.written, [text.text for text in texts])
        tokens: dict[int, int] = defaultdict(int)
        for request, text in zip(prepared.written, texts, strict=True):
            tokens[id(request)] += text.tokens
        return tokens

    @contextmanager
    def _seeded(self, kind: str) -> Iterator[None]:
        """The same random numbers for every candidate."""
        import torch

        with torch.random.fork_rng(devices=_cuda_devices(self._engine.device)):
            torch.manual_seed(derive_seed(self._seed, "generate", kind))
            yield


def _requests_for_text(items: Sequence[Item]) -> list[Any]:
    """Each request as often as it is repeated."""
    requests = (request for item in items for request in item.requests if request.request_type == _WRITING)
    return [request for request in requests for _ in range(request.repeats)]


def _give(requests: Sequence[Any], answers: Sequence[Any]) -> None:
    """Each request all of its answers; one that is repeated stands there several times."""
    for request in requests:
        request.resps = []
    for request, answer in zip(requests, answers, strict=True):
        request.resps.append(answer)


def _cuda_devices(device: str) -> list[str]:
    return [device] if device.startswith("cuda") else []


def check_items(items: ItemSet, sizes: Mapping[str, int]) -> None:
    """Whether the tasks hold such items.

    Raises:
        TaskError: an unknown task or an item id out of range.
    """
    for name, ids in items.tasks:
        if name not in sizes:
            raise TaskError(f"task {name!r}: unknown{near(name, sizes)}; this fitness uses {sorted(sizes)}")
        if ids[-1] >= sizes[name]:
            raise TaskError(f"task {name!r}: expected item ids from 0 to {sizes[name] - 1}; got {ids[-1]}")


def _responses(
    task: BenchTask, ids: Sequence[int], items: Sequence[Item], tokens: Mapping[int, int]
) -> Iterator[Responses]:
    """Filter the answers and let the task judge them; `tokens` were written, by the request's identity."""
    ensembles = {ensemble.name: ensemble for ensemble in task.task._filters}
    judged = {}
    for name in set(task.filters.values()):
        ensembles[name].apply([request for item in items for request in item.requests])
        judged[name] = [
            task.task.process_results(item.doc, [request.filtered_resps[name] for request in item.requests])
            | {TOKENS: _written(item, tokens)}
            for item in items
        ]
    for metric, name in task.filters.items():
        values = tuple(number(task.name, metric, i, verdict) for i, verdict in zip(ids, judged[name], strict=True))
        yield Responses(task=task.name, metric=metric, items=tuple(ids), values=values)


def _taken(items: Sequence[Item], tokens: Mapping[int, int]) -> int:
    """Tokens that were read and written for some items."""
    return sum(item.tokens + _written(item, tokens) for item in items)


def _written(item: Item, tokens: Mapping[int, int]) -> int:
    return sum(tokens.get(id(request), 0) for request in item.requests)


def number(task: str, metric: str, item: int, verdict: Mapping[str, Any]) -> float:
    """One metric of one item.

    Raises:
        TaskError: it is missing, not a number, NaN or infinite.
    """
    if metric not in verdict:
        raise TaskError(f"task {task!r}, item {item}: expected metric {metric!r}; got {sorted(verdict)}")
    try:
        value = float(verdict[metric])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise TaskError(
            f"task {task!r}, item {item}: expected {metric!r} to be a finite number; got {verdict[metric]!r}"
        )
    return value
