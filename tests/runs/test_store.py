from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import StoreError
from evomerge.outcome import ItemSet, Responses
from evomerge.runs import RunStore


def test_everything_comes_back_as_it_was(filled: RunStore, samples: Any) -> None:
    folder = filled.folder
    filled.set_meta("state", "stopped")
    filled.close()
    with RunStore.open(folder) as store:
        assert store.manifest == {"seed": 3, "experiment": {"name": "sample"}}
        assert store.meta("state") == "stopped"
        assert store.meta("never set") is None
        assert store.candidates() == [samples.candidate(number) for number in range(4)]
        (result,) = store.results()
        assert (result.candidate, result.seq, result.responses) == (0, 0, samples.scored(0).responses)
        assert (result.items_digest, result.seconds, result.worker) == (samples.items.digest, {"forward": 0.25}, "w1")
        assert result.rewritten == 0.75
        (failure,) = store.failures()
        assert (failure.candidate, failure.stage, failure.reason) == (1, "evaluate", "NaN in layer 3")


def test_attempts_tell_what_became_of_them(filled: RunStore) -> None:
    filled.close()
    with RunStore.open(filled.folder) as store:
        scored, failed, lost = store.attempts()
    assert [scored.status, failed.status, lost.status] == ["scored", "failed", "lost"]
    assert (failed.stage, failed.reason) == ("evaluate", "NaN in layer 3")
    assert scored.ended_at is not None
    assert scored.started_at <= scored.ended_at
    assert lost.reason == "the driver ended"


def test_a_failure_that_is_not_final_leaves_the_candidate_open(filled: RunStore, samples: Any) -> None:
    filled.start_attempt(samples.job(3))
    assert filled.record(samples.failed(3), job=samples.job(3))
    assert [failure.candidate for failure in filled.failures()] == [1]
    filled.start_attempt(samples.job(3, attempt=2))
    assert filled.record(samples.scored(3), job=samples.job(3, attempt=2))
    assert 3 in filled.responses("search")


def test_a_second_result_is_a_duplicate_and_changes_nothing(filled: RunStore, samples: Any) -> None:
    filled.start_attempt(samples.job(0, attempt=2))
    before = filled.results()
    assert not filled.record(samples.scored(0, shift=0.5), job=samples.job(0, attempt=2))
    assert filled.results() == before
    assert [a.status for a in filled.attempts() if a.candidate == 0] == ["scored", "scored"]


def test_what_was_given_up_stays_given_up(filled: RunStore, samples: Any) -> None:
    assert not filled.record(samples.scored(1), job=samples.job(1))
    assert 1 not in filled.responses("search")


def test_what_was_scored_cannot_fail_afterwards(filled: RunStore, samples: Any) -> None:
    filled.start_attempt(samples.job(0, attempt=2))
    assert not filled.record(samples.failed(0), job=samples.job(0, attempt=2), final=True)
    assert [failure.candidate for failure in filled.failures()] == [1]


def test_phases_are_accounted_apart_and_share_one_order(filled: RunStore, samples: Any) -> None:
    filled.start_attempt(samples.job(0, "confirm"))
    assert filled.record(samples.scored(0, "confirm"), job=samples.job(0, "confirm"))
    assert [(r.phase, r.seq) for r in filled.results()] == [("search", 0), ("confirm", 1)]
    assert [r.phase for r in filled.results("confirm")] == ["confirm"]


def test_rounds_of_a_candidate_add_up(filled: RunStore, samples: Any) -> None:
    more = ItemSet.of({"rev": (8,), "sort": (1,)})
    job = replace(samples.job(0, attempt=2), items=more, round=1)
    responses = tuple(
        Responses(task=task, metric="acc", items=ids, values=(0.5,) * len(ids)) for task, ids in more.tasks
    )
    filled.start_attempt(job)
    assert filled.record(replace(samples.scored(0), round=1, responses=responses), job=job)
    assert not filled.record(replace(samples.scored(0), round=1, responses=responses), job=job)
    assert [(r.candidate, r.round) for r in filled.results()] == [(0, 0), (0, 1)]
    (rev, sort) = filled.responses("search")[0]
    before = {r.task: r for r in samples.scored(0).responses}
    assert rev.items == (*before["rev"].items, 8)
    assert dict(zip(sort.items, sort.values, strict=True))[1] == 0.5


def test_a_failure_in_a_later_round_fails_the_candidate(filled: RunStore, samples: Any) -> None:
    job = replace(samples.job(0, attempt=2), round=1)
    filled.start_attempt(job)
    assert filled.record(replace(samples.failed(0), round=1), job=job, final=True)
    assert 0 not in filled.responses("search")
    assert [result.candidate for result in filled.results()] == [0]


def test_an_outcome_of_another_round_answers_nothing(filled: RunStore, samples: Any) -> None:
    with pytest.raises(ValueError, match=r"round \(2, 'search', 0\); got that of \(2, 'search', 1\)"):
        filled.record(replace(samples.scored(2), round=1), job=samples.job(2))


def test_a_copy_counts_as_a_result(filled: RunStore, samples: Any) -> None:
    filled.add_candidates([samples.candidate(9, like=0)])
    assert filled.copy_result(samples.job(9), (0, 0))
    assert not filled.copy_result(samples.job(9), (0, 0))
    source, copy = filled.results("search")
    assert (copy.responses, copy.items_digest) == (source.responses, source.items_digest)
    assert (copy.seq, copy.cached_from, copy.seconds, copy.rewritten) == (1, 0, {}, None)


@pytest.mark.parametrize(("candidate", "source"), [(2, 0), (9, 1), (9, 77)])
def test_a_copy_needs_an_equal_recipe_and_a_result(filled: RunStore, samples: Any, candidate: int, source: int) -> None:
    filled.add_candidates([samples.candidate(9, like=1)])
    with pytest.raises(StoreError, match="another recipe or no result"):
        filled.copy_result(samples.job(candidate), (source, 0))
    assert len(filled.results()) == 1


def test_the_same_candidates_again_change_nothing(filled: RunStore, samples: Any) -> None:
    filled.add_candidates([samples.candidate(number) for number in (2, 3, 4)])
    assert [candidate.id for candidate in filled.candidates()] == [0, 1, 2, 3, 4]


def test_a_different_candidate_of_the_same_number_is_refused_with_both(filled: RunStore, samples: Any) -> None:
    changed = replace(samples.candidate(2), slot=7)
    with pytest.raises(StoreError, match=r"candidate 2 .*slot: expected 2, got 7"):
        filled.add_candidates([samples.candidate(4), changed])
    assert len(filled.candidates()) == 4, "all or none"


def test_an_attempt_starts_once_and_ends_only_if_it_started(filled: RunStore, samples: Any) -> None:
    with pytest.raises(StoreError, match="candidate 2, search, attempt 1: expected the number of a new attempt"):
        filled.start_attempt(samples.job(2))
    with pytest.raises(StoreError, match="candidate 3, search, attempt 1: expected an attempt that was started"):
        filled.record(samples.scored(3), job=samples.job(3))
    assert 3 not in filled.responses("search")


def test_an_outcome_must_answer_its_job(filled: RunStore, samples: Any) -> None:
    scored, job = samples.scored(2), samples.job(2)
    partial = replace(scored, responses=scored.responses[:1])
    other = Responses(task="sort", metric="acc", items=(0, 3), values=(0.0, 1.0))
    endless = Responses(task="sort", metric="acc", items=(0, 2), values=(0.0, math.nan))
    for broken in (partial, replace(scored, responses=(scored.responses[0], other))):
        with pytest.raises(StoreError, match="expected the items"):
            filled.record(broken, job=job)
    with pytest.raises(StoreError, match="sort/acc must be finite"):
        filled.record(replace(scored, responses=(scored.responses[0], endless)), job=job)
    with pytest.raises(ValueError, match="got that of"):
        filled.record(samples.scored(3), job=job)
    assert filled.record(scored, job=job)


def test_two_metrics_of_one_task_are_kept_apart(filled: RunStore, samples: Any) -> None:
    scored = samples.scored(2)
    both = tuple(replace(r, metric=metric) for r in scored.responses for metric in ("acc", "acc_norm"))
    filled.record(replace(scored, responses=both), job=samples.job(2))
    assert filled.responses("search")[2] == both


def test_readers_see_a_live_run_and_then_nothing_of_what_follows(filled: RunStore, samples: Any) -> None:
    with RunStore.read(filled.folder) as reader:
        filled.record(samples.scored(2), job=samples.job(2))
        assert len(reader.results()) == 1
        with pytest.raises(StoreError, match="read-only"):
            reader.set_meta("state", "mine")
    with RunStore.read(filled.folder) as reader:
        assert [result.candidate for result in reader.results()] == [0, 2]
        assert reader.archive() == filled.archive()


def test_another_process_reads_a_live_run(filled: RunStore) -> None:
    code = "import sys; from pathlib import Path; from evomerge.runs import RunStore; "
    code += "print(len(RunStore.read(Path(sys.argv[1])).results()), 'torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(filled.folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["1", "False", "False"]


def test_a_closed_run_is_one_file(filled: RunStore) -> None:
    filled.close()
    filled.close()
    assert sorted(path.name for path in filled.folder.iterdir()) == ["run.db", "run.lock"]


def test_create_refuses_a_folder_that_holds_a_run(filled: RunStore) -> None:
    filled.close()
    with pytest.raises(StoreError, match="expected no run here; got one; resume it"):
        RunStore.create(filled.folder, {})
    with RunStore.open(filled.folder) as store:
        assert len(store.candidates()) == 4


def test_create_takes_a_folder_with_other_files_and_the_remains_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "run.db.new").write_bytes(b"half a database")
    with RunStore.create(tmp_path, {"seed": 1}) as store:
        assert store.manifest == {"seed": 1}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "run.db.new").exists()


def test_create_leaves_no_run_when_the_manifest_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        RunStore.create(tmp_path, {"seed": math.nan})
    with pytest.raises(StoreError, match="expected a run"):
        RunStore.read(tmp_path)
    RunStore.create(tmp_path, {}).close()


@pytest.mark.parametrize("method", [RunStore.open, RunStore.read])
class TestWhatIsNoRun:
    def test_no_folder(self, tmp_path: Path, method: Any) -> None:
        with pytest.raises(StoreError, match="expected a run"):
            method(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_no_database(self, tmp_path: Path, method: Any) -> None:
        (tmp_path / "run.db").write_text("this is a text file, long enough to hold a header" * 50)
        with pytest.raises(StoreError, match="damaged or not a database"):
            method(tmp_path)

    def test_another_programs_database(self, tmp_path: Path, method: Any) -> None:
        db = sqlite3.connect(tmp_path / "run.db")
        db.execute("CREATE TABLE t (x)")
        db.close()
        with pytest.raises(StoreError, match="got another program's"):
            method(tmp_path)

    def test_a_newer_format(self, filled: RunStore, method: Any) -> None:
        filled.close()
        db = sqlite3.connect(filled.folder / "run.db")
        db.execute("PRAGMA user_version = 9")
        db.close()
        with pytest.raises(StoreError, match="expected run format 5; got 9"):
            method(filled.folder)

    def test_a_damaged_database(self, filled: RunStore, method: Any) -> None:
        filled.close()
        path = filled.folder / "run.db"
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        with pytest.raises(StoreError, match="damaged"), method(filled.folder) as store:
            store.archive()


def test_create_refuses_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="expected a folder; got a file"):
        RunStore.create(tmp_path / "run", {})


def test_notes_of_generations_come_back_in_their_order(filled: RunStore) -> None:
    for generation in (10, 2, 0):
        filled.note("algorithm", generation, {"sigma": generation / 8})
    filled.note("algorithm", 2, {"sigma": 0.5})
    filled.set_meta("algorithms", "others")
    told = {"0": {"sigma": 0.0}, "2": {"sigma": 0.5}, "10": {"sigma": 1.25}}
    assert list(filled.notes("algorithm").items()) == list(told.items())
    assert filled.notes("audit") == {}


def test_create_refuses_a_place_where_no_folder_can_be_made() -> None:
    with pytest.raises(StoreError, match="/proc/no/run: expected a place where folders can be made; got No such file"):
        RunStore.create(Path("/proc/no/run"), {})


class TestArchive:
    def test_it_holds_what_a_run_determines_and_nothing_else(self, filled: RunStore) -> None:
        data = json.loads(filled.archive())
        assert sorted(data) == ["candidates", "failures", "format", "results"]
        assert sorted(data["results"][0]) == ["candidate", "items_digest", "phase", "responses", "round", "tokens"]
        assert data["candidates"][1]["genome"] == [1 / 7, 0.1 + 0.2]
        assert data["failures"] == [{"candidate": 1, "phase": "search", "stage": "evaluate"}]
        assert str(filled.folder) not in filled.archive().decode()

    def test_order_workers_and_attempts_leave_no_trace(self, tmp_path: Path, samples: Any) -> None:
        archives = []
        for order, tries in [((0, 1, 2), 1), ((2, 0, 1), 3)]:
            with RunStore.create(tmp_path / str(tries), {}) as store:
                store.add_candidates([samples.candidate(number) for number in order])
                for number in order:
                    for attempt in range(1, tries + 1):
                        store.start_attempt(samples.job(number, attempt=attempt))
                    done = replace(samples.scored(number), worker=f"w{tries}", seconds={"forward": float(tries)})
                    store.record(done, job=samples.job(number, attempt=tries))
                archives.append(store.archive())
        assert archives[0] == archives[1]

    def test_one_value_makes_a_difference(self, filled: RunStore, tmp_path: Path, samples: Any) -> None:
        with RunStore.create(tmp_path / "other", {}) as store:
            store.add_candidates([samples.candidate(number) for number in range(4)])
            store.start_attempt(samples.job(0))
            store.start_attempt(samples.job(1))
            store.record(samples.scored(0, shift=1e-16 * 2), job=samples.job(0))
            store.record(samples.failed(1), job=samples.job(1), final=True)
            assert store.archive() != filled.archive()


def test_a_commit_waits_for_the_disk(store: RunStore) -> None:
    """No test can cut the power; the setting that survives it is checked instead."""
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
