"""What a user may write about who scores candidates: this process, or Ray workers. Knows nothing of how they work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Finite, Strict

__all__ = ["ExecutorConfig", "RayConfig", "SerialConfig", "WorkerRange"]


class SerialConfig(Strict):
    """Everything in one process."""

    kind: Literal["serial"]


class WorkerRange(Strict):
    """How many workers a run takes on a cluster that grows and shrinks."""

    min: Annotated[int, Field(ge=1)] = 1
    """With fewer, for `start_timeout_seconds`, the run stops."""
    max: Annotated[int, Field(ge=1)]
    """As many as there is room for, up to this."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: expected at most max, {self.max}; got {self.min}")
        return self


class RayConfig(Strict):
    """Ray actors, one model in each."""

    kind: Literal["ray"]
    workers: Annotated[int, Field(ge=1)] | WorkerRange = 2
    """A number means that many at most, and at least one: they join and leave as the cluster has room."""
    address: str | None = None
    """Ray cluster to join; a local one is started if left out."""
    cpus: Annotated[Finite, Field(gt=0)] = 1.0
    """CPUs per worker."""
    gpus: Annotated[Finite, Field(ge=0)] = 0.0
    """GPUs per worker, all on one node: a fraction shares one, a whole number is one model over so many."""
    memory_gib: Annotated[Finite, Field(gt=0)] | None = None
    """Host memory per worker: Ray places workers by it, and what does not fit is refused before anything starts."""
    stage: Path | None = None
    """A folder on every node's own disk: models are copied there once per node, and mapped from there."""
    job_timeout_seconds: Annotated[Finite, Field(gt=0)] = 1800.0
    """A job that takes longer is stopped and its worker replaced; sooner, once it is known how long jobs take."""
    start_timeout_seconds: Annotated[Finite, Field(gt=0)] = 600.0
    """How long a worker may take to come up, and how long the cluster may have no room for the fewest workers."""

    @property
    def most(self) -> int:
        """Workers at most."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest(self) -> int:
        """Workers at least."""
        return 1 if isinstance(self.workers, int) else self.workers.min

    @field_validator("address")
    @classmethod
    def _is_a_cluster(cls, address: str | None) -> str | None:
        if address in ("", "local"):  # Ray would start one that others can reach
            raise ValueError(f"expected auto or HOST:PORT; got {address!r}; leave it out for this machine alone")
        return address

    @field_validator("cpus", "gpus")
    @classmethod
    def _can_be_counted(cls, amount: float) -> float:
        if amount != round(amount, 4):
            raise ValueError(f"expected at most four digits after the point, as Ray counts; got {amount:g}")
        return amount

    @field_validator("gpus")
    @classmethod
    def _whole_or_shared(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a fraction of one GPU or a whole number; got {gpus:g}")
        return gpus

    @field_validator("stage")
    @classmethod
    def _is_a_place(cls, stage: Path | None) -> Path | None:
        if stage is not None and (not stage.is_absolute() or len(stage.parts) < 3):
            raise ValueError(f"expected an absolute path of a folder below another, as /local/evomerge; got {stage}")
        return stage


ExecutorConfig = Annotated[SerialConfig | RayConfig, Field(discriminator="kind")]
