"""From the records of a run to its course: progress, generations, work, attempts, cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from evomerge.outcome import Responses
from evomerge.pareto import hypervolume, nondominated
from evomerge.reports.course import Curve, Generation, Try, Utilization
from evomerge.reports.summary import Entry
from evomerge.reports.words import one_line
from evomerge.runs import Attempt, Candidate, Result

__all__ = ["corner", "curve", "generations", "items_of", "tries", "utilization"]

_MARGIN = 0.1
"""The hypervolume's reference lies this share of the anchors' range behind the worst anchor."""

_STEPS = 120
"""Steps that a run's time is cut into."""

Costs = Mapping[int, Sequence[float]]
"""By candidate, one cost per objective, lower is better."""


def corner(anchors: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Costs a little worse than all of the anchors'; empty without any."""
    return tuple(_behind(column) for column in zip(*anchors, strict=True))


def _behind(costs: Sequence[float]) -> float:
    """A cost worse than all of these."""
    worst, best = max(costs), min(costs)
    return worst + _MARGIN * (worst - best or abs(worst) or 1.0)


def items_of(responses: Iterable[Responses]) -> int:
    """How many items were asked; metrics of one task share them."""
    return sum(len(items) for items in {response.task: response.items for response in responses}.values())


def curve(costs: Costs, results: Iterable[Result], reference: Sequence[float]) -> Curve:
    """How the hypervolume grew, candidate by candidate, each when its last item was answered.

    Args:
        costs: of the candidates that count.
        results: of the search, in order of completion.
        reference: costs that hypervolumes are measured from.
    """
    totals = _totals(results)
    order = sorted(costs, key=lambda candidate: totals[candidate])
    front: list[Sequence[float]] = []
    volumes: list[float] = []
    for candidate in order:
        rivals = [*front, costs[candidate]]
        kept = nondominated(rivals)
        if kept and kept[-1] == len(front):  # the newcomer stays
            front = [rivals[index] for index in kept]
            volumes.append(hypervolume(front, reference))
        else:
            volumes.append(volumes[-1])
    items, tokens, seconds = zip(*(totals[candidate][1:] for candidate in order), strict=True)
    return Curve(
        hypervolume=tuple(volumes),
        spent={
            "evaluations": tuple(range(1, len(order) + 1)),
            "items": items,
            **({"tokens": tokens} if tokens[-1] else {}),
            "worker hours": tuple(second / 3600 for second in seconds),
        },
    )


def _totals(results: Iterable[Result]) -> dict[int, tuple[int, int, int, float]]:
    """By candidate: when it was scored last, and the items, tokens and seconds that the run had taken by then."""
    items, tokens, seconds = 0, 0, 0.0
    found = {}
    for result in results:
        if result.cached_from is None:
            items += items_of(result.responses)
            tokens += sum(result.tokens.values())
            seconds += sum(result.seconds.values())
        found[result.candidate] = (result.seq, items, tokens, seconds)
    return found


def generations(
    candidates: Iterable[Candidate],
    entries: Mapping[int, Entry],
    front: Sequence[int],
    failed: Iterable[int],
    states: Mapping[str, Mapping[str, float]],
) -> tuple[Generation, ...]:
    """What the algorithm did, generation by generation; anchors and answers are not its own.

    Args:
        candidates: all of them.
        entries: by candidate, with its estimate.
        front: estimated.
        failed: candidates without a score.
        states: what the algorithm told of itself, by generation.
    """
    lost, best = set(failed), set(front)
    grouped: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.kind == "search":
            grouped[candidate.generation].append(candidate)
    return tuple(
        replace(_generation(number, members, entries, best, lost), state=states.get(str(number), {}))
        for number, members in sorted(grouped.items())
    )


def _generation(
    number: int, members: Sequence[Candidate], entries: Mapping[int, Entry], front: set[int], failed: set[int]
) -> Generation:
    means = [scores.mean.mean for member in members if (scores := entries[member.id].estimated) is not None]
    genes = np.array([member.genome for member in members if member.genome])
    return Generation(
        number=number,
        candidates=len(members),
        failed=sum(member.id in failed for member in members),
        best=max(means, default=None),
        median=median(means) if means else None,
        front=sum(member.id in front for member in members),
        spread=float(genes.std(axis=0).mean()) if genes.size else 0.0,
    )


def tries(attempts: Iterable[Attempt]) -> tuple[Try, ...]:
    """Attempts that brought no score, in the order of their start."""
    return tuple(
        Try(
            candidate=attempt.candidate,
            phase=attempt.phase,
            number=attempt.number,
            worker=one_line(attempt.worker),
            status=attempt.status,
            stage=attempt.stage,
            reason=one_line(attempt.reason),
            seconds=None if attempt.ended_at is None else attempt.ended_at - attempt.started_at,
        )
        for attempt in sorted(attempts, key=lambda attempt: attempt.started_at)
        if attempt.status in {"failed", "lost"}
    )


def utilization(attempts: Iterable[Attempt]) -> Utilization | None:
    """Who worked when, by the attempts that a worker brought to an end; None before the first.

    A worker does one job at a time: a job that was handed out before the one before it ended was waiting until then.
    """
    spans = {worker: [*_busy(each)] for worker, each in sorted(_by_worker(attempts).items())}
    ends = [end for each in spans.values() for _, end in each]
    if not ends:
        return None
    start = min(begin for each in spans.values() for begin, _ in each)
    step = max(max(ends) - start, 1e-3) / _STEPS
    shares = {one_line(worker): _shares(np.array(each) - start, step) for worker, each in spans.items()}
    return Utilization(start=start, step=step, workers=shares)


def _by_worker(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        if attempt.worker and attempt.ended_at is not None and attempt.status != "lost":
            found[attempt.worker].append(attempt)
    return found


def _busy(attempts: Iterable[Attempt]) -> Iterator[tuple[float, float]]:
    """Begin and end of each job of one worker, in order; they do not overlap."""
    free = 0.0
    for attempt in sorted(attempts, key=lambda attempt: attempt.ended_at or 0.0):
        end = attempt.ended_at or 0.0
        yield max(attempt.started_at, free), end
        free = end


def _shares(spans: np.ndarray, step: float) -> tuple[float, ...]:
    """Share of each step that is covered by spans `[n, 2]`, in seconds from the start."""
    edges = np.arange(_STEPS + 1) * step
    covered = np.clip(edges[:, None], spans[:, 0], spans[:, 1]) - spans[:, 0]
    return tuple(round(float(share), 4) for share in np.diff(covered.sum(axis=1)) / step)
