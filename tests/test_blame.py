from __future__ import annotations

import random

from evomerge.blame import Blame


def lose(blame: Blame, key: int, times: int, stage: str = "worker") -> None:
    for _ in range(times):
        blame.note(key, "failed", stage)


def score(blame: Blame, keys: range) -> None:
    for key in keys:
        blame.note(key, "scored", "")


def test_two_dead_workers_are_enough_where_workers_live() -> None:
    blame = Blame()
    score(blame, range(20))
    lose(blame, 99, 1)
    assert not blame.guilty(99)
    lose(blame, 99, 1, "timeout")
    assert blame.guilty(99)


def test_two_are_enough_where_nothing_ever_worked_and_three_after_one_other_death() -> None:
    blame = Blame()
    lose(blame, 98, 1)
    lose(blame, 99, 2)
    assert blame.guilty(99)
    score(blame, range(20))
    assert not blame.guilty(99)
    lose(blame, 99, 1)
    assert blame.guilty(99)


def test_where_workers_die_anyway_more_is_needed_and_five_are_always_enough() -> None:
    blame = Blame()
    score(blame, range(80))
    for key in range(100, 120):
        lose(blame, key, 1)
    lose(blame, 99, 3)
    assert not blame.guilty(99)
    lose(blame, 99, 2)
    assert blame.guilty(99)


def test_a_success_ends_the_row() -> None:
    blame = Blame()
    for _ in range(10):
        lose(blame, 1, 1)
        blame.note(1, "scored", "")
    assert not blame.guilty(1)


def test_nodes_that_vanish_charge_nobody_for_long() -> None:
    blame = Blame()
    lose(blame, 1, 7, "node")
    assert not blame.guilty(1)
    lose(blame, 1, 1, "node")
    assert blame.guilty(1)


def test_drivers_that_end_make_suspect_but_never_guilty() -> None:
    blame = Blame()
    for number in range(20):
        assert blame.suspect(1) == (number >= 2)
        blame.note(1, "lost", "")
    assert not blame.guilty(1)
    blame.note(1, "scored", "")
    assert not blame.suspect(1)


def test_in_chaos_hardly_anyone_is_charged_without_cause() -> None:
    draw, charged = random.Random(0), 0
    for _ in range(50):
        blame = Blame()
        open_ = list(range(200))
        while open_:
            key = open_.pop(0)
            if draw.random() >= 0.1:
                blame.note(key, "scored", "")
                continue
            lose(blame, key, 1)
            if blame.guilty(key):
                charged += 1
            else:
                open_.append(key)
    assert charged <= 5  # of 10,000
