"""Parts of tensors, as tensor-parallel ranks make them, are parts of what is made of whole tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.merging.executor import execute, execute_part
from evomerge.merging.operators import lower
from evomerge.merging.plan import MergePlan
from evomerge.merging.pool import ModelPool
from evomerge.merging.residency import Residence
from evomerge.recipe import OPERATORS, Field, Operator, Recipe, options_of

NAMES = ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight")


@pytest.fixture
def pool(make_family: Callable[..., Any]) -> ModelPool:
    family = make_family(dtype="float32")
    return ModelPool.open(family.base, family.experts)


def recipe_of(operator: Operator, pool: ModelPool, **options: Any) -> Recipe:
    """The middle of what is searched."""
    sources = pool.experts[: operator.max_sources]
    fields = {}
    for name, parameter in sorted(operator.parameters.items()):
        width = len(sources) if parameter.scope == "source" else 1
        values = [parameter.low + (parameter.high - parameter.low) * (0.4 + 0.2 * place) for place in range(width)]
        fields[name] = Field.constant(values, pool.layers)
    return Recipe(
        operator=operator.name,
        options=options_of(operator, "paper", **options),
        base=pool.base if operator.needs_base else None,
        sources=sources,
        parameters=tuple(fields.items()),
        mask_seed=5,
        dtype="bfloat16",
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_parts_are_those_of_the_whole(operator: str, pool: ModelPool) -> None:
    plan = lower(recipe_of(OPERATORS[operator], pool), pool)
    chosen = tuple(tensor for tensor in plan.tensors if tensor.name in NAMES)
    assert len(chosen) == len(NAMES)
    for tensor, (_, whole) in zip(chosen, execute(MergePlan(tensors=chosen), pool), strict=True):
        for axis, size in enumerate(tensor.shape):
            for start, stop in ((0, size), (0, size // 2), (size // 2, size), (size // 4, size - 1)):
                expected = whole.narrow(axis, start, stop - start)
                found = torch.full_like(expected, torch.nan).contiguous()
                execute_part(tensor, Residence(pool=pool), found, axis, start)
                assert torch.equal(found, expected), (tensor.name, axis, start)
