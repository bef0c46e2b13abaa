"""Who does what next, and what a job that was done in shards comes to."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.outcome import Failed, ItemSet, Job, Outcome, Responses, Scored
from evomerge.recipe import uniform
from evomerge.workers.rota import Rota, Round, Share, cut, merged

RECIPE = uniform(("a", "b"), layers=2, dtype="float32")

item_sets = st.dictionaries(
    st.sampled_from("abc"), st.sets(st.integers(0, 40), min_size=1).map(lambda ids: tuple(sorted(ids))), min_size=1
).map(ItemSet.of)


def job(candidate: int, items: ItemSet, *, screened: bool = False) -> Job:
    return Job(candidate=candidate, phase="search", recipe=RECIPE, items=items, screened=screened)


def answer(job: Job) -> Scored:
    return Scored(
        candidate=job.candidate,
        phase=job.phase,
        responses=tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple(float(job.candidate + i) for i in ids))
            for task, ids in job.items.tasks
        ),
        seconds={"forward": float(len(job.items))},
        tokens={task: len(ids) for task, ids in job.items.tasks},
        rewritten=0.5,
    )


def failure(job: Job) -> Failed:
    return Failed(candidate=job.candidate, phase=job.phase, stage="worker", reason="died", retry=True)


def taken(rota: Rota, held: Round | None = None) -> Share:
    share = rota.next(held)
    assert share is not None
    return share


TEN = ItemSet.of({"t": tuple(range(10))})


@given(items=item_sets, size=st.integers(1, 30))
def test_shards_are_nearly_equal_hold_every_item_once_and_are_not_cut_again(items: ItemSet, size: int) -> None:
    shards = cut(items, size)
    places = [(task, item) for shard in shards for task, ids in shard.tasks for item in ids]
    assert places == [(task, item) for task, ids in items.tasks for item in ids]
    lengths = [len(shard) for shard in shards]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(shards) == -(-len(items) // size)
    assert all(cut(shard, size) == (shard,) for shard in shards)


def test_without_a_size_nothing_is_cut() -> None:
    assert cut(TEN, None) == (TEN,)


@given(items=item_sets, size=st.integers(1, 30), order=st.randoms())
def test_shards_come_to_what_the_whole_comes_to(items: ItemSet, size: int, order: Random) -> None:
    answers = [answer(job(3, shard)) for shard in cut(items, size)]
    order.shuffle(answers)
    assert merged(answers) == answer(job(3, items))


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    shard=st.none() | st.integers(1, 12),
    workers=st.integers(1, 5),
    data=st.data(),
)
def test_every_job_is_answered_once_whatever_befalls_the_workers(
    sizes: list[int], shard: int | None, workers: int, data: st.DataObject
) -> None:
    """Workers finish in any order, give back what they did not begin, and die; what died is handed in again."""
    rota = Rota(shard)
    found: dict[int, Outcome] = {}
    jobs = {number: job(number, ItemSet.of({"t": tuple(range(size))})) for number, size in enumerate(sizes)}
    for each in jobs.values():
        rota.add(each)
    held: list[Round | None] = [None] * workers
    at: list[deque[Share]] = [deque() for _ in range(workers)]
    troubles = 4
    while len(found) < len(jobs):
        for worker in range(workers):
            while len(at[worker]) < 2 and (share := rota.next(held[worker])) is not None:
                held[worker] = share.round
                at[worker].append(share)
        busy = [worker for worker in range(workers) if at[worker]]
        worker = data.draw(st.sampled_from(busy), label="worker")
        outcome: Outcome | None = None
        fate = data.draw(st.sampled_from(["answer", "die", "cut off"]), label="fate") if troubles else "answer"
        troubles -= fate != "answer"
        share = at[worker].popleft()
        if fate == "answer":
            outcome = rota.done(share, answer(share.job))
        else:
            for waiting in reversed(at[worker]):
                rota.give_back(waiting)
            at[worker].clear()
        if fate == "cut off":
            rota.give_back(share)  # it holds what it held
        elif fate == "die":
            held[worker] = None
            if rota.done(share, failure(share.job)) is not None:
                rota.add(jobs[share.job.candidate])
        if outcome is not None:
            assert outcome.candidate not in found
            found[outcome.candidate] = outcome
    assert found == {number: answer(each) for number, each in jobs.items()}
    assert len(rota) == 0


def test_whole_jobs_go_out_in_their_order() -> None:
    rota = Rota(None)
    for number in range(3):
        rota.add(job(number, TEN))
    held = None
    for number in range(3):
        share = taken(rota, held)
        held = share.round
        assert (share.job.candidate, share.job.items) == (number, TEN)
        assert rota.done(share, answer(share.job)) == answer(job(number, TEN))
    assert rota.next(held) is None


def test_a_worker_stays_with_its_candidate_then_begins_a_new_one_then_helps_where_most_is_left() -> None:
    rota = Rota(2)
    first, second = job(0, ItemSet.of({"t": tuple(range(4))})), job(1, TEN)
    rota.add(first)
    rota.add(second)
    rota.add(job(2, ItemSet.of({"t": (0, 1, 2, 3, 4, 5)})))
    mine = taken(rota)
    rota.done(mine, answer(mine.job))
    theirs, others = taken(rota), taken(rota)
    assert [theirs.job.candidate, others.job.candidate] == [1, 2]
    assert taken(rota, mine.round).job.candidate == 0  # its own
    assert rota.next(mine.round) is None  # nobody's first shard was answered
    rota.done(theirs, answer(theirs.job))
    rota.done(others, answer(others.job))
    assert taken(rota, mine.round).job.candidate == 1


def test_only_the_first_shard_is_screened() -> None:
    rota = Rota(5)
    rota.add(job(0, TEN, screened=True))
    first = taken(rota)
    assert first.job.screened
    assert not taken(rota, first.round).job.screened


def test_a_shard_that_fails_fails_the_job_once_and_drops_the_rest() -> None:
    rota = Rota(2)
    rota.add(job(0, TEN))
    first = taken(rota)
    rota.done(first, answer(first.job))
    one, two = taken(rota, first.round), taken(rota)
    assert rota.done(one, failure(one.job)) == failure(job(0, TEN))
    assert len(rota) == 0
    assert rota.done(two, answer(two.job)) is None
    rota.give_back(Share(first.round, first.job))
    assert rota.next(first.round) is None


@pytest.mark.parametrize("shard", [None, 5])
def test_a_share_that_is_given_back_goes_out_first(shard: int | None) -> None:
    rota = Rota(shard)
    rota.add(job(0, TEN, screened=True))
    rota.add(job(1, TEN))
    share = taken(rota)
    rota.give_back(share)
    again = taken(rota)
    assert again.job == share.job
