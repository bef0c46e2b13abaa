"""From a run folder to a `Summary`. Reads, estimates and compares; writes nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.config import Experiment
from evomerge.errors import TaskError
from evomerge.fitness import Estimate, Told, broken, confirm_front, mean_estimate, scores
from evomerge.fitness.estimate import weights
from evomerge.pareto import hypervolume, knee, nondominated
from evomerge.reports.summary import (
    Confirmation,
    Cost,
    Entry,
    Failure,
    Gain,
    History,
    Measure,
    Objective,
    Scores,
    Summary,
)
from evomerge.reports.words import audit_words, describe, one_line
from evomerge.runs import holder

if TYPE_CHECKING:
    from evomerge.config import ObjectiveConfig
    from evomerge.outcome import Responses
    from evomerge.runs import Candidate, RunStore

__all__ = ["summarize"]

_Answers = Mapping[int, tuple["Responses", ...]]
"""What candidates answered in one phase."""

_MARGIN = 0.1
"""The hypervolume's reference lies this share of the anchors' range behind the worst anchor."""


def summarize(store: RunStore) -> Summary:
    """What the run amounts to so far.

    Nothing is claimed for a run that has not finished: its summary holds estimates and no confirmation. Texts that came
    from outside (model names, reasons of failures) are put on one line and freed of control characters.

    Raises:
        StoreError: the run folder cannot be read.
        TaskError: results that do not belong to the objectives.
    """
    experiment = Experiment.model_validate(store.experiment)
    objectives = tuple(_objective(o) for o in experiment.fitness.objectives)
    searched, confirmed = store.responses("search"), store.responses("confirm")
    entries = _entries(store.candidates(), searched, store.estimates(), confirmed, experiment)
    costs = {
        candidate: [o.cost(m.mean) for o, m in zip(objectives, estimated.each, strict=True)]
        for candidate in _eligible(searched, entries)
        if (estimated := entries[candidate].estimated) is not None
    }
    front = tuple(sorted(list(costs)[index] for index in nondominated([*costs.values()])))
    finished = store.meta("state") == "finished"
    return Summary(
        name=experiment.name,
        folder=str(store.folder),
        state=_state(store),
        created_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(store.manifest["created_at"])),
        seed=experiment.seed,
        level=experiment.fitness.confirm.level,
        objectives=objectives,
        entries=entries,
        front=front,
        knee=list(costs)[knee([*costs.values()])] if costs else None,
        best={o.name: min(costs, key=lambda c: costs[c][k]) for k, o in enumerate(objectives)} if costs else {},
        confirmation=_confirmation(entries, confirmed, experiment) if finished else None,
        history=_history(entries, costs, objectives),
        failures=tuple(
            Failure(candidate=f.candidate, phase=f.phase, stage=f.stage, reason=one_line(f.reason))
            for f in store.failures()
        ),
        cost=_cost(store, experiment),
        versions={**store.manifest["versions"], **_noted(store, "versions")},
        experiment=store.experiment,
        warnings=tuple(
            one_line(text)
            for text in (*json.loads(store.meta("warnings") or "[]"), *_unconfirmed(entries, experiment, finished))
        ),
    )


def _unconfirmed(entries: Mapping[int, Entry], experiment: Experiment, finished: bool) -> Iterator[str]:
    """Constraints that the confirmation could not tell."""
    missing = {entry.name for entry in entries.values() if entry.kind == "anchor" and entry.confirmed is None}
    for constraint in experiment.fitness.constraints if finished else ():
        if constraint.relative_to is not None and one_line(constraint.relative_to) in missing:
            yield (
                f"the constraint {constraint.name!r} is not confirmed, because {constraint.relative_to} failed on the "
                "confirmation items"
            )


def _noted(store: RunStore, key: str) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads(store.meta(key) or "{}")
    return noted


def _state(store: RunStore) -> str:
    """What the run itself noted, unless its driver is gone without a word."""
    state = store.meta("state") or "stopped"
    return "stopped" if state == "running" and holder(store.folder) is None else state


def _objective(config: ObjectiveConfig) -> Objective:
    return Objective(
        name=one_line(config.name),
        task=one_line(config.task),
        metric=one_line(config.metric),
        goal=config.goal,
        weight=config.weight,
    )


def _entries(
    candidates: Sequence[Candidate],
    searched: _Answers,
    believed: Mapping[int, Mapping[str, Any]],
    confirmed: _Answers,
    experiment: Experiment,
) -> dict[int, Entry]:
    estimates = {candidate: _scores(responses, experiment) for candidate, responses in searched.items()}
    estimates |= {candidate: _told(Told(**told), experiment) for candidate, told in believed.items()}
    confirmations = {candidate: _scores(responses, experiment) for candidate, responses in confirmed.items()}
    faults = _broken(candidates, {} if believed else searched, confirmed, experiment)
    limits = {
        number: f"constraints by {told['violation']:.3f}" for number, told in believed.items() if told["violation"]
    }
    faults = {number: (text,) for number, text in limits.items()} | faults
    return {
        candidate.id: Entry(
            id=candidate.id,
            name=one_line(candidate.label) or f"#{candidate.id}",
            kind=candidate.kind,
            generation=candidate.generation,
            recipe=candidate.recipe,
            description=one_line(describe(candidate.recipe)),
            estimated=estimates.get(candidate.id),
            confirmed=confirmations.get(candidate.id),
            broken=faults.get(candidate.id, ()),
        )
        for candidate in candidates
    }


def _eligible(answers: _Answers, entries: Mapping[int, Entry]) -> Iterable[int]:
    """Candidates that break no constraint; all of them if each breaks one."""
    return [candidate for candidate in answers if not entries[candidate].broken] or answers


def _broken(
    candidates: Iterable[Candidate], searched: _Answers, confirmed: _Answers, experiment: Experiment
) -> dict[int, tuple[str, ...]]:
    """The constraints that each candidate breaks, by what it answered last."""
    if not experiment.fitness.constraints:
        return {}
    labels = {candidate.id: candidate.label for candidate in candidates if candidate.label}
    found: dict[int, tuple[str, ...]] = {}
    for answers in (searched, confirmed):
        references = {label: answers[number] for number, label in labels.items() if number in answers}
        for number, responses in answers.items():
            with suppress(TaskError):  # an anchor to compare with is missing: then nothing can be said
                found[number] = tuple(broken(responses, references, experiment.fitness.constraints))
    return found


def _scores(responses: tuple[Responses, ...], experiment: Experiment) -> Scores:
    objectives, level = experiment.fitness.objectives, experiment.fitness.confirm.level
    estimates = zip(objectives, scores(responses, objectives), strict=True)
    return Scores(
        mean=_measure(mean_estimate(responses, objectives), level),
        each=tuple(_measure(estimate, level, minimized=o.goal == "min") for o, estimate in estimates),
    )


def _told(told: Told, experiment: Experiment) -> Scores:
    """Estimates that a model of items made, objectives taken as independent."""
    objectives, level = experiment.fitness.objectives, experiment.fitness.confirm.level
    share = weights(objectives)
    mean = float(share @ np.array(told.scores))
    sd = float(np.sqrt(share**2 @ np.square(told.sds)))
    triples = zip(objectives, told.scores, told.sds, strict=True)
    return Scores(
        mean=_believed(mean, sd, told.items, level),
        each=tuple(_believed(score, sd, told.items, level, minimized=o.goal == "min") for o, score, sd in triples),
    )


def _believed(score: float, sd: float, items: int, level: float, *, minimized: bool = False) -> Measure:
    half, sign = NormalDist().inv_cdf((1.0 + level) / 2.0) * sd, -1.0 if minimized else 1.0
    return Measure(mean=sign * score, low=sign * score - half, high=sign * score + half, items=items)


def _measure(estimate: Estimate, level: float, *, minimized: bool = False) -> Measure:
    """Estimates are scores, higher is better; a minimized metric gets its own direction back here."""
    low, high = estimate.interval(level)
    if minimized:
        return Measure(mean=-estimate.mean, low=-high, high=-low, items=estimate.items)
    return Measure(mean=estimate.mean, low=low, high=high, items=estimate.items)


def _confirmation(entries: Mapping[int, Entry], scored: _Answers, experiment: Experiment) -> Confirmation | None:
    anchors = {entry.name: entry.id for entry in entries.values() if entry.kind == "anchor" and entry.id in scored}
    if not scored:
        return None
    excluded = {candidate for candidate in scored if entries[candidate].broken}
    found = confirm_front(scored, anchors, experiment.fitness.objectives, experiment.fitness.confirm.level, excluded)
    return Confirmation(
        front=tuple(found.members),
        probability=dict(found.probability),
        knee=found.knee,
        best=dict(found.best),
        gains=tuple(
            Gain(
                candidate=candidate,
                anchor=anchors[label],
                of=of,
                measure=Measure(mean=d.mean, low=d.low, high=d.high, items=d.items),
            )
            for candidate, over in found.gains.items()
            for label, differences in over.items()
            for of, d in differences.items()
        ),
    )


def _history(
    entries: Mapping[int, Entry], costs: Mapping[int, Sequence[float]], objectives: Sequence[Objective]
) -> History | None:
    anchors = [cost for candidate, cost in costs.items() if entries[candidate].kind == "anchor"]
    if not anchors:
        return None
    corner = [_behind(column) for column in zip(*anchors, strict=True)]
    front: list[Sequence[float]] = []
    volumes: list[float] = []
    for cost in costs.values():  # in order of completion
        candidates = [*front, cost]
        front = [candidates[index] for index in nondominated(candidates)]
        volumes.append(hypervolume(front, corner))
    reference = tuple(o.cost(value) for o, value in zip(objectives, corner, strict=True))  # cost() undoes itself
    return History(reference=reference, hypervolume=tuple(volumes))


def _behind(costs: Sequence[float]) -> float:
    """A cost worse than all of these."""
    worst, best = max(costs), min(costs)
    return worst + _MARGIN * (worst - best or abs(worst) or 1.0)


def _cost(store: RunStore, experiment: Experiment) -> Cost:
    results = store.results()
    computed = [result for result in results if result.cached_from is None]
    scored = {(result.candidate, result.phase) for result in results}
    seconds: Counter[str] = Counter()
    for result in computed:
        seconds.update(result.seconds)
    shares = [result.rewritten for result in computed if result.rewritten is not None]
    return Cost(
        seconds=dict(seconds),
        rewritten=fmean(shares) if shares else None,
        wall_seconds=_noted(store, "driver").get("wall_seconds", 0.0),
        evaluations=sum(phase == "search" for _, phase in scored),
        budget=_noted(store, "budget").get("evaluations", experiment.budget.evaluations),
        copied=len(results) - len(computed),
        confirmations=sum(phase == "confirm" for _, phase in scored),
        items=sum(len(items) for result in computed for items in {r.task: r.items for r in result.responses}.values()),
        attempts=dict(Counter(attempt.status for attempt in store.attempts())),
        audit=audit_words(_noted(store, "audit")),
    )
