"""The worker of a real run, on the family of tiny models that the project ships."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.config import (
    FitnessConfig,
    ItemsConfig,
    ObjectiveConfig,
    PoolConfig,
    RayConfig,
    ScreenConfig,
    SerialConfig,
    TransformersConfig,
)
from evomerge.errors import DiskError, MergeError, PoolError, RunError
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Scored
from evomerge.recipe import Hop, uniform
from evomerge.workers import SerialExecutor, WorkerSpec, build_executor
from evomerge.workers.base import StartFailure, one_line
from evomerge.workers.candidate import MergeWorker
from evomerge.workers.rota import cut, merged

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "experiments" / "quickstart" / "models"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    return WorkerSpec(
        pool=PoolConfig(base=MODELS / "base", experts={"rev": MODELS / "rev", "sort": MODELS / "sort"}),
        fitness=FitnessConfig(
            tasks=(ROOT / "fitness" / "tasks" / "quickstart",),
            objectives=(ObjectiveConfig(name="rev", task="quickstart_rev"),),
            items=ItemsConfig(search=8, confirm=8),
        ),
        engine=TransformersConfig(),
        seed=0,
        log=tmp_path_factory.mktemp("logs"),
    )


@pytest.fixture(scope="module")
def worker(spec: WorkerSpec) -> MergeWorker:
    return MergeWorker(spec)


@pytest.fixture(scope="module")
def job(worker: MergeWorker) -> Job:
    recipe = uniform(("rev",), layers=worker._pool.layers, dtype=worker._pool.dtype)
    return Job(candidate=0, phase="search", recipe=recipe, items=ItemSet.of({"quickstart_rev": tuple(range(40))}))


def test_it_merges_and_scores(worker: MergeWorker, job: Job) -> None:
    expert = worker.run(job)
    base = worker.run(replace(job, recipe=replace(job.recipe, sources=("base",))))
    assert isinstance(expert, Scored)
    assert isinstance(base, Scored)
    assert sum(expert.responses[0].values) > sum(base.responses[0].values) + 5
    assert sorted(expert.seconds) == ["evaluate", "forward", "materialize"]
    again = worker.run(job)
    assert isinstance(again, Scored)
    assert replace(again, seconds=expert.seconds) == expert


@pytest.mark.parametrize("shard_size", [7, 40])
def test_shards_are_answered_alike_by_one_worker_and_by_many(
    worker: MergeWorker, job: Job, spec: WorkerSpec, shard_size: int
) -> None:
    alone = MergeWorker(replace(spec, engine=TransformersConfig(shard_size=shard_size))).run(job)
    shared = merged([_scored(worker.run(replace(job, items=items))) for items in reversed(cut(job.items, shard_size))])
    assert isinstance(alone, Scored)
    assert replace(alone, seconds={}, rewritten=None, worker="") == replace(
        shared, seconds={}, rewritten=None, worker=""
    )


def _scored(outcome: Outcome) -> Scored:
    assert isinstance(outcome, Scored)
    return outcome


def test_it_prepares_what_candidates_may_ask_for(
    spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    MergeWorker(replace(spec, transforms=("star:30",), log=tmp_path / "logs"))
    (folder,) = (path for path in (tmp_path / "variants").iterdir() if path.is_dir())
    assert {file.stem for file in folder.iterdir()} == {"rev", "sort"}
    (log,) = (tmp_path / "logs").iterdir()
    assert "transform star:30 of all experts: built in " in log.read_text()


def test_it_tells_what_it_found(worker: MergeWorker) -> None:
    info = worker.info()
    assert info.sizes == {"quickstart_rev": 512}
    assert (info.device, info.dtype) == ("cpu", worker._pool.dtype)
    assert info.pool_digest == worker._pool.digest
    assert {"evomerge", "python", "torch", "transformers", "lm_eval"} <= set(info.versions)


def test_failures_name_their_stage_and_the_next_job_is_done(worker: MergeWorker, job: Job, spec: WorkerSpec) -> None:
    unknown = worker.run(replace(job, recipe=replace(job.recipe, sources=("nobody",))))
    beyond = worker.run(replace(job, items=ItemSet.of({"quickstart_rev": (600,)})))
    assert isinstance(unknown, Failed)
    assert isinstance(beyond, Failed)
    assert (unknown.stage, beyond.stage) == ("materialize", "evaluate")
    assert "nobody" in unknown.reason
    assert "600" in beyond.reason
    assert "\n" not in unknown.reason + beyond.reason
    assert not unknown.retry
    assert isinstance(worker.run(job), Scored)
    assert spec.log is not None
    (log,) = spec.log.iterdir()
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")]
)
def test_running_out_of_memory_is_called_by_its_name(
    worker: MergeWorker, job: Job, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhaust(_: object, *, exact: bool) -> None:
        raise error

    monkeypatch.setattr(worker, "_engine", type("Exhausted", (), {"load": staticmethod(exhaust)}))
    failed = worker.run(job)
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("out of memory; a smaller engine.batch_size needs less")


def test_it_keeps_quiet(spec: WorkerSpec, job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    MergeWorker(spec).run(job)
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_fails_nothing(spec: WorkerSpec, job: Job, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    assert isinstance(MergeWorker(replace(spec, log=tmp_path / "logs")).run(job), Scored)


def test_a_log_disk_that_fills_up_fails_nothing(spec: WorkerSpec, job: Job, tmp_path: Path) -> None:
    worker = MergeWorker(replace(spec, log=tmp_path))
    (log,) = tmp_path.iterdir()
    log.unlink()
    log.symlink_to("/dev/full")
    assert isinstance(worker.run(job), Scored)
    unknown = worker.run(replace(job, recipe=replace(job.recipe, sources=("nobody",))))  # which is told to the log
    assert isinstance(unknown, Failed)
    assert unknown.stage == "materialize"


@pytest.mark.parametrize("error", [DiskError("no room"), OSError(errno.ENOSPC, "no room")])
def test_a_full_disk_charges_no_candidate(
    worker: MergeWorker, job: Job, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_: object, *, exact: bool) -> None:
        raise error

    monkeypatch.setattr(worker, "_engine", type("Full", (), {"load": staticmethod(refuse)}))
    with pytest.raises(DiskError, match="no room"):
        worker.run(job)


def test_models_that_are_not_there_stop_the_start(spec: WorkerSpec, tmp_path: Path) -> None:
    pool = PoolConfig(base=tmp_path / "nowhere", experts=spec.pool.experts)
    with pytest.raises(PoolError, match="nowhere"):
        build_executor(SerialConfig(kind="serial"), replace(spec, pool=pool)).start()


def test_the_configuration_chooses_the_executor(spec: WorkerSpec) -> None:
    assert isinstance(build_executor(SerialConfig(kind="serial"), spec), SerialExecutor)
    assert type(build_executor(RayConfig(kind="ray"), spec)).__name__ == "RayExecutor"
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = "import sys, evomerge.workers; print({'torch', 'ray', 'transformers', 'lm_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_an_error_crosses_a_process_boundary_whole() -> None:
    from evomerge.errors import ConfigError, Fault

    error = ConfigError("run.yaml", [Fault(path="$.seed", message="expected >= 0", line=3)])
    again = pickle.loads(pickle.dumps(StartFailure.of(error))).to_error()
    assert isinstance(again, ConfigError)
    assert (str(again), again.faults, again.source) == (str(error), error.faults, "run.yaml")
    assert type(StartFailure.of(ValueError("x")).to_error()) is RunError


def test_one_line_is_one_line() -> None:
    assert one_line(MergeError("expected a,\n  got b")) == "expected a, got b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 300


def test_broken_paths_are_screened_where_the_job_says_so(spec: WorkerSpec, job: Job, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("#>_dfccgc=cgccfd.")
    screen = ScreenConfig(text=tmp_path / "text.txt")
    worker = MergeWorker(replace(spec, fitness=spec.fitness.model_copy(update={"screen": screen})))
    assert worker.info().screen
    scored = worker.run(replace(job, screened=True))
    assert isinstance(scored, Scored)
    assert scored.seconds["screen"] > 0
    broken = replace(
        job,
        screened=True,
        recipe=replace(job.recipe, path=tuple(Hop(source="rev", layer=layer) for layer in (3, 3, 0))),
    )
    outcome = worker.run(broken)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.retry) == ("screen", False)
    assert "expected a mean loss of at most 3.466 nats" in outcome.reason
    assert isinstance(worker.run(replace(broken, screened=False)), Scored)
