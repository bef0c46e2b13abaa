"""The run folder: what was proposed, tried, measured and lost. Its database needs the standard library only."""

from evomerge.runs.experiment import experiment_of, first_experiment_of
from evomerge.runs.lock import holder
from evomerge.runs.records import Attempt, Candidate, Failure, Kind, Result, Status, check
from evomerge.runs.store import RunStore

__all__ = [
    "Attempt",
    "Candidate",
    "Failure",
    "Kind",
    "Result",
    "RunStore",
    "Status",
    "check",
    "experiment_of",
    "first_experiment_of",
    "holder",
]
