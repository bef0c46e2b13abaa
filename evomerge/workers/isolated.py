"""A job in a process of its own, whose death is seen: for candidates that may have ended the driver itself."""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from evomerge.errors import DiskError, RunError
from evomerge.outcome import Job, Outcome
from evomerge.workers.base import StartFailure, WorkerFactory, failed, one_line, run_safely

__all__ = ["run_isolated"]


def run_isolated(factory: WorkerFactory, job: Job) -> Outcome:
    """Makes a worker in a new process and does one job there.

    A death there is the candidate's fault, and final; so is the loss of what was there when the worker was made, such
    as a server.

    Raises:
        EvomergeError: the worker cannot start.
        DiskError: its disk is full.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, factory, job), daemon=True)
    process.start()
    theirs.close()
    reply: Outcome | StartFailure | None = None
    with suppress(EOFError):  # it died
        reply = ours.recv()
    process.join()
    if isinstance(reply, StartFailure):
        raise reply.to_error()
    if reply is not None:
        return reply
    end = process.exitcode or 0
    how = f"signal {signal.Signals(-end).name}" if end < 0 else f"exit code {end}"
    reason = f"ended a process of its own ({how}), after drivers that tried it ended as well"
    return failed(job, reason, "isolated", retry=False)


def _serve(replies: Connection, factory: WorkerFactory, job: Job) -> None:
    with suppress(OSError):  # where memory runs out, the kernel is to take this process and not the driver
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    replies.send(_reply(factory, job))


def _reply(factory: WorkerFactory, job: Job) -> Outcome | StartFailure:
    try:
        worker = factory()
    except Exception as error:
        return StartFailure.of(error)
    try:
        return run_safely(worker, job, "isolated")
    except DiskError as error:
        return StartFailure.of(error)
    except RunError as error:
        reason = f"ended the run alone, after drivers that tried it ended as well: {one_line(error)}"
        return failed(job, reason, "isolated", retry=False)
