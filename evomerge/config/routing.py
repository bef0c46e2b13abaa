"""What a user may write about layer routing: spaces of paths, and their algorithm.

Knows nothing of genomes or models on disk.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evomerge.config.algorithms import AlgorithmConfig
from evomerge.config.base import Finite, Name, Strict
from evomerge.config.space import OperatorConfig, ParameterSpaceConfig, SpaceConfig
from evomerge.recipe.transform_table import Need

__all__ = ["MERGE", "GraftConfig", "IndicatorSpaceConfig", "PathSpaceConfig", "RoutingSpaceConfig", "ScaleRange"]

MERGE = "merge"
"""The merge that a routing space searches too, among the models that a path may visit."""

Layers = Annotated[int, Field(ge=1, le=1024)]
Scale = Annotated[Finite, Field(ge=0.01, le=100)]


class ScaleRange(Strict):
    """What the residual stream may be multiplied with before it enters a layer; searched on a logarithmic scale."""

    low: Scale = 0.5
    high: Scale = 2.0

    @model_validator(mode="after")
    def _holds_one(self) -> Self:
        if not self.low <= 1.0 <= self.high or self.low == self.high:
            raise ValueError(
                f"expected low <= 1 <= high, so that a layer may stay unscaled; got {self.low}, {self.high}"
            )
        return self

    @property
    def logarithms(self) -> tuple[float, float]:
        """Natural logarithms of lowest and highest."""
        return math.log(self.low), math.log(self.high)


class PathSpaceConfig(SpaceConfig):
    """What all spaces of paths have in common."""

    models: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Whose layers a path may take: names of experts, and `base`; left out, all of them."""
    ends: Name | None = None
    """Which model gives embeddings, last norm and output head; the base if left out."""
    fewest: Layers | None = None
    """Fewest layers of a path; three quarters of the models' own number if left out."""
    most: Layers | None = None
    """Most layers of a path, which costs memory and time; half more than the models' own number if left out."""
    scales: ScaleRange | None = None
    """Searches what the residual stream is multiplied with between layers; left out, nothing is scaled."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.fewest is not None and self.most is not None and self.most < self.fewest:
            raise ValueError(f"expected most >= fewest; got most {self.most}, fewest {self.fewest}")
        if self.models is not None and len(set(self.models)) != len(self.models):
            raise ValueError(f"models: expected each once; got {', '.join(self.models)}")
        return self

    def lengths(self, layers: int) -> tuple[int, int]:
        """Fewest and most layers of a path through models of so many layers."""
        fewest = layers - layers // 4 if self.fewest is None else self.fewest
        most = layers + layers // 2 if self.most is None else self.most
        return (min(fewest, most), most) if self.fewest is None else (fewest, max(fewest, most))


@SpaceConfig.register("evomerge.spaces.routing:build")
class RoutingSpaceConfig(PathSpaceConfig):
    """Layer routing: which layer of which model runs at each depth, weights untouched.

    A path has up to `most` slots. Each is empty or holds a layer of a model, in any order, as often as it likes.
    """

    kind: Literal["routing"]
    aligned: bool = False
    """Whole-layer routing: depth j takes layer j of some model, so that a path has as many layers as the models."""
    merge: ParameterSpaceConfig | None = None
    """A parameter space that is searched together with the path: its merge gives embeddings, last norm and output head,
    and is one more model whose layers a path may take, by the name `merge`."""

    @model_validator(mode="after")
    def _merge_gives_the_ends(self) -> Self:
        if self.merge is not None and self.ends is not None:
            raise ValueError(
                f"ends: with a merge, embeddings and head are the merge's; leave ends out; got {self.ends!r}"
            )
        if self.merge is not None and self.models is not None and MERGE not in self.models:
            raise ValueError(f"models: expected {MERGE!r} among them, or no key merge; got {', '.join(self.models)}")
        if self.merge is None and self.models is not None and MERGE in self.models:
            raise ValueError(f"models: {MERGE!r} needs a parameter space; give one as the key merge")
        return self

    @model_validator(mode="after")
    def _alignment_fixes_the_length(self) -> Self:
        if self.aligned and self.fewest != self.most:
            got = f"fewest {self.fewest}, most {self.most}"
            raise ValueError(f"aligned: a path has as many layers as the models; leave fewest and most out; got {got}")
        return self

    def lengths(self, layers: int) -> tuple[int, int]:
        """See `PathSpaceConfig.lengths`."""
        return (self.fewest or layers, self.most or layers) if self.aligned else super().lengths(layers)

    @property
    def operators(self) -> tuple[OperatorConfig, ...]:
        """The merge's."""
        return self.merge.operators if self.merge else ()

    @property
    def every_transform(self) -> tuple[str, ...]:
        """The merge's."""
        return self.merge.every_transform if self.merge else ()

    @property
    def statistics(self) -> frozenset[Need]:
        """What the merge needs."""
        return self.merge.statistics if self.merge else frozenset()


@SpaceConfig.register("evomerge.spaces.indicators:build")
class IndicatorSpaceConfig(PathSpaceConfig):
    """Layer routing as Akiba et al. 2024 encode it: a row of layers, each of which is used or passed by.

    The row holds all layers of the first model in order, then those of the next, and the whole again, `repeats` times.
    """

    kind: Literal["indicators"]
    repeats: Annotated[int, Field(ge=1, le=16)] = 3
    """How often the row of all layers is laid out."""
    scaling: Literal["matrix", "network"] = "matrix"
    """Where scales are searched: one for each pair of layers that follow each other, or a small network that computes
    them from the two layers and the place in the row, whose weights are searched."""
    hidden: Annotated[int, Field(ge=1, le=256)] = 4
    """Units of that network."""


@AlgorithmConfig.register("evomerge.population.graft:build")
class GraftConfig(AlgorithmConfig):
    """An evolution strategy on paths, whose moves replace, insert, delete, shift and repeat runs of layers."""

    spaces = ("routing",)
    steady = True
    kind: Literal["graft"]
    population: Annotated[int, Field(ge=4)] = 12
    """Candidates per generation; half as many survive."""
