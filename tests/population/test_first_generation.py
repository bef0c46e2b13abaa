"""What genetic algorithms begin with, where a space knows genomes that are worth a look."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig, SpaceConfig
from evomerge.population import Problem, build_algorithm
from evomerge.spaces import Genome, Models, SearchSpace, build_space

MODELS = Models(base="base", experts=("rev", "sort"), layers=8, dtype="float32")


def space(**keys: Any) -> SearchSpace:
    return build_space(TypeAdapter(SpaceConfig).validate_python(keys), MODELS, seed=0)


def first(where: SearchSpace, kind: str, population: int = 20) -> tuple[Genome, ...]:
    config = TypeAdapter(AlgorithmConfig).validate_python({"kind": kind, "population": population})
    return build_algorithm(config, Problem(space=where, weights=(1.0, 1.0), seed=0)).ask()


@pytest.mark.parametrize("kind", ["nsga2", "nsga3", "sms_emoa"])
@pytest.mark.parametrize("keys", [{"kind": "soup"}, {"kind": "split_point"}, {"kind": "indicators"}])
def test_the_start_and_what_the_space_knows_are_among_the_first(kind: str, keys: dict[str, Any]) -> None:
    where: Any = space(**keys)
    known = list(dict.fromkeys((where.start, *where.seeds)))
    assert len(known) > 2
    assert list(first(where, kind)[: len(known[:10])]) == known[:10]


def test_known_genomes_take_half_of_the_places_at_most() -> None:
    where: Any = space(kind="routing")
    assert len(where.seeds) > 10
    assert sum(genome in where.seeds for genome in first(where, "nsga2")) == 10
    assert sum(genome in where.seeds for genome in first(where, "nsga2", population=4)) == 2
