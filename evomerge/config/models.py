"""The configuration schema: what a user may write, as frozen pydantic models.

Each class is one mapping in a YAML file. Unknown keys are refused; numbers are not read from strings. Paths are
relative to the file they stand in; the loader makes them absolute. Knows nothing of files, models on disk or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from evomerge.config.base import STRICT, Finite, Name
from evomerge.config.coefficients import Coefficient
from evomerge.recipe import OPERATORS, OptionValue, Preset

__all__ = [
    "Algorithm",
    "Budget",
    "CmaConfig",
    "ConfirmConfig",
    "EngineConfig",
    "ExecutorConfig",
    "Experiment",
    "FitnessConfig",
    "GeneRange",
    "ItemsConfig",
    "Nsga2Config",
    "ObjectiveConfig",
    "OperatorConfig",
    "ParameterSpaceConfig",
    "PoolConfig",
    "RandomConfig",
    "RayConfig",
    "SerialConfig",
]


class _Config(BaseModel):
    model_config = STRICT


class PoolConfig(_Config):
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


class OperatorConfig(_Config):
    """Which merge operator, and its fixed options."""

    name: str
    """A merge operator, for example task_arithmetic; an unknown name is answered with all that there are."""
    preset: Preset = "paper"
    """`paper` follows the publication, `mergekit` reproduces that tool."""
    options: dict[str, OptionValue] = {}
    """Single options that differ from the preset."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in OPERATORS:
            raise ValueError(f"expected an operator, one of {', '.join(OPERATORS)}; got {self.name!r}")
        legal = OPERATORS[self.name].options
        for option, value in self.options.items():
            if option not in legal:
                raise ValueError(f"{self.name} has the options {sorted(legal) or 'none'}; got {option!r}")
            if value not in legal[option]:
                raise ValueError(
                    f"option {option!r} of {self.name} must be one of {list(legal[option])}; got {value!r}"
                )
        return self


class GeneRange(_Config):
    """A searched operator parameter."""

    low: Finite | None = None
    """Smallest value; the operator's own default range if left out."""
    high: Finite | None = None
    """Largest value."""
    start: Finite | None = None
    """Where the search starts; the operator's default if left out."""
    knots: Annotated[int, Field(ge=1)] | Literal["layer"] | None = None
    """Knots of this parameter over depth; the space's own number if left out."""
    edges: Literal["own", "first"] = "own"
    """Embeddings and output head: `own` genes, or the value of the `first` layer (in the first group)."""


Groups = dict[Name, tuple[Literal["attention", "mlp", "norm"], ...]]


class ParameterSpaceConfig(_Config):
    """Parameter space: one operator with coefficients over layer x module group x expert.

    Each searched parameter has `knots` genes per module group and expert, interpolated linearly over depth, and genes
    of its own for embeddings and output head (unless `edges` says otherwise).
    """

    kind: Literal["parameter"]
    operator: OperatorConfig
    knots: Annotated[int, Field(ge=1)] | Literal["layer"] = 4
    """Genes over depth: 1 = one value for the whole depth, `layer` = one per layer."""
    groups: Annotated[Groups, Field(min_length=1)] = {"block": ("attention", "mlp", "norm")}
    """Which modules of a layer share genes."""
    genes: Annotated[dict[str, GeneRange], Field(min_length=1)]
    """Searched parameters, by name."""
    fixed: dict[str, Finite] = {}
    """Parameters with one fixed value, by name; what is named nowhere keeps the operator's default."""
    per_expert: dict[str, dict[Name, Finite]] = {}
    """Parameters with one fixed value for each expert, by name and expert."""
    start_from: tuple[Coefficient, ...] = ()
    """Where the search starts, instead of each gene's `start`: coefficients found elsewhere, as a CSV, JSON or YAML
    file, or the list itself. Every layer and expert must be there; embeddings and head may be left out."""

    @field_validator("groups")
    @classmethod
    def _partition(cls, groups: Groups) -> Groups:
        members = [role for roles in groups.values() for role in roles]
        if sorted(members) != ["attention", "mlp", "norm"]:
            raise ValueError(f"every module of attention, mlp, norm must stand in exactly one group; got {groups}")
        return groups

    @model_validator(mode="after")
    def _fits_operator(self) -> Self:
        operator = OPERATORS[self.operator.name]
        named = [*self.genes, *self.fixed, *self.per_expert]
        for name in named:
            if name not in operator.parameters:
                raise ValueError(f"{operator.name} has the parameters {sorted(operator.parameters)}; got {name!r}")
        if twice := sorted(name for name in set(named) if named.count(name) > 1):
            raise ValueError(f"a parameter is either searched (genes) or fixed (fixed, per_expert); got {twice} twice")
        for name, gene in self.genes.items():
            low, high = self.bounds(name)
            legal = operator.parameters[name]
            if not legal.minimum <= low < high <= legal.maximum:
                raise ValueError(
                    f"{name}: expected {legal.minimum} <= low < high <= {legal.maximum}; got low {low}, high {high}"
                )
            if gene.start is not None and not low <= gene.start <= high:
                raise ValueError(f"{name}: start must lie in [{low}, {high}]; got {gene.start}")
        for name in self.per_expert:
            if operator.parameters[name].scope == "shared":
                raise ValueError(f"{name} is shared by all experts; write its one value under fixed")
        pairs = [*self.fixed.items(), *((name, value) for name, by in self.per_expert.items() for value in by.values())]
        for name, value in pairs:
            legal = operator.parameters[name]
            if not legal.minimum <= value <= legal.maximum:
                raise ValueError(f"{name}: expected a value in [{legal.minimum}, {legal.maximum}]; got {value}")
        return self

    @model_validator(mode="after")
    def _starts_from_what_is_searched(self) -> Self:
        for name in dict.fromkeys(coefficient.parameter for coefficient in self.start_from):
            if name not in self.genes:
                raise ValueError(f"start_from: expected values of searched parameters {[*self.genes]}; got {name!r}")
        return self

    def bounds(self, name: str) -> tuple[float, float]:
        """Search range of one searched parameter: the user's, or the operator's own."""
        parameter, gene = OPERATORS[self.operator.name].parameters[name], self.genes[name]
        low = parameter.low if gene.low is None else gene.low
        high = parameter.high if gene.high is None else gene.high
        return low, high


class ObjectiveConfig(_Config):
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


class ItemsConfig(_Config):
    """How many items score a candidate, and how many are kept back."""

    search: Annotated[int, Field(ge=2)]
    """Items per task and candidate during the search."""
    confirm: Annotated[int, Field(ge=2)]
    """Items per task that only the final confirmation uses; never seen by the search."""
    draw: Literal["fresh", "fixed"] = "fresh"
    """`fresh`: a new draw each generation, shared inside it; `fixed`: one draw for the whole run."""


class ConfirmConfig(_Config):
    """What is re-scored at the end, and how sure the verdict must be."""

    shortlist: Annotated[int, Field(ge=1)] = 12
    """Most candidates of the final front that are confirmed, beside the anchors."""
    level: Annotated[Finite, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the intervals."""


class FitnessConfig(_Config):
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


class CmaConfig(_Config):
    """CMA-ES on the weighted mean of the objectives."""

    kind: Literal["cma"]
    population: Population = 24
    sigma: Annotated[Finite, Field(gt=0, le=1)] = 0.2
    """First step size, as a share of each gene's range."""


class Nsga2Config(_Config):
    """NSGA-II on all objectives."""

    kind: Literal["nsga2"]
    population: Population = 20


class RandomConfig(_Config):
    """Uniform random search, the reference every other algorithm must beat."""

    kind: Literal["random"]
    population: Population = 20
    """Candidates per batch."""


Algorithm = Annotated[CmaConfig | Nsga2Config | RandomConfig, Field(discriminator="kind")]


class Budget(_Config):
    """When the search ends."""

    evaluations: Annotated[int, Field(ge=1)]
    """Candidates, anchors included, each counted once; repeated attempts cost time, not budget. Only whole generations
    are run, and the final confirmation comes on top."""


class EngineConfig(_Config):
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


class SerialConfig(_Config):
    """Everything in one process."""

    kind: Literal["serial"]


class RayConfig(_Config):
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


class Experiment(_Config):
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
