"""A worker that cannot be reached for a while: what the executor makes of Ray's word for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evomerge.config import RayConfig
from evomerge.outcome import Failed, Job, Scored

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and subprocess handles of its own to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Faltering:
    """The module `ray`, whose `get` says for so many answers that their worker could not be reached."""

    def __init__(self, ray: Any, times: int) -> None:
        self._ray, self.left = ray, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    def get(self, ref: Any, timeout: float) -> Any:
        value = self._ray.get(ref, timeout=timeout)
        if isinstance(value, Scored) and self.left > 0:
            self.left -= 1
            raise self._ray.exceptions.ActorUnavailableError("no route to the node", None)
        return value


@pytest.fixture
def executor(cluster: None, toys: Any) -> Iterator[Any]:
    from evomerge.workers.ray_executor import RayExecutor

    executor = RayExecutor(RayConfig(kind="ray", workers=1, cpus=0.5), toys())
    executor.start()
    yield executor
    executor.close()


def outcome_of(executor: Any, job: Job) -> Any:
    executor.submit(job)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if outcomes := executor.wait(2.0):
            return outcomes[0]
    raise AssertionError("no answer")


def test_the_job_is_sent_again_and_no_attempt_is_lost(executor: Any, job_of: Callable[..., Job]) -> None:
    actor = executor._slots[0].actor
    executor._ray = Faltering(executor._ray, 3)
    assert isinstance(outcome_of(executor, job_of(0)), Scored)
    assert executor._ray.left == 0
    assert executor._slots[0].actor is actor
    assert executor._slots[0].unreachable is None


def test_what_waited_behind_the_job_is_anybodys_again(executor: Any, job_of: Callable[..., Job]) -> None:
    from evomerge.workers.ray_crew import Call

    slot, rota = executor._slots[0], executor._rota
    executor.submit(job_of(0))
    executor.submit(job_of(1))
    first, second = rota.next(None), rota.next(None)
    slot.calls.append(Call(None, second))
    slot.held = second.round
    executor._postpone(slot, first)
    assert slot.held is first.round
    assert rota.next(None).round is second.round


def test_after_its_time_the_worker_counts_as_lost_with_its_node(
    executor: Any, job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.workers.ray_executor._UNREACHABLE_SECONDS", 1.5)
    executor._ray = Faltering(executor._ray, 3)
    lost = outcome_of(executor, job_of(0))
    assert isinstance(lost, Failed)
    assert (lost.stage, lost.reason, lost.retry) == ("node", "could not be reached for 1.5 s", True)
    assert isinstance(outcome_of(executor, job_of(0, attempt=2)), Scored)
