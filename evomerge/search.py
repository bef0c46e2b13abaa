"""The loop: ask, decode, dispatch, record, estimate, tell; then confirm.

A run is a function of its experiment and its folder. Resuming is no special case: the loop always starts at the first
generation, and whatever the folder already holds is taken from there instead of being evaluated again. So the
optimizer's state is rebuilt by the same asks and tells that made it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from evomerge.config import Experiment
from evomerge.errors import StoreError, TaskError
from evomerge.evaluator import Drained, Evaluator, Unsettled
from evomerge.fitness import ItemSplit, Told, build_assessment, split_items, with_costs
from evomerge.fitness.build import bank_digests
from evomerge.fitness.item_scores import item_scores
from evomerge.opening import Lineup, anchors, earlier_evaluations, flat, refuse_change, space_of
from evomerge.outcome import Answer, Job, Phase
from evomerge.population import Item, PopulationManager, Problem, build_algorithm
from evomerge.recipe import Recipe
from evomerge.runs import Candidate, Kind, RunStore
from evomerge.spaces import Genome
from evomerge.stopping import Stop
from evomerge.workers import Executor, WorkerInfo

__all__ = ["Progress", "Search"]

SAME_GENOME = 1e-9
"""Replayed genes may differ this much from the recorded ones (other CPUs round differently); the record counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step of a run, for whoever watches.

    Attributes:
        phase: what is being scored.
        generation: counted from 0; -1 in the confirmation.
        done, planned: candidates settled and to be settled in this phase.
        failures: candidates that failed for good.
    """

    phase: Phase
    generation: int
    done: int
    planned: int
    failures: int


class Search:
    """One run over an open store and a started executor.

    Example:
        >>> for progress in Search(experiment, lineup, store=store, executor=executor, info=info).run(stop):
        ...     print(progress.done, "of", progress.planned)

    Args:
        experiment: the resolved experiment.
        lineup: the pool's shape.
        store: the open run.
        executor: started; None replays only what the store holds.
        info: what the workers found: item counts and task digests.

    Raises:
        TaskError: an item set too small to split, a budget of items too small to begin, or an item bank of other items.
        StoreError: the tasks' items are not those that the run began with.
    """

    def __init__(
        self,
        experiment: Experiment,
        lineup: Lineup,
        *,
        store: RunStore,
        executor: Executor | None,
        info: WorkerInfo,
    ) -> None:
        self._experiment, self._lineup, self._store, self._executor = experiment, lineup, store, executor
        self._objectives = experiment.fitness.objectives
        self._check_workers(info)
        self._split: ItemSplit = split_items(info.sizes, experiment.fitness.items, experiment.seed)
        self._space = space_of(experiment, lineup, json.loads(store.meta("products") or "null"))
        problem = Problem(
            space=self._space,
            weights=tuple(objective.weight for objective in self._objectives),
            seed=experiment.seed,
            earlier=earlier_evaluations(store),
        )
        algorithm = build_algorithm(experiment.algorithm, problem)
        self._assessment = build_assessment(
            experiment.fitness,
            self._split,
            digests=info.digests,
            contest="mean" if len(self._objectives) == 1 else experiment.algorithm.contest,
            seed=experiment.seed,
        )
        self._rounds: Counter[int] = Counter()
        self._born: dict[Genome, int] = {}
        self._lineage: dict[str, dict[str, object]] = {}
        self._asked = self._spent = 0
        self._tokens = self._dearest = 0
        self._manager = PopulationManager(algorithm, objectives=len(self._objectives))
        self._check_budget()
        self._recorded = {(c.kind, c.generation, c.slot): c for c in store.candidates()}
        self._evaluator = Evaluator(store, executor)
        self._marked = time.perf_counter()

    def _check_workers(self, info: WorkerInfo) -> None:
        """What the workers found must be what the run began with; noted when it begins."""
        tasks = {task: {"items": info.sizes[task], "digest": info.digests[task]} for task in sorted(info.sizes)}
        now: dict[str, object] = {
            "tasks": tasks,
            "device": info.device,
            "dtype": info.dtype,
            "model contents": info.pool_digest,
        }
        if info.screen:
            now["screening"] = info.screen
        if banks := bank_digests(self._experiment.fitness):
            now["item banks"] = banks
        refuse_change(self._store.folder, {"model contents": self._lineup.digest}, {"model contents": info.pool_digest})
        before = self._store.meta("workers")
        if before is None:
            self._store.set_meta("products", json.dumps(info.products))
            self._store.set_meta("workers", json.dumps(now))
            self._store.set_meta("versions", json.dumps(dict(info.versions)))
        else:
            refuse_change(self._store.folder, flat(json.loads(before), "workers"), flat(now, "workers"))

    def _check_budget(self) -> None:
        least = self._assessment.most_items(0, self._experiment.anchors, self._manager.population)
        items = self._experiment.budget.items
        if items is not None and items < least:
            raise TaskError(
                f"budget.items: expected at least {least:,}, which anchors and the first generation may take; got "
                f"{items:,}; raise it, or lower fitness.items.search or algorithm.population"
            )

    def run(self, stop: Stop) -> Generator[Progress, None, None]:
        """Search until the budget is spent, then confirm; or until a stop is asked for.

        Yields:
            One record after each settled candidate.

        Raises:
            RunError: nothing can be evaluated.
            DiskError: the disk is full; the run can be resumed.
        """
        self._marked = time.perf_counter()
        self._store.set_meta("state", "running")
        try:
            yield from self._search(stop)
            yield from self._confirm(stop)
            self._store.set_meta("state", "finished")
        except Drained:
            self._store.set_meta("state", "stopped")
        finally:
            self._account()

    def replay(self) -> int:
        """Walk through the recorded generations with a fresh algorithm, evaluating and writing nothing.

        Returns:
            How many generations were reproduced.

        Raises:
            StoreError: the algorithm asks for other genes than are recorded.
        """
        try:
            for _ in self._search(Stop()):
                pass
        except Unsettled:
            pass
        return self._manager.generation

    def _account(self) -> None:
        """Add the wall time since the last call, and the share that the driver itself was busy, to the run's."""
        seconds, waited = time.perf_counter() - self._marked, self._evaluator.waited
        spent = json.loads(self._store.meta("driver") or '{"wall_seconds": 0.0, "busy_seconds": 0.0}')
        spent["wall_seconds"] += seconds
        spent["busy_seconds"] += seconds - waited
        self._store.set_meta("driver", json.dumps(spent))
        self._marked, self._evaluator.waited = time.perf_counter(), 0.0

    def _search(self, stop: Stop) -> Iterator[Progress]:
        references = self._register("anchor", -1, [(None, recipe) for recipe in anchors(self._lineup).values()])
        generation = 0
        while self._affordable(generation):
            candidates = self._ask(generation)
            found = yield from self._assess(generation, references, candidates, stop)
            if generation == 0:
                self._manager.anchors([_scores(found, candidate) for candidate in references])
            self._manager.tell(
                [_scores(found, candidate) for candidate in candidates],
                [found[c.id].violation if c.id in found else 0.0 for c in candidates],
                [self._item_scores(c) for c in candidates] if self._manager.reads_items else None,
            )
            if self._executor is not None:
                self._note(generation, found)
                self._note_lineage(candidates)
                self._account()
            self._asked += len(candidates)
            generation += 1
        if self._executor is not None:
            self._store.set_meta("next generation", str(self._items_after(generation)))
            self._store.set_meta("next generation, tokens", str(self._tokens + self._dearest))

    def _affordable(self, generation: int) -> bool:
        """Whether there is another generation, and the budget holds it at its most costly."""
        budget, population = self._experiment.budget, self._manager.population
        if not population or self._experiment.anchors + self._asked + population > budget.evaluations:
            return False
        return (budget.items is None or self._items_after(generation) <= budget.items) and (
            budget.tokens is None or self._tokens + self._dearest <= budget.tokens
        )

    def _items_after(self, generation: int) -> int:
        """Items that the run may have asked when another generation is scored, at most."""
        return self._spent + self._assessment.most_items(generation, self._experiment.anchors, self._manager.population)

    def _assess(
        self, generation: int, references: Sequence[Candidate], candidates: Sequence[Candidate], stop: Stop
    ) -> Generator[Progress, None, dict[int, Told]]:
        """Score a generation, round by round; what is recorded is not asked again."""
        recipes = {candidate.id: candidate.recipe for candidate in (*references, *candidates)}
        labels = {candidate.label: candidate.id for candidate in references}
        dialogue = self._assessment.generation(generation, labels, {c.id: c.genome or () for c in candidates})
        questions, settled, spent = next(dialogue, None), 0, 0
        while questions is not None:
            jobs = [
                Job(candidate=i, phase="search", recipe=recipes[i], items=items, round=self._rounds[i])
                for i, items in questions.items()
            ]
            for done in self._evaluator.settle(jobs, stop):
                settled = min(max(settled, done), len(labels) * (generation == 0) + len(candidates))
                yield self._progress("search", generation, settled, len(jobs))
            self._require(labels)
            taken = {i: self._evaluator.tokens(i, "search", self._rounds[i]) for i in questions}
            self._tokens += sum(taken.values())
            spent += sum(tokens for i, tokens in taken.items() if i not in labels.values())
            self._dearest = max(self._dearest, spent)
            self._rounds.update(questions.keys())
            self._spent += sum(map(len, questions.values()))
            try:
                questions = dialogue.send({i: self._answers(i, recipes[i]) for i in questions})
            except StopIteration as end:
                return dict(end.value)
        return {}

    def _answers(self, candidate: int, recipe: Recipe) -> tuple[Answer, ...] | None:
        """What a candidate answered in the rounds so far, and its costs; None if it failed."""
        responses = self._evaluator.responses(candidate, "search", self._rounds[candidate])
        measured = self._experiment.fitness.measured
        return None if responses is None else with_costs(responses, recipe, self._lineup.sizes, measured)

    def _item_scores(self, candidate: Candidate) -> Mapping[Item, float]:
        """What a candidate scored on each item that it was asked; empty if it failed."""
        answers = self._answers(candidate.id, candidate.recipe)
        return {} if answers is None else item_scores(answers, self._objectives)

    def _require(self, labels: Mapping[str, int]) -> None:
        """Without the anchors that constraints are relative to, nothing can be told."""
        for constraint in self._experiment.fitness.constraints:
            if constraint.relative_to is not None:
                needed = f"{constraint.relative_to}, which the constraint {constraint.name!r} compares with,"
                self._evaluator.refuse_failure(labels[constraint.relative_to], "search", needed)

    def _note(self, generation: int, found: Mapping[int, Told]) -> None:
        """Keep what was estimated, where it is more than the mean of the recorded answers, and how far to trust it."""
        if self._experiment.fitness.estimator.kind != "mean":
            self._store.set_estimates({number: asdict(told) for number, told in found.items()})
            audits = json.loads(self._store.meta("audit") or "{}")
            audits[str(generation)] = {m: asdict(c) for m, c in self._assessment.checks(generation).items()}
            self._store.set_meta("audit", json.dumps(audits))

    def _note_lineage(self, candidates: Sequence[Candidate]) -> None:
        """Keep who the parents are of those that were crossed."""
        for candidate, crossing in zip(candidates, self._manager.lineage, strict=False):
            if crossing is not None:
                parents = [self._born[crossing.first], self._born[crossing.second]]
                told = {"parents": parents, "split": crossing.split, "share": crossing.share}
                self._lineage[str(candidate.id)] = told
        if self._lineage:
            self._store.set_meta("lineage", json.dumps(self._lineage))

    def _ask(self, generation: int) -> list[Candidate]:
        genomes = self._manager.ask()
        decoded = [(genome, self._space.decode(genome)) for genome in genomes]
        candidates = self._register("search", generation, decoded)
        for genome, candidate in zip(genomes, candidates, strict=True):
            self._born.setdefault(genome, candidate.id)
        return candidates

    def _register(
        self, kind: Kind, generation: int, decoded: Sequence[tuple[Genome | None, Recipe]]
    ) -> list[Candidate]:
        """The recorded candidates of one generation, recorded first if they are new."""
        labels = list(anchors(self._lineup)) if kind == "anchor" else [""] * len(decoded)
        candidates: list[Candidate] = []
        new: list[Candidate] = []
        next_id = len(self._recorded)
        for slot, (genome, recipe) in enumerate(decoded):
            known = self._recorded.get((kind, generation, slot))
            if known is None:
                known = Candidate(
                    id=next_id + len(new),
                    kind=kind,
                    label=labels[slot],
                    generation=generation,
                    slot=slot,
                    genome=None if genome is None else genome.values,
                    recipe=recipe,
                )
                new.append(known)
            else:
                self._check_replay(known, genome)
            candidates.append(known)
        if new and self._executor is None:
            raise Unsettled
        if new:
            self._store.add_candidates(new)
            self._recorded |= {(c.kind, c.generation, c.slot): c for c in new}
        return candidates

    def _check_replay(self, known: Candidate, genome: Genome | None) -> None:
        if genome is None or known.genome is None:
            return
        worst = max((abs(a - b) for a, b in zip(known.genome, genome.values, strict=False)), default=0.0)
        if len(known.genome) != len(genome.values) or worst > SAME_GENOME:
            raise StoreError(
                f"{self._store.folder}: candidate {known.id} of generation {known.generation} is recorded with other "
                f"genes than the algorithm asks for now (largest difference {worst:.3g}). The versions of cmaes or "
                f"pymoo may have changed since {self._store.meta('versions')}; install those, or start a new run."
            )

    def _progress(self, phase: Phase, generation: int, settled: int, batch: int) -> Progress:
        if phase == "confirm":
            return Progress(phase=phase, generation=-1, done=settled, planned=batch, failures=self._evaluator.failures)
        before = 0 if generation == 0 else self._experiment.anchors + self._asked
        planned = self._experiment.budget.evaluations
        return Progress(
            phase=phase,
            generation=generation,
            done=before + settled,
            planned=planned,
            failures=self._evaluator.failures,
        )

    def _confirm(self, stop: Stop) -> Iterator[Progress]:
        """Re-score the answer and the anchors on items that the search never saw."""
        references = [candidate for candidate in self._recorded.values() if candidate.kind == "anchor"]
        finalists = self._finalists()
        jobs = [
            Job(candidate=c.id, phase="confirm", recipe=c.recipe, items=self._split.confirm)
            for c in (*references, *finalists)
        ]
        for settled in self._evaluator.settle(jobs, stop):
            yield self._progress("confirm", -1, settled, len(jobs))

    def _finalists(self) -> list[Candidate]:
        """The algorithm's answer as candidates, best first, each recipe once, no more than the shortlist holds."""
        known = {c.recipe.digest: c for c in sorted(self._recorded.values(), key=lambda c: -c.id)}
        generation = self._manager.generation - 1
        chosen: list[Candidate] = []
        fresh: list[tuple[Genome | None, Recipe]] = []
        decoded = [(genome, self._space.decode(genome)) for genome in self._manager.answer()]
        distinct: dict[str, tuple[Genome, Recipe]] = {}
        for genome, recipe in decoded:
            distinct.setdefault(recipe.digest, (genome, recipe))
        for genome, recipe in list(distinct.values())[: self._experiment.fitness.confirm.shortlist]:
            twin = known.get(recipe.digest)
            if twin is not None and twin.kind != "answer":
                chosen.append(twin)
            else:
                fresh.append((genome, recipe))
        return [*self._register("answer", generation, fresh), *chosen]


def _scores(found: Mapping[int, Told], candidate: Candidate) -> tuple[float, ...] | None:
    return found[candidate.id].scores if candidate.id in found else None
