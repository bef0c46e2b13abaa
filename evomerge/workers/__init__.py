"""One job, done somewhere: make a candidate's weights, score them, return a record."""

from evomerge.workers.base import Executor, Worker, WorkerInfo, WorkerSpec
from evomerge.workers.build import build_executor
from evomerge.workers.faulty import Fault, FaultyExecutor
from evomerge.workers.serial import SerialExecutor

__all__ = [
    "Executor",
    "Fault",
    "FaultyExecutor",
    "SerialExecutor",
    "Worker",
    "WorkerInfo",
    "WorkerSpec",
    "build_executor",
]
