"""The worker of a real run: writes a recipe into a live model, scores it, and keeps quiet about it.

Heavy imports happen in the constructor, so that importing this module costs nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from traceback import format_exc
from typing import TextIO

from evomerge import __version__
from evomerge.errors import require_installed
from evomerge.outcome import Failed, Job, Outcome, Scored, Stage
from evomerge.workers.base import WorkerInfo, WorkerSpec, one_line

__all__ = ["MergeWorker", "quiet"]

_NOISY = ("lm_eval", "lm-eval", "transformers", "datasets", "accelerate", "huggingface_hub")
_REPORTED = ("torch", "transformers", "lm_eval", "datasets", "numpy", "safetensors")


class MergeWorker:
    """One live model that becomes one candidate after another.

    Args:
        spec: what to open and how.

    Raises:
        MissingExtraError: torch, transformers or lm-eval is not installed.
        PoolError: the models cannot be read or merged.
        DiskError, MergeError: a transform cannot be prepared.
        TaskError: a task cannot be loaded.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._log = None if spec.log is None else spec.log / f"worker-{self._name}.log"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for package, extra in (
            ("torch", "merge"),
            ("transformers", "merge"),
            ("lm_eval", "eval"),
            ("accelerate", "eval"),
        ):
            require_installed(package, extra)
        with quiet(self._log):
            from evomerge.engines.calibration import calibrate
            from evomerge.engines.runner import EvalRunner
            from evomerge.engines.transformers_engine import TransformersEngine
            from evomerge.merging.configured import configured_pool
            from evomerge.merging.variants import prepare

            self._pool = configured_pool(spec.pool)
            calibrate(self._pool, spec.statistics, spec.engine)
            for built in prepare(self._pool, spec.transforms):
                print(built)
            self._engine = TransformersEngine(self._pool, spec.engine, workers=spec.workers, gpu=spec.gpu)
            self._runner = EvalRunner(self._engine, spec.fitness, spec.seed)

    def info(self) -> WorkerInfo:
        """Tasks, device, dtype, versions and models of this worker."""
        return WorkerInfo(
            sizes=self._runner.sizes(),
            digests=self._runner.digests(),
            device=self._engine.device,
            dtype=self._engine.dtype,
            versions=_versions(),
            pool_digest=self._pool.digest,
        )

    def run(self, job: Job) -> Outcome:
        """Makes the weights and scores them; a failure says at which of the two stages."""
        stage: Stage = "materialize"
        with quiet(self._log):
            try:
                load = self._engine.load(job.recipe, exact=job.phase == "confirm")
                stage = "evaluate"
                responses, seconds = self._runner.score(job.items)
            except Exception as error:
                print(f"candidate {job.candidate} ({job.phase}) failed to {stage}:\n{format_exc()}")
                return Failed(
                    candidate=job.candidate,
                    phase=job.phase,
                    round=job.round,
                    stage=stage,
                    reason=_reason(error),
                    worker=self._name,
                )
        return Scored(
            candidate=job.candidate,
            phase=job.phase,
            round=job.round,
            responses=responses,
            seconds={"materialize": load.seconds, **seconds},
            rewritten=load.rewritten_share,
            worker=self._name,
        )


@contextmanager
def quiet(log: Path | None) -> Iterator[None]:
    """Sends prints, progress bars, warnings and third-party log records to a file; warnings never become errors."""
    with _opened(log) as file, redirect_stdout(file), redirect_stderr(file), warnings.catch_warnings():
        warnings.simplefilter("default")
        handler = logging.StreamHandler(file)
        loggers = [logging.getLogger(name) for name in _NOISY]
        before = [(logger.propagate, logger.handlers[:]) for logger in loggers]
        for logger in loggers:
            logger.propagate, logger.handlers = False, [handler]
        try:
            yield
        finally:
            for logger, (propagate, handlers) in zip(loggers, before, strict=True):
                logger.propagate, logger.handlers = propagate, handlers


def _opened(log: Path | None) -> TextIO:
    """The log file, or nowhere if it cannot be written: a full log disk must not fail a candidate."""
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            return log.open("a", encoding="utf-8", errors="replace")
    except OSError:
        pass
    return open(os.devnull, "w", encoding="utf-8")


def _reason(error: Exception) -> str:
    """One line; running out of memory is named as such, with the remedy."""
    text = one_line(error)
    # torch has an error type of its own for GPUs, and a plain RuntimeError for the CPU
    exhausted = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if exhausted or "can't allocate memory" in text:
        return f"out of memory; a smaller engine.batch_size needs less ({text})"
    return text


def _versions() -> dict[str, str]:
    versions = {"evomerge": __version__, "python": platform.python_version()}
    for package in _REPORTED:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
