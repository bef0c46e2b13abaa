"""From a run folder to a `Summary`. Reads, estimates and compares; writes nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evomerge.config import Experiment
from evomerge.errors import StoreError, TaskError
from evomerge.fitness import Told, broken, with_costs
from evomerge.pareto import best, knee, nondominated
from evomerge.reports.chronicle import corner, curve, generations, items_of, tries, utilization
from evomerge.reports.confirmed import confirmation
from evomerge.reports.course import Cost, Curve, Failure, History
from evomerge.reports.extremes import extreme_warnings
from evomerge.reports.measures import believed_scores, measured_scores
from evomerge.reports.summary import Entry, Objective, Summary
from evomerge.reports.words import audit_words, describe, one_line, unspent
from evomerge.runs import experiment_of, holder

if TYPE_CHECKING:
    from evomerge.config import ObjectiveConfig
    from evomerge.outcome import Answer, Phase
    from evomerge.runs import Candidate, Result, RunStore
    from evomerge.runs import Failure as Lost

__all__ = ["objective_of", "state_of", "summarize"]

_Answers = Mapping[int, tuple["Answer", ...]]
"""What candidates answered in one phase, and their costs."""

_PHASES: tuple[Phase, Phase] = ("search", "confirm")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A run folder, read once.

    Attributes:
        searched, confirmed: what candidates answered, those left out that were given up.
        entries: by candidate.
        costs: by candidate that counts, one cost per objective, lower is better.
    """

    experiment: Experiment
    objectives: tuple[Objective, ...]
    candidates: Sequence[Candidate]
    results: Sequence[Result]
    failures: Sequence[Lost]
    searched: _Answers
    confirmed: _Answers
    entries: Mapping[int, Entry]
    costs: Mapping[int, Sequence[float]]


def summarize(store: RunStore, random: RunStore | None = None) -> Summary:
    """What the run amounts to so far.

    Nothing is claimed for a run that has not finished: its summary holds estimates and no confirmation. Texts that came
    from outside (model names, reasons of failures) are put on one line and freed of control characters.

    Args:
        store: the run.
        random: a random search over the same space, to compare the run's progress with.

    Raises:
        StoreError: a run folder cannot be read, or `random` is no random search over the same space and items.
        TaskError: results that do not belong to the objectives.
    """
    record = _read(store)
    experiment, entries, costs = record.experiment, record.entries, record.costs
    front = tuple(sorted(list(costs)[index] for index in nondominated([*costs.values()])))
    finished = store.meta("state") == "finished"
    attempts = store.attempts()
    return Summary(
        name=experiment.name,
        folder=str(store.folder),
        state=state_of(store),
        created_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(store.manifest["created_at"])),
        seed=experiment.seed,
        level=experiment.fitness.confirm.level,
        objectives=record.objectives,
        entries=entries,
        front=front,
        knee=list(costs)[knee([*costs.values()])] if costs else None,
        best=_best(record),
        confirmation=confirmation(entries, record.confirmed, experiment) if finished else None,
        history=_history(record, None if random is None else _comparable(record, random)),
        generations=generations(
            record.candidates,
            entries,
            front,
            [f.candidate for f in record.failures if f.phase == "search"],
            store.notes("algorithm"),
        ),
        tries=tries(attempts),
        utilization=utilization(attempts),
        failures=tuple(
            Failure(candidate=f.candidate, phase=f.phase, stage=f.stage, reason=one_line(f.reason))
            for f in record.failures
        ),
        cost=_cost(store, record, Counter(attempt.status for attempt in attempts)),
        versions={**store.manifest["versions"], **_noted(store, "versions")},
        experiment=store.experiment,
        warnings=tuple(
            one_line(text)
            for text in (
                *json.loads(store.meta("warnings") or "[]"),
                *extreme_warnings(entries.values(), record.objectives),
                *_unconfirmed(entries, experiment, finished),
            )
        ),
    )


def _best(record: _Record) -> dict[str, int]:
    rows = [*record.costs.values()]
    return {o.name: list(record.costs)[best(rows, k)] for k, o in enumerate(record.objectives)} if rows else {}


def _read(store: RunStore) -> _Record:
    experiment = experiment_of(store)
    objectives = tuple(objective_of(o) for o in experiment.fitness.objectives)
    candidates, results, failures = store.candidates(), store.results(), store.failures()
    recipes = {candidate.id: candidate.recipe for candidate in candidates}
    measured = experiment.fitness.measured
    searched, confirmed = (
        {i: with_costs(each, recipes[i], store.sizes, measured) for i, each in store.responses(phase).items()}
        for phase in _PHASES
    )
    entries = _entries(store, candidates, searched, confirmed, experiment)
    costs = {
        candidate: [o.cost(m.mean) for o, m in zip(objectives, estimated.each, strict=True)]
        for candidate in _eligible(searched, entries)
        if (estimated := entries[candidate].estimated) is not None
    }
    return _Record(
        experiment=experiment, objectives=objectives, candidates=candidates, results=results, failures=failures,
        searched=searched, confirmed=confirmed, entries=entries, costs=costs,
    )  # fmt: skip


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


def state_of(store: RunStore) -> str:
    """What the run itself noted, unless its driver is gone without a word."""
    state = store.meta("state") or "stopped"
    return "stopped" if state == "running" and holder(store.folder) is None else state


def objective_of(config: ObjectiveConfig) -> Objective:
    """An axis of the front as the experiment names it."""
    return Objective(
        name=one_line(config.name),
        task=one_line(", ".join(metric.task for metric in config.metrics)),
        metric=one_line(config.cost or ", ".join(dict.fromkeys(metric.metric for metric in config.metrics))),
        goal=config.goal,
        weight=config.weight,
    )


def _entries(
    store: RunStore, candidates: Sequence[Candidate], searched: _Answers, confirmed: _Answers, experiment: Experiment
) -> dict[int, Entry]:
    believed, parents = store.estimates(), _noted(store, "lineage")
    estimates = {candidate: measured_scores(answers, experiment) for candidate, answers in searched.items()}
    estimates |= {candidate: believed_scores(Told(**told), experiment) for candidate, told in believed.items()}
    confirmations = {candidate: measured_scores(answers, experiment) for candidate, answers in confirmed.items()}
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
            parents=tuple(parents.get(str(candidate.id), {}).get("parents", ())),
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


def _history(record: _Record, random: _Record | None) -> History | None:
    anchors = [cost for candidate, cost in record.costs.items() if record.entries[candidate].kind == "anchor"]
    if not anchors:
        return None
    reference = corner(anchors)
    return History(
        reference=tuple(o.cost(value) for o, value in zip(record.objectives, reference, strict=True)),  # undoes itself
        curve=_curve(record, reference),
        random=None if random is None else _curve(random, reference),
    )


def _curve(record: _Record, reference: Sequence[float]) -> Curve:
    return curve(record.costs, [result for result in record.results if result.phase == "search"], reference)


def _comparable(record: _Record, store: RunStore) -> _Record:
    """A random search, if it differs from the run in nothing else that its front depends on."""
    other = _read(store)
    if other.experiment.algorithm.kind != "random":
        raise StoreError(
            f"{store.folder}: expected a run with algorithm.kind: random to compare with; got "
            f"{other.experiment.algorithm.kind}"
        )
    parts = ("pool", "space", "fitness")
    differing = [part for part in parts if getattr(record.experiment, part) != getattr(other.experiment, part)]
    if differing:
        raise StoreError(
            f"{store.folder}: expected a random search over the same pool, space and fitness; got another "
            f"{' and '.join(differing)}; make one with: --set algorithm.kind=random"
        )
    if not other.costs:
        raise StoreError(f"{store.folder}: expected a random search with scored candidates; got none")
    return other


def _cost(store: RunStore, record: _Record, attempts: Mapping[str, int]) -> Cost:
    results = record.results
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
        budget=_noted(store, "budget").get("evaluations", record.experiment.budget.evaluations),
        copied=len(results) - len(computed),
        confirmations=sum(phase == "confirm" for _, phase in scored),
        items=sum(items_of(result.responses) for result in computed),
        attempts=dict(attempts),
        unspent=unspent(
            record.experiment,
            sum(candidate.kind != "answer" for candidate in record.candidates),
            sum(failure.phase == "search" for failure in record.failures),
            finished=store.meta("state") == "finished",
        ),
        audit=audit_words(store.notes("audit")),
        tokens=sum(sum(result.tokens.values()) for result in computed),
    )
