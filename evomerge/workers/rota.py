"""Who does what next: jobs, and shards of jobs where workers would fall idle. Pure; knows nothing of processes or time.

A job is cut the same way whoever does it, so that its answers do not depend on how many workers share it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from evomerge.outcome import Failed, ItemSet, Job, Outcome, Scored, together

__all__ = ["Rota", "Round", "Share", "cut", "merged"]


def cut(items: ItemSet, size: int | None) -> tuple[ItemSet, ...]:
    """Shards of nearly equal size, in the order of tasks and items; a shard is not cut any further.

    Args:
        items: what is cut.
        size: most items of a shard; None cuts nothing.
    """
    if size is None or len(items) <= size:
        return (items,)
    places = [(task, item) for task, ids in items.tasks for item in ids]
    count = -(-len(places) // size)
    edges = [len(places) * number // count for number in range(count + 1)]
    return tuple(_items(places[begin:end]) for begin, end in pairwise(edges))


def _items(places: Sequence[tuple[str, int]]) -> ItemSet:
    tasks: dict[str, list[int]] = {}
    for task, item in places:
        tasks.setdefault(task, []).append(item)
    return ItemSet.of({task: tuple(ids) for task, ids in tasks.items()})


def merged(shards: Sequence[Scored]) -> Scored:
    """The shards of a job as one outcome; seconds and tokens add up."""
    if len(shards) == 1:
        return shards[0]
    seconds: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for shard in shards:
        seconds.update(shard.seconds)
        tokens.update(shard.tokens)
    written = [shard.rewritten for shard in shards if shard.rewritten is not None]
    return replace(
        shards[0],
        responses=together(shard.responses for shard in shards),
        seconds=dict(seconds),
        tokens=dict(tokens),
        rewritten=max(written, default=None),
    )


@dataclass(slots=True, eq=False)
class Round:
    """A job on its way.

    Attributes:
        left: shards that nobody is at.
        away: how many are with workers.
        answers: of the shards that were done.
        over: it was answered, or it failed; what still comes in of it does not count.
    """

    job: Job
    left: deque[ItemSet]
    away: int = 0
    answers: list[Scored] = field(default_factory=list)
    over: bool = False

    @property
    def begun(self) -> bool:
        """Whether anybody is, or was, at it."""
        return bool(self.away or self.answers)


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker gets: a round's job, with the items of one shard."""

    round: Round
    job: Job


class Rota:
    """Hands out shares: of the candidate that a worker holds already, of a new one, and last of what others are at.

    So a candidate is made on a second worker only when there is nothing else to do, and not before its first shard was
    answered: what cannot be made, or is not worth it, fails in one place.

    Args:
        shard: most items of a share; None hands out whole jobs.
    """

    def __init__(self, shard: int | None) -> None:
        self._shard = shard
        self._new: deque[Round] = deque()
        self._shared: dict[Round, None] = {}  # those that others may help with
        self._waiting = 0

    def __len__(self) -> int:
        """Shares that nobody is at."""
        return self._waiting

    def add(self, job: Job) -> None:
        """One more job; jobs are begun in the order in which they come."""
        shards = cut(job.items, self._shard)
        self._new.append(Round(job, deque(shards)))
        self._waiting += len(shards)

    def next(self, held: Round | None) -> Share | None:
        """The next share of a worker; None if there is nothing for it now.

        Args:
            held: the round of its last share.
        """
        if held is not None and held.left and held.begun:
            return self._take(held)
        if self._new:
            return self._take(self._new.popleft())
        return self._take(max(self._shared, key=_rest)) if self._shared else None

    def _take(self, round_: Round) -> Share:
        screened = round_.job.screened and not round_.begun
        job = replace(round_.job, items=round_.left.popleft(), screened=screened)
        round_.away += 1
        self._waiting -= 1
        self._offer(round_)
        return Share(round_, job)

    def _offer(self, round_: Round) -> None:
        if round_.left and round_.answers:
            self._shared[round_] = None
        else:
            self._shared.pop(round_, None)

    def give_back(self, share: Share) -> None:
        """A share that was handed out and not begun; it is among the next that are handed out."""
        round_ = share.round
        round_.away -= 1
        if round_.over:
            return
        round_.left.appendleft(share.job.items)
        self._waiting += 1
        if round_.begun:
            self._offer(round_)
        else:
            self._new.appendleft(round_)

    def done(self, share: Share, outcome: Outcome) -> Outcome | None:
        """A share came back.

        Returns:
            What became of its job, once that is known, and only once.
        """
        round_ = share.round
        round_.away -= 1
        if round_.over:
            return None
        if isinstance(outcome, Failed):
            self._end(round_)
            return outcome
        round_.answers.append(outcome)
        self._offer(round_)
        if round_.left or round_.away:
            return None
        self._end(round_)
        return merged(round_.answers)

    def _end(self, round_: Round) -> None:
        round_.over = True
        self._waiting -= len(round_.left)
        round_.left.clear()
        self._offer(round_)

    def clear(self) -> None:
        """Forgets all jobs."""
        self._new.clear()
        self._shared.clear()
        self._waiting = 0


def _rest(round_: Round) -> int:
    return len(round_.left) * round_.job.work
