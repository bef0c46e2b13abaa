"""The configuration schema: what a user may write, as frozen pydantic models.

Each class is one mapping in a YAML file. Unknown keys are refused; numbers are not read from strings. Paths are
relative to the file they stand in; the loader makes them absolute. Knows nothing of files, models on disk or scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.algorithms import AlgorithmConfig
from evomerge.config.base import Name, Strict
from evomerge.config.children import ChildConfig, Expert
from evomerge.config.engine_fit import engine_misfit
from evomerge.config.engines import EngineConfig, TransformersConfig
from evomerge.config.executors import ExecutorConfig, SerialConfig
from evomerge.config.fitness import FitnessConfig, IrtConfig
from evomerge.config.scorers import KlConfig
from evomerge.config.space import SpaceConfig
from evomerge.recipe import OPERATORS

__all__ = [
    "Budget",
    "CalibrationConfig",
    "Experiment",
    "PoolConfig",
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
    experts: Annotated[dict[Name, Expert], Field(min_length=1)]
    """Folders of the experts, by a name of your choice: models, or PEFT LoRA adapters on the base. Or what an earlier
    run found, as `{run: FOLDER, candidate: knee}`."""
    tokenizer: str | None = None
    """Whose tokenizer, special tokens and chat template the merged model takes: `base`, or the name of an expert. Rows
    of embeddings and output heads then follow the text of their tokens. Left out: models that differ are refused."""
    calibration: CalibrationConfig | None = None
    """What `omega` and some transforms need."""

    @field_validator("experts")
    @classmethod
    def _base_is_reserved(cls, experts: dict[str, Expert]) -> dict[str, Expert]:
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
    def folders(self) -> dict[str, Path]:
        """Folders of the experts.

        Raises:
            ValueError: one is a candidate of an earlier run that was not written out (see `evomerge.pools.placed`).
        """
        if self.children:
            raise ValueError(f"expected folders; got candidates of earlier runs: {', '.join(self.children)}")
        return {name: expert for name, expert in self.experts.items() if isinstance(expert, Path)}

    @property
    def children(self) -> dict[str, ChildConfig]:
        """Experts that are candidates of earlier runs."""
        return {name: expert for name, expert in self.experts.items() if isinstance(expert, ChildConfig)}

    @property
    def texts(self) -> dict[str, Path]:
        """Calibration text by model."""
        return {} if self.calibration is None else self.calibration.texts(("base", *self.experts))


class Budget(Strict):
    """When the search ends."""

    evaluations: Annotated[int, Field(ge=1)]
    """Candidates, anchors included, each counted once; repeated attempts cost time, not budget. Only whole generations
    are run, where there are any, and the final confirmation comes on top."""
    items: Annotated[int, Field(ge=1)] | None = None
    """Answers to search items, over all candidates and tasks; a generation that may exceed it is not begun."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that search items take, read and written; a generation is begun if the dearest so far would fit. Seconds
    are no budget: no resumed run would spend them alike."""


class Experiment(Strict):
    """One run: pool, space, fitness, algorithm, budget, seed."""

    version: Literal[1]
    """Version of this file format."""
    name: Name
    pool: PoolConfig
    space: SpaceConfig
    """A name or path of a file in `search_spaces/`, or the mapping itself."""
    fitness: FitnessConfig
    """A name or path of a file in `fitness/`, or the mapping itself."""
    algorithm: AlgorithmConfig
    budget: Budget
    seed: Annotated[int, Field(ge=0)] = 0
    plugins: tuple[Path, ...] = ()
    """Python files that register algorithms, spaces or operators of your own. They are code, and a run runs them, as
    does every look at it: name only what you would run yourself."""
    engine: EngineConfig = TransformersConfig()
    executor: ExecutorConfig = SerialConfig(kind="serial")
    """A name or path of a file in `cluster/`, or the mapping itself."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Who is told of the run's numbers while it goes on; each is an extra of its own."""

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"expected each tracker once; got {', '.join(trackers)}")
        return trackers

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
    def _algorithm_fits(self) -> Self:
        if misfit := self.algorithm.misfit(len(self.fitness.objectives), space=self.space.kind):
            raise ValueError(f"algorithm: {misfit}")
        return self

    @model_validator(mode="after")
    def _candidates_stand_alone(self) -> Self:
        if self.algorithm.in_flight is None:
            return self
        if self.fitness.race is not None:
            raise ValueError(
                "algorithm.in_flight: a race is held among the candidates of a generation, and there are none; leave "
                "out fitness.race, or in_flight"
            )
        if isinstance(self.fitness.estimator, IrtConfig):
            raise ValueError(
                "algorithm.in_flight: the estimator irt learns about items from whole generations; leave in_flight "
                "out, or set fitness.estimator to {kind: mean}"
            )
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if misfit := engine_misfit(self.engine, self.space, self.fitness, getattr(self.executor, "gpus", 0)):
            raise ValueError(misfit)
        return self

    @model_validator(mode="after")
    def _task_vectors_may_be_approximate(self) -> Self:
        for operator in self.space.operators if self.engine.deltas == "int8" else ():
            if operator.space != "core" and OPERATORS[operator.name].adds:
                continue
            adding = ", ".join(name for name, known in OPERATORS.items() if known.adds)
            got = f"{operator.name} in core space" if operator.space == "core" else operator.name
            raise ValueError(
                f"engine.deltas: int8 takes an operator that adds task vectors, one of {adding}; got {got}, which "
                "compares magnitudes that rounding changes, or does not read task vectors at all; write exact"
            )
        return self

    @model_validator(mode="after")
    def _budget_holds_one_generation(self) -> Self:
        first = self.algorithm.population_at(0)
        least = self.anchors + first
        if self.budget.evaluations < least:
            raise ValueError(
                f"budget.evaluations: expected at least {least}, for {self.anchors} anchors and one population of "
                f"{first}; got {self.budget.evaluations}; raise it, or lower algorithm.population"
            )
        return self
