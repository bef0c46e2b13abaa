"""The worker of a real run: writes a recipe into a live model, scores it, and keeps quiet about it.

Heavy imports happen in the constructor, so that importing this module costs nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from traceback import format_exc
from typing import TextIO, cast

from evomerge.config import PoolConfig, load_plugins
from evomerge.errors import DiskError, RunError, require_installed
from evomerge.lasting import Lasting
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Scored, Stage
from evomerge.secrecy import Redacting
from evomerge.workers.base import WorkerInfo, WorkerSpec, one_line
from evomerge.workers.rota import cut, merged
from evomerge.workers.versions import versions_here

__all__ = ["MergeWorker", "quiet"]

_NOISY = ("lm_eval", "lm-eval", "transformers", "datasets", "accelerate", "huggingface_hub")


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
        self._shard = spec.engine.shard_size
        for package, extra in (
            ("torch", "merge"),
            ("transformers", "merge"),
            ("lm_eval", "eval"),
            ("accelerate", "eval"),
        ):
            require_installed(package, extra)
        with quiet(self._log):
            import torch

            from evomerge.engines.build import build_engine
            from evomerge.engines.calibration import calibrate
            from evomerge.engines.runner import EvalRunner
            from evomerge.engines.screening import Screen
            from evomerge.merging.configured import configured_pool
            from evomerge.merging.gram import products_by_place
            from evomerge.merging.staging import check_staged
            from evomerge.merging.variants import prepare

            torch.set_num_threads(spec.engine.threads)
            load_plugins(spec.plugins, spec.plugin_digests)
            source = _staged(spec)
            self._pool = configured_pool(source)
            check_staged(self._pool, spec.contents if spec.stage else {})
            calibrate(self._pool, spec.statistics, spec.engine)
            for built in prepare(self._pool, spec.transforms):
                print(built)
            self._engine = build_engine(
                self._pool,
                source,
                spec.engine,
                plugins=spec.plugins,
                depth=spec.depth,
                workers=spec.workers,
                gpu=spec.gpu,
            )
            self._runner = EvalRunner(self._engine, spec.fitness, spec.seed)
            self._screen = None if spec.fitness.screen is None else Screen(spec.fitness.screen, self._engine)
            self._products = products_by_place(self._pool) if spec.products else None

    def info(self) -> WorkerInfo:
        """Tasks, device, dtype, versions and models of this worker, and what it measured of them."""
        return WorkerInfo(
            sizes=self._runner.sizes(),
            digests=self._runner.digests(),
            duplicates=self._runner.duplicates(),
            device=self._engine.device,
            dtype=self._engine.dtype,
            versions=versions_here(),
            pool_digest=self._pool.digest,
            screen="" if self._screen is None else self._screen.digest,
            products=self._products,
        )

    def run(self, job: Job) -> Outcome:
        """Makes the weights, looks whether they are worth it, and scores them; a failure says at which stage."""
        stage: Stage = "materialize"
        with quiet(self._log):
            try:
                load = self._engine.load(job.recipe, exact=job.phase == "confirm")
                looked: dict[str, float] = {}
                if self._screen is not None and job.screened:
                    stage = "screen"
                    looked["screen"] = self._screen.check()
                stage = "evaluate"
                whole = merged([self._scored(job, items) for items in cut(job.items, self._shard)])
            except (RunError, DiskError):  # what all candidates need is gone
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskError(f"{self._name}: {one_line(error)}; free space, and run again to go on") from error
                print(f"candidate {job.candidate} ({job.phase}) failed to {stage}:\n{format_exc()}")
                return Failed(
                    candidate=job.candidate,
                    phase=job.phase,
                    round=job.round,
                    stage=stage,
                    reason=_reason(error),
                    worker=self._name,
                )
        return replace(
            whole, seconds={"materialize": load.seconds, **looked, **whole.seconds}, rewritten=load.rewritten_share
        )

    def _scored(self, job: Job, items: ItemSet) -> Scored:
        """Some items of a job, answered by the live model."""
        responses, seconds = self._runner.score(items)
        return Scored(
            candidate=job.candidate,
            phase=job.phase,
            round=job.round,
            responses=responses,
            seconds=seconds,
            tokens=self._runner.tokens,
            worker=self._name,
        )


def _staged(spec: WorkerSpec) -> PoolConfig:
    """Where the worker finds its models."""
    if spec.stage is None:
        return spec.pool
    from evomerge.merging.staging import staged

    return staged(spec.pool, spec.contents, spec.stage)


@contextmanager
def quiet(log: Path | None) -> Iterator[None]:
    """Sends prints, progress bars, warnings and third-party log records to a file; warnings never become errors.

    A log that cannot be written fails nothing.
    """
    with _opened(log) as opened, ExitStack() as undo:
        lasting = cast("TextIO", Lasting(opened))  # nor must one that fills up
        undo.callback(lasting.flush)
        file = cast("TextIO", Redacting(lasting))
        for change in (redirect_stdout(file), redirect_stderr(file), warnings.catch_warnings()):
            undo.enter_context(change)
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
    """The log file, or nowhere if it cannot be opened: a log disk that refuses must not fail a candidate."""
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
