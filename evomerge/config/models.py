"""The configuration schema: what a user may write, as frozen pydantic models.

Each class is one mapping in a YAML file. Unknown keys are refused; numbers are not read from strings. Paths are
relative to the file they stand in; the loader makes them absolute. Knows nothing of files, models on disk or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.config.space import ParameterSpaceConfig

__all__ = [
    "Algorithm",
    "Budget",
    "CmaConfig",
    "ConfirmConfig",
    "EngineConfig",
    "ExecutorConfig",
    "Experiment",
    "FitnessConfig",
    "ItemsConfig",
    "Nsga2Config",
    "ObjectiveConfig",
    "PoolConfig",
    "RandomConfig",
    "RayConfig",
    "SerialConfig",
]


class PoolConfig(Strict):
    """The models: one base and the experts fine-tuned from it, as Hugging Face folders with safetensors."""

    base: Path
    """Folder of the base model."""
    experts: Annotated[dict[Name, Path], Field(min_length=1)]
    """Folders of the experts, by a name of your choice: models, or PEFT LoRA adapters on the base."""
    tokenizer: str | None = None
    """Whose tokenizer, special tokens and chat template the merged model takes: `base`, or the name of an expert. Rows
    of embeddings and output heads then follow the text of their tokens. Left out: models that differ are refused."""

    @field_validator("experts")
    @classmethod
    def _base_is_reserved(cls, experts: dict[str, Path]) -> dict[str, Path]:
        for name in experts:
            if name in ("base", "uniform", "knee") or name.isdigit():
                raise ValueError(
                    f"{name!r} means something else on the command line and in reports (base, uniform and knee are "
                    "taken, numbers are candidates); give this expert another name"
                )
        return experts

    @model_validator(mode="after")
    def _tokenizer_of_a_model(self) -> Self:
        if self.tokenizer not in (None, "base", *self.experts):
            raise ValueError(f"tokenizer: expected one of {['base', *self.experts]}; got {self.tokenizer!r}")
        return self


class ObjectiveConfig(Strict):
    """One number to optimize: a metric of an lm-eval task, averaged over items."""

    name: Name
    task: str
    """lm-eval task name, from the files under `tasks`."""
    metric: str = "acc"
    """Per-item metric of that task."""
    filter: str | None = None
    """lm-eval filter; needed only when the task has several."""
    goal: Literal["max", "min"] = "max"
    """`max`: higher values of the metric are better."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share in the weighted mean that single-objective algorithms optimize."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Worked examples in the prompt."""


class ItemsConfig(Strict):
    """How many items score a candidate, and how many are kept back."""

    search: Annotated[int, Field(ge=2)]
    """Items per task and candidate during the search."""
    confirm: Annotated[int, Field(ge=2)]
    """Items per task that only the final confirmation uses; never seen by the search."""
    draw: Literal["fresh", "fixed"] = "fresh"
    """`fresh`: a new draw each generation, shared inside it; `fixed`: one draw for the whole run."""


class ConfirmConfig(Strict):
    """What is re-scored at the end, and how sure the verdict must be."""

    shortlist: Annotated[int, Field(ge=1)] = 12
    """Most candidates of the final front that are confirmed, beside the anchors."""
    level: Annotated[Finite, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the intervals."""


class FitnessConfig(Strict):
    """What makes a merged model good."""

    tasks: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files or folders with lm-eval task YAMLs."""
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    items: ItemsConfig
    confirm: ConfirmConfig = ConfirmConfig()
    chat_template: bool = False
    """Wrap prompts in the models' chat template."""

    @field_validator("objectives")
    @classmethod
    def _not_mean(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        if any(objective.name == "mean" for objective in objectives):
            raise ValueError("'mean' names the mean of all objectives; give this objective another name")
        return objectives

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        names = [objective.name for objective in objectives]
        if len(set(names)) != len(names):
            raise ValueError(f"objective names must be distinct; got {names}")
        return objectives


Population = Annotated[int, Field(ge=4)]


class CmaConfig(Strict):
    """CMA-ES on the weighted mean of the objectives."""

    kind: Literal["cma"]
    population: Population = 24
    sigma: Annotated[Finite, Field(gt=0, le=1)] = 0.2
    """First step size, as a share of each gene's range."""


class Nsga2Config(Strict):
    """NSGA-II on all objectives."""

    kind: Literal["nsga2"]
    population: Population = 20


class RandomConfig(Strict):
    """Uniform random search, the reference every other algorithm must beat."""

    kind: Literal["random"]
    population: Population = 20
    """Candidates per batch."""


Algorithm = Annotated[CmaConfig | Nsga2Config | RandomConfig, Field(discriminator="kind")]


class Budget(Strict):
    """When the search ends."""

    evaluations: Annotated[int, Field(ge=1)]
    """Candidates, anchors included, each counted once; repeated attempts cost time, not budget. Only whole generations
    are run, and the final confirmation comes on top."""


class EngineConfig(Strict):
    """The live model that candidates are written into."""

    kind: Literal["transformers"] = "transformers"
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` takes a GPU if there is one."""
    dtype: Literal["pool", "bfloat16", "float16", "float32"] = "pool"
    """Dtype of weights and arithmetic; `pool` is the models' own."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Requests per forward pass; fixed, because padding can flip near-ties."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads per worker."""


class SerialConfig(Strict):
    """Everything in one process."""

    kind: Literal["serial"]


class RayConfig(Strict):
    """Ray actors, one model in each."""

    kind: Literal["ray"]
    workers: Annotated[int, Field(ge=1)] = 2
    address: str | None = None
    """Ray cluster to join; a local one is started if left out."""
    cpus: Annotated[Finite, Field(gt=0)] = 1.0
    """CPUs per worker."""
    gpus: Annotated[Finite, Field(ge=0)] = 0.0
    """GPUs per worker; a fraction shares one."""
    job_timeout_seconds: Annotated[Finite, Field(gt=0)] = 1800.0
    """A job that takes longer is stopped and its worker replaced."""
    start_timeout_seconds: Annotated[Finite, Field(gt=0)] = 600.0
    """How long a worker may take to come up."""


ExecutorConfig = Annotated[SerialConfig | RayConfig, Field(discriminator="kind")]


class Experiment(Strict):
    """One run: pool, space, fitness, algorithm, budget, seed."""

    version: Literal[1]
    """Version of this file format."""
    name: Name
    pool: PoolConfig
    space: ParameterSpaceConfig
    """A name or path of a file in `search_spaces/`, or the mapping itself."""
    fitness: FitnessConfig
    """A name or path of a file in `fitness/`, or the mapping itself."""
    algorithm: Algorithm
    budget: Budget
    seed: Annotated[int, Field(ge=0)] = 0
    engine: EngineConfig = EngineConfig()
    executor: ExecutorConfig = SerialConfig(kind="serial")

    @property
    def anchors(self) -> int:
        """How many fixed references every run scores: base, each expert, uniform average."""
        return len(self.pool.experts) + 2

    @model_validator(mode="after")
    def _budget_holds_one_generation(self) -> Self:
        least = self.anchors + self.algorithm.population
        if self.budget.evaluations < least:
            raise ValueError(
                f"budget.evaluations must hold the {self.anchors} anchors and one population of "
                f"{self.algorithm.population}, {least} in all; got {self.budget.evaluations}; "
                "raise the budget or lower algorithm.population"
            )
        return self
