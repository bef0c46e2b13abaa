"""What genetic algorithms begin with, where a space knows paths that are worth a look."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig, SpaceConfig
from evomerge.population import Problem, build_algorithm
from evomerge.spaces import Genome, Models, build_space

MODELS = Models(base="base", experts=("rev", "sort"), layers=8, dtype="float32")


def space(kind: str) -> Any:
    return build_space(TypeAdapter(SpaceConfig).validate_python({"kind": kind}), MODELS, seed=0)


def first(where: Any, kind: str, population: int = 20) -> tuple[Genome, ...]:
    config = TypeAdapter(AlgorithmConfig).validate_python({"kind": kind, "population": population})
    return build_algorithm(config, Problem(space=where, weights=(1.0, 1.0), seed=0)).ask()


@pytest.mark.parametrize("kind", ["nsga2", "nsga3", "sms_emoa"])
@pytest.mark.parametrize("paths", ["routing", "indicators"])
def test_known_paths_are_the_first_on_half_of_the_places_at_most(kind: str, paths: str) -> None:
    where = space(paths)
    assert where.start == where.known[0]
    for population in (4, 20):
        most = min(population // 2, len(where.known))
        genomes = first(where, kind, population)
        assert genomes[:most] == where.known[:most]
        assert not {*where.known} & {*genomes[most:]}


@pytest.mark.parametrize("kind", ["soup", "split_point"])
def test_experts_alone_are_not_asked_again(kind: str) -> None:
    where = space(kind)
    genomes = first(where, "nsga2")
    assert genomes[0] == where.start
    assert not {*where.known} & {*genomes}
