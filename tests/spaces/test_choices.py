"""Choices of a parameter space: transforms by expert, options by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import ParameterSpaceConfig
from evomerge.errors import ConfigError
from evomerge.spaces import Gene, Genome, ParameterSpace

EXPERTS = ("rev", "sort", "ciph")


def config_of(**changes: Any) -> ParameterSpaceConfig:
    data: dict[str, Any] = {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "genes": {"weight": {}}}
    return ParameterSpaceConfig.model_validate(data | changes)


def space_of(config: ParameterSpaceConfig, experts: tuple[str, ...] = ("rev", "sort")) -> ParameterSpace:
    return ParameterSpace(config, base="base", experts=experts, layers=4, dtype="bfloat16", seed=0)


def test_a_choice_is_a_gene_of_equal_parts() -> None:
    space = space_of(config_of(knots=1, transforms={"sort": ["none", "star", "tsv_m:0.5"]}), experts=EXPERTS)
    *numbers, gene = space.genes
    assert len(numbers) == 9
    assert (gene.name, gene.choices) == ("transform.sort", ("none", "star:40", "tsv_m:0.5"))
    assert space.decode(space.start).transforms == ("none",) * 3
    assert space.start.values[-1] == gene.start == pytest.approx(1 / 6)
    for value, chosen in ((0.0, "none"), (0.33, "none"), (0.34, "star:40"), (0.67, "tsv_m:0.5"), (1.0, "tsv_m:0.5")):
        recipe = space.decode(Genome((0.5,) * 9 + (value,)))
        assert recipe.transforms == ("none", chosen, "none")
        assert recipe.parameter("weight") == space.decode(Genome((0.5,) * 9 + (0.0,))).parameter("weight")


def test_choices_for_all_experts_and_fixed_ones() -> None:
    space = space_of(config_of(transforms=["none", "star"]))
    assert [gene.name for gene in space.genes][-2:] == ["transform.rev", "transform.sort"]
    fixed = space_of(config_of(transforms=["star:60"]))
    assert len(fixed.genes) == len(space.genes) - 2
    assert fixed.decode(fixed.start).variants == ("rev~star:60", "sort~star:60")
    assert fixed.decode(fixed.start).digest != space_of(config_of()).decode(fixed.start).digest


def test_options_are_chosen_by_name() -> None:
    options = {"vote": ["weighted", "unweighted"], "trim": "tensor", "aggregate": ["sum"]}
    space = space_of(config_of(operator={"name": "ties", "options": options}))
    assert space.genes[-1] == Gene(
        name="option.vote", low=0.0, high=1.0, start=0.25, choices=("weighted", "unweighted")
    )
    recipe = space.decode(space.start)
    assert dict(recipe.options) == {"vote": "weighted", "trim": "tensor", "aggregate": "sum"}
    last = space.decode(Genome((*space.start.values[:-1], 1.0)))
    assert last.option("vote") == "unweighted"


def test_yes_and_no_are_choices_too() -> None:
    space = space_of(config_of(operator={"name": "task_arithmetic", "options": {"normalize": [True, False]}}))
    assert space.genes[-1].choices == ("true", "false")
    chosen = [space.decode(Genome((*space.start.values[:-1], value))).option("normalize") for value in (0.2, 0.8)]
    assert chosen == [True, False]


@given(st.integers(1, 9), st.floats(0, 1))
def test_every_value_is_one_of_the_choices(count: int, value: float) -> None:
    gene = Gene(name="g", low=0, high=1, start=0.5 / count, choices=tuple(map(str, range(count))))
    assert gene.index(value) == min(int(value * count), count - 1)
    assert gene.index(gene.start) == 0


def test_transforms_of_strangers_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(config_of(transforms={"srot": ["star"]}))
    assert [fault.path for fault in caught.value.faults] == ["$.space.transforms.srot"]
    assert "expected an expert of the pool (rev, sort); got 'srot'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transforms": ["none", "sart"]}, "expected one of none, star, .*; got 'sart'; did you mean 'star'?"),
        ({"transforms": ["star:900"]}, r"star takes the percentage of the nuclear norm kept, in \[1, 100\]; got 900"),
        ({"transforms": ["star:"]}, "expected a number behind the colon; got 'star:'"),
        ({"transforms": ["fisher:2"]}, "fisher takes no number; got '2'"),
        ({"transforms": ["star", "star:40.0"]}, r"all experts: expected each choice once; got \['star:40', "),
        ({"transforms": {"rev": "star"}}, "rev: expected a list of one choice or more; got 'star'"),
        ({"transforms": []}, r"all experts: expected a list of one choice or more; got \[\]"),
        ({"transforms": ["star"], "operator": {"name": "linear"}}, "linear merges weights; transforms work on task"),
        ({"operator": {"name": "ties", "options": {"vote": ["weighted", "loud"]}}}, "must be one of .*; got 'loud'"),
        ({"operator": {"name": "ties", "options": {"vote": []}}}, "vote: expected a list of one choice or more"),
        ({"operator": {"name": "ties", "options": {"vote": 3}}}, "vote: expected a list of one choice or more; got 3"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)
