"""In which order jobs go out, and what is recorded of those that are lost."""

from __future__ import annotations

from pathlib import Path

from evomerge.evaluator import Evaluator
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Responses, Scored
from evomerge.recipe import uniform
from evomerge.runs import Candidate, RunStore
from evomerge.stopping import Stop
from evomerge.workers import Fault, FaultyExecutor, SerialExecutor, WorkerInfo


class Scores:
    """Answers everything with 1 and notes who was asked."""

    def __init__(self, seen: list[int] | None = None) -> None:
        self._seen = [] if seen is None else seen

    def info(self) -> WorkerInfo:
        return WorkerInfo(sizes={"alpha": 60})

    def run(self, job: Job) -> Outcome:
        self._seen.append(job.candidate)
        responses = tuple(
            Responses(task=task, metric="acc", items=items, values=(1.0,) * len(items))
            for task, items in job.items.tasks
        )
        return Scored(candidate=job.candidate, phase=job.phase, round=job.round, responses=responses)


RECIPES = [uniform((name,), layers=4, dtype="float32") for name in "abcdef"]


def store_and_jobs(folder: Path, sizes: list[int]) -> tuple[RunStore, list[Job]]:
    store = RunStore.create(folder, {})
    store.add_candidates(
        [
            Candidate(id=i, kind="search", generation=0, slot=i, genome=(0.5,), recipe=RECIPES[i])
            for i in range(len(sizes))
        ]
    )
    jobs = [
        Job(candidate=i, phase="search", recipe=RECIPES[i], items=ItemSet.of({"alpha": tuple(range(size))}))
        for i, size in enumerate(sizes)
    ]
    return store, jobs


def test_the_longest_jobs_go_first_and_equal_ones_in_their_order(tmp_path: Path) -> None:
    store, jobs = store_and_jobs(tmp_path / "run", [5, 20, 5, 10, 20])
    seen: list[int] = []
    executor = SerialExecutor(lambda: Scores(seen))
    executor.start()
    assert list(Evaluator(store, executor).settle(jobs, Stop())) == [1, 2, 3, 4, 5]
    assert seen == [1, 4, 3, 0, 2]
    store.close()


def test_what_is_begun_is_recorded_before_it_is_handed_out_and_once(tmp_path: Path) -> None:
    store, jobs = store_and_jobs(tmp_path / "run", [5, 5])
    seen: list[int] = []
    executor = SerialExecutor(lambda: Scores(seen))
    executor.start()
    evaluator = Evaluator(store, executor)
    evaluator.take(jobs)
    for _ in range(2):  # there is room for one
        evaluator.begin(Stop())
        assert [attempt.candidate for attempt in store.attempts()] == [0]
    assert [job.candidate for job in evaluator.arrivals(Stop())] == [0] == seen
    assert [job.candidate for job in evaluator.arrivals(Stop())] == [1]
    assert [(a.candidate, a.number, a.status) for a in store.attempts()] == [(0, 1, "scored"), (1, 1, "scored")]
    store.close()


def test_lost_nodes_are_recorded_as_such_and_charge_nobody(tmp_path: Path) -> None:
    class Preempted(FaultyExecutor):
        """Calls every death one of a node."""

        def wait(self, timeout: float) -> list[Outcome]:
            return [_of_a_node(outcome) for outcome in super().wait(timeout)]

    store, jobs = store_and_jobs(tmp_path / "run", [5, 5, 5])
    executor = Preempted(
        Scores,
        script=lambda job: Fault("die") if job.candidate == 1 and job.attempt <= 6 else None,
    )
    executor.start()
    for _ in Evaluator(store, executor).settle(jobs, Stop()):
        pass
    assert store.failures() == []
    assert len(store.results()) == 3
    stages = [attempt.stage for attempt in store.attempts() if attempt.candidate == 1]
    assert stages == ["node"] * 6 + [""]
    store.close()


def _of_a_node(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Failed):
        return outcome
    return Failed(candidate=outcome.candidate, phase=outcome.phase, stage="node", reason="taken away", retry=True)
