"""A run: a search by one of the loops, then the confirmation of what it found.

A run is a function of its experiment and its folder. Resuming is no special case: see `evomerge.loop`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from functools import partial

from evomerge.config import Experiment
from evomerge.errors import TaskError
from evomerge.evaluator import Drained, Evaluator, Unsettled
from evomerge.fitness import ItemSplit, build_assessment, split_items
from evomerge.fitness.build import bank_digests
from evomerge.fitting import problem_of, space_of
from evomerge.generations import Generations
from evomerge.loop import Loop, Progress
from evomerge.opening import Lineup, earlier_evaluations, flat, refuse_change
from evomerge.outcome import Job
from evomerge.population import PopulationManager, build_algorithm
from evomerge.register import Register
from evomerge.runs import RunStore
from evomerge.steady import Steady
from evomerge.stopping import Stop
from evomerge.workers import Executor, WorkerInfo

__all__ = ["Progress", "Search"]


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
        self._experiment, self._lineup, self._store = experiment, lineup, store
        self._check_workers(info)
        self._split: ItemSplit = split_items(info.sizes, experiment.fitness.items, experiment.seed, info.duplicates)
        self._evaluator = Evaluator(store, executor)
        self._loop = self._built_loop(info, live=executor is not None)
        self._check_budget()

    def _built_loop(self, info: WorkerInfo, *, live: bool) -> Loop:
        experiment, objectives = self._experiment, self._experiment.fitness.objectives
        space = space_of(experiment, self._lineup, json.loads(self._store.meta("products") or "null"))
        problem = problem_of(experiment, space, earlier_evaluations(self._store))
        assessment = build_assessment(
            experiment.fitness,
            self._split,
            digests=info.digests,
            contest="mean" if len(objectives) == 1 else experiment.algorithm.contest,
            seed=experiment.seed,
        )
        in_flight = experiment.algorithm.in_flight
        make: Callable[..., Loop] = Generations if in_flight is None else partial(Steady, in_flight=in_flight)
        return make(
            experiment=experiment,
            lineup=self._lineup,
            store=self._store,
            evaluator=self._evaluator,
            assessment=assessment,
            manager=PopulationManager(build_algorithm(experiment.algorithm, problem), objectives=len(objectives)),
            register=Register(self._store, space, live=live),
            live=live,
        )

    def _check_workers(self, info: WorkerInfo) -> None:
        """What the workers found must be what the run began with; noted when it begins."""
        tasks: dict[str, dict[str, object]] = {
            task: {"items": info.sizes[task], "digest": info.digests[task]} for task in sorted(info.sizes)
        }
        for task, ids in info.duplicates.items():
            tasks[task]["duplicates"] = list(ids)
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
        loop = self._loop
        least = loop.assessment.most_items(0, self._experiment.anchors, loop.manager.population)
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
        self._loop.begin()
        self._store.set_meta("state", "running")
        try:
            yield from self._loop.run(stop)
            yield from self._confirm(stop)
            self._store.set_meta("state", "finished")
        except Drained:
            self._store.set_meta("state", "stopped")
        finally:
            self._loop.account()

    def replay(self) -> int:
        """Walk through the recorded candidates with a fresh algorithm, evaluating and writing nothing.

        Returns:
            How many whole generations were reproduced; without generations, as many candidates make one.

        Raises:
            StoreError: the algorithm asks for other genes than are recorded.
        """
        try:
            for _ in self._loop.run(Stop()):
                pass
        except Unsettled:
            pass
        return self._loop.generations

    def _confirm(self, stop: Stop) -> Iterator[Progress]:
        """Re-score the answer and the anchors on items that the search never saw."""
        register, manager = self._loop.register, self._loop.manager
        references = register.of_kind("anchor")
        most = self._experiment.fitness.confirm.shortlist
        finalists = register.finalists(manager.generation - 1, manager.answer(), most)
        jobs = [
            Job(candidate=c.id, phase="confirm", recipe=c.recipe, items=self._split.confirm)
            for c in (*references, *finalists)
        ]
        for settled in self._evaluator.settle(jobs, stop):
            yield Progress(
                phase="confirm",
                generation=-1,
                done=settled,
                planned=len(jobs),
                failures=self._evaluator.failures,
            )
