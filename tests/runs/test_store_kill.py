"""A driver that is killed at any moment: nothing lost that was recorded, nothing counted twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from evomerge.runs import RunStore

_DRIVER = """
import sys
from pathlib import Path
from evomerge.outcome import ItemSet, Job, Responses, Scored
from evomerge.recipe import uniform
from evomerge.runs import Candidate, RunStore

store = RunStore.open(Path(sys.argv[1]))
recipe = uniform(("a",), layers=2, dtype="float32")
items = ItemSet.of({"t": tuple(range(500))})
tried = {(a.candidate, a.number) for a in store.attempts()}
first = len(store.results())
for number in range(first, first + 10_000):
    candidate = Candidate(id=number, kind="search", generation=0, slot=number, genome=(0.5,), recipe=recipe)
    store.add_candidates([candidate])
    attempt = 1 + sum(1 for c, _ in tried if c == number)
    job = Job(candidate=number, phase="search", recipe=recipe, items=items, attempt=attempt)
    store.start_attempt(job)
    values = tuple(float(i + number) for i in range(500))
    responses = (Responses(task="t", metric="acc", items=items.tasks[0][1], values=values),)
    store.record(Scored(candidate=number, phase="search", responses=responses), job=job)
    print(number, flush=True)
"""


def test_a_driver_killed_at_random_moments_loses_nothing_it_reported(tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(1)
    RunStore.create(folder, {}).close()
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(folder)], stdout=subprocess.PIPE, text=True
        ) as driver:
            assert driver.stdout is not None
            first = int(driver.stdout.readline())
            time.sleep(moments.uniform(0, 0.06))
            driver.kill()
            reported = [first, *map(int, driver.stdout.read().split())]
        with RunStore.read(folder) as reader:
            _check_consistent(reader)
            assert max(reported) <= reader.results()[-1].candidate <= max(reported) + 1
    with RunStore.open(folder) as store:
        assert all(attempt.status in ("scored", "lost") for attempt in store.attempts())
        assert len(store.results()) >= 25


def _check_consistent(store: RunStore) -> None:
    results = store.results()
    assert [result.seq for result in results] == list(range(len(results)))
    assert [result.candidate for result in results] == list(range(len(results)))
    for result in results:
        assert result.responses[0].values == tuple(float(i + result.candidate) for i in range(500))


class Ledger(RuleBasedStateMachine):
    """A driver that proposes, starts, finishes, loses and repeats jobs, and dies; beside a model that only counts."""

    candidates: Bundle[int] = Bundle("candidates")
    jobs: Bundle[Any] = Bundle("jobs")

    def __init__(self, folders: Iterator[Path], samples: Any) -> None:
        super().__init__()
        self.samples = samples
        self.folder = next(folders)
        self.store = RunStore.create(self.folder, {})
        self.proposed = 0
        self.attempts: dict[int, list[str]] = {}
        self.scored: list[int] = []
        self.given_up: set[int] = set()

    @rule(target=candidates)
    def propose(self) -> int:
        self.store.add_candidates([self.samples.candidate(self.proposed)])
        self.attempts[self.proposed] = []
        self.proposed += 1
        return self.proposed - 1

    @rule(target=jobs, number=candidates)
    def start(self, number: int) -> Any:
        self.attempts[number].append("started")
        job = self.samples.job(number, attempt=len(self.attempts[number]))
        self.store.start_attempt(job)
        return job

    @rule(job=jobs)
    def finish(self, job: Any) -> None:
        """Also finishes what finished before: a repeated or late answer."""
        fresh = self.store.record(self.samples.scored(job.candidate), job=job)
        self.attempts[job.candidate][job.attempt - 1] = "scored"
        assert fresh == self._open(job.candidate)
        if fresh:
            self.scored.append(job.candidate)

    @rule(job=jobs, final=st.booleans())
    def fail(self, job: Any, final: bool) -> None:
        fresh = self.store.record(self.samples.failed(job.candidate), job=job, final=final)
        self.attempts[job.candidate][job.attempt - 1] = "failed"
        assert fresh == self._open(job.candidate)
        if fresh and final:
            self.given_up.add(job.candidate)

    @precondition(lambda self: self.proposed)
    @rule(clean=st.booleans())
    def end_and_resume(self, clean: bool) -> None:
        """A driver that is killed leaves what its folder holds at that moment; a copy of it is resumed."""
        if clean:
            self.store.close()
        else:
            remains = self.folder.with_name(f"{self.folder.name}x")
            remains.mkdir()
            for name in ("run.db", "run.db-wal"):
                if (self.folder / name).exists():
                    (remains / name).write_bytes((self.folder / name).read_bytes())
            self.store.close()
            self.folder = remains
        self.store = RunStore.open(self.folder)
        for statuses in self.attempts.values():
            statuses[:] = ["lost" if status == "started" else status for status in statuses]

    @invariant()
    def nothing_is_lost_and_nothing_counted_twice(self) -> None:
        results = self.store.results()
        assert [result.candidate for result in results] == self.scored
        assert [result.seq for result in results] == list(range(len(results)))
        assert all(result.responses == self.samples.scored(result.candidate).responses for result in results)
        assert {failure.candidate for failure in self.store.failures()} == self.given_up
        recorded: dict[int, list[str]] = {number: [] for number in range(self.proposed)}
        for attempt in self.store.attempts():
            recorded[attempt.candidate].append(attempt.status)
        assert recorded == self.attempts

    def teardown(self) -> None:
        self.store.close()

    def _open(self, number: int) -> bool:
        return number not in self.scored and number not in self.given_up


@pytest.mark.timeout(120)
def test_the_books_balance_whatever_happens(tmp_path: Path, samples: Any) -> None:
    folders = (tmp_path / f"run{number}" for number in range(10**9))
    profile = settings(max_examples=20, stateful_step_count=20, deadline=None, derandomize=True, database=None)
    machine = cast("type[Ledger]", lambda: Ledger(folders, samples))
    run_state_machine_as_test(machine, settings=profile)
