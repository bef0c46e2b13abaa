"""The configuration schema: what a user may write, as frozen pydantic models.

Each class is one mapping in a YAML file. Unknown keys are refused; numbers are not read from strings. Paths are
relative to the file they stand in; the loader makes them absolute. Knows nothing of files, models on disk or scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from evomerge.config.algorithms import Algorithm
from evomerge.config.base import Finite, Name, Strict
from evomerge.config.fitness import FitnessConfig
from evomerge.config.scorers import KlConfig
from evomerge.config.space import ParameterSpaceConfig
from evomerge.recipe import OPERATORS

__all__ = [
    "Budget",
    "CalibrationConfig",
    "EngineConfig",
    "ExecutorConfig",
    "Experiment",
    "PoolConfig",
    "RayConfig",
    "SerialConfig",
]


class CalibrationConfig(Strict):
    """Texts that the models are run over once, for merges that ask what their activations or gradients are."""

    text: Path | dict[str, Path]
    """A `.txt` file, or a `.jsonl` file with a key `text`: one for all models, or one for each by name."""
    tokens: Annotated[int, Field(ge=1)] = 65536
    """How many tokens of a text are used."""

    def texts(self, models: Iterable[str]) -> dict[str, Path]:
        """Text by model."""
        return self.text if isinstance(self.text, dict) else dict.fromkeys(models, self.text)


class PoolConfig(Strict):
    """The models: one base and the experts fine-tuned from it, as Hugging Face folders with safetensors."""

    base: Path
    """Folder of the base model."""
    experts: Annotated[dict[Name, Path], Field(min_length=1)]
    """Folders of the experts, by a name of your choice: models, or PEFT LoRA adapters on the base."""
    tokenizer: str | None = None
    """Whose tokenizer, special tokens and chat template the merged model takes: `base`, or the name of an expert. Rows
    of embeddings and output heads then follow the text of their tokens. Left out: models that differ are refused."""
    calibration: CalibrationConfig | None = None
    """What `omega` and some transforms need."""

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

    @model_validator(mode="after")
    def _texts_of_models(self) -> Self:
        if strangers := sorted(self.texts.keys() - {"base", *self.experts}):
            raise ValueError(f"calibration.text: expected texts for {['base', *self.experts]}; got {strangers}")
        return self

    @property
    def texts(self) -> dict[str, Path]:
        """Calibration text by model."""
        return {} if self.calibration is None else self.calibration.texts(("base", *self.experts))


class Budget(Strict):
    """When the search ends."""

    evaluations: Annotated[int, Field(ge=1)]
    """Candidates, anchors included, each counted once; repeated attempts cost time, not budget. Only whole generations
    are run, and the final confirmation comes on top."""
    items: Annotated[int, Field(ge=1)] | None = None
    """Answers to search items, over all candidates and tasks; a generation that may exceed it is not begun."""


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
    residency: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where base and experts are kept: in the GPU's memory, in page-locked host memory, or in mapped files; `auto`
    takes the first that fits. On a CPU they are mapped."""
    deltas: Literal["exact", "int8"] = "exact"
    """`int8`: the search merges 8-bit task vectors, which take less memory; what is confirmed or exported is exact. For
    operators that add task vectors."""

    @model_validator(mode="after")
    def _a_cpu_maps_models(self) -> Self:
        if self.device == "cpu" and self.residency not in ("auto", "mapped"):
            raise ValueError(f"residency: expected auto or mapped on a CPU; got {self.residency!r}")
        return self


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
    def _constraints_name_anchors(self) -> Self:
        known = ("base", *self.pool.experts, "uniform")
        for constraint in self.fitness.constraints:
            if constraint.relative_to not in (None, *known):
                raise ValueError(
                    f"fitness.constraints: {constraint.name}: relative_to: expected one of {', '.join(known)}; "
                    f"got {constraint.relative_to!r}"
                )
        return self

    @model_validator(mode="after")
    def _references_are_models(self) -> Self:
        known = ("base", *self.pool.experts)
        for name, scorer in self.fitness.scorers.items():
            if isinstance(scorer, KlConfig) and scorer.reference not in known:
                raise ValueError(
                    f"fitness.scorers: {name}: reference: expected one of {', '.join(known)}; got {scorer.reference!r}"
                )
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        wanted = {
            "importance": ("fixing or searching omega", ["base"]),
            "grams": ("the transform regmean", [*self.pool.experts]),
            "fisher": ("the transform fisher", [*self.pool.experts]),
        }
        for statistic in sorted(wanted.keys() & self.space.statistics):
            what, models = wanted[statistic]
            if missing := [model for model in models if model not in self.pool.texts]:
                raise ValueError(
                    f"{what} needs a text that {', '.join(missing)} can be run over; "
                    "give one as pool.calibration, for example {text: some.txt}"
                )
        return self

    @model_validator(mode="after")
    def _algorithm_takes_the_objectives(self) -> Self:
        if misfit := self.algorithm.misfit(len(self.fitness.objectives)):
            raise ValueError(f"algorithm: {misfit}")
        return self

    @model_validator(mode="after")
    def _task_vectors_may_be_approximate(self) -> Self:
        operator = self.space.operator
        if self.engine.deltas == "int8" and (operator.space == "core" or not OPERATORS[operator.name].adds):
            adding = ", ".join(name for name, known in OPERATORS.items() if known.adds)
            got = f"{operator.name} in core space" if operator.space == "core" else operator.name
            raise ValueError(
                f"engine.deltas: int8 takes an operator that adds task vectors, one of {adding}; got {got}, which "
                "compares magnitudes that rounding changes, or does not read task vectors at all; write exact"
            )
        return self

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
