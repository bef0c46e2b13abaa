from __future__ import annotations

from evomerge.workers.ray_nodes import Nodes


def nodes(*names: str) -> Nodes:
    found = Nodes()
    for name in names:
        found.seen(name)
    return found


def test_three_different_faults_in_a_row_retire_a_node() -> None:
    found = nodes("a", "b")
    assert [found.fault("a", what) for what in (1, 2, 3)] == [False, False, True]
    assert found.selector == {"ray.io/node-id": "!in(a)"}


def test_one_candidate_that_kills_its_workers_is_no_proof_against_a_node() -> None:
    found = nodes("a", "b")
    assert not any(found.fault("a", 7) for _ in range(9))
    assert found.selector == {}


def test_a_success_clears_the_record() -> None:
    found = nodes("a", "b")
    found.fault("a", 1)
    found.fault("a", 2)
    found.fine("a")
    assert not found.fault("a", 3)


def test_a_certain_fault_is_enough() -> None:
    assert nodes("a", "b").fault("a", "start", certain=True)


def test_the_last_node_stays() -> None:
    found = nodes("a", "b")
    assert found.fault("a", "start", certain=True)
    assert not found.fault("b", "start", certain=True)
    assert found.retired == {"a"}
    gone = nodes("a", "b")
    gone.gone("b")
    assert not gone.fault("a", "start", certain=True)
