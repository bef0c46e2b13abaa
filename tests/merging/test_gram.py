from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.merging.gram import Slicing, gram, run_of

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
MODELS = ("base", "one", "two")


def pool_of(memory_pool: MakePool, *shape: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(shape, generator=generator)
    family = {"base": base.bfloat16()}
    for model in MODELS[1:]:
        family[model] = (base + 0.001 * torch.randn(shape, generator=generator)).bfloat16()
    return memory_pool({model: {NAME: theta} for model, theta in family.items()})


def products(vectors: list[torch.Tensor]) -> list[list[float]]:
    return [[float((a * b).sum()) for b in vectors] for a in vectors]


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (700, 600), (300_001,)], ids=str)
def test_one_matrix_of_a_whole_tensor(memory_pool: MakePool, shape: tuple[int, ...]) -> None:
    pool = pool_of(memory_pool, *shape)
    found = gram(pool, MODELS, NAME)
    assert found.shape == (1, 3, 3)
    torch.testing.assert_close(
        torch.tensor(found[0]),
        torch.tensor(products([pool.tensor(model, NAME).double() for model in MODELS]), dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )


def test_task_vectors_are_formed_in_fp32(memory_pool: MakePool) -> None:
    pool = pool_of(memory_pool, 40, 30)
    base = pool.tensor("base", NAME).float()
    vectors = [(pool.tensor(model, NAME).float() - base).double() for model in MODELS[1:]]
    found = gram(pool, MODELS[1:], NAME, base="base")
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(products(vectors), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (700, 600), (3, 300_000), (300_000, 3)], ids=str)
@pytest.mark.parametrize("per", ["row", "column"])
def test_one_matrix_per_slice(memory_pool: MakePool, shape: tuple[int, ...], per: Slicing) -> None:
    pool = pool_of(memory_pool, *shape)
    found = gram(pool, MODELS, NAME, base="base", per=per)
    base = pool.tensor("base", NAME).float()
    vectors = torch.stack([(pool.tensor(model, NAME).float() - base).double() for model in MODELS])
    expected = (vectors[:, None] * vectors[None]).sum(-1 if per == "row" else 2).reshape(3, 3, -1)
    assert found.shape[0] == expected.shape[-1]
    torch.testing.assert_close(torch.tensor(found), expected.permute(2, 0, 1), rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_every_element_knows_its_slice(memory_pool: MakePool, shape: tuple[int, ...], per: Slicing) -> None:
    """Each slice's product is the sum of squares over the elements that `run_of` assigns to it."""
    pool = pool_of(memory_pool, *shape)
    squares = gram(pool, ("one",), NAME, per=per)[:, 0, 0]
    flat = pool.tensor("one", NAME).double().reshape(-1).square()
    owner = torch.arange(len(flat)) // run_of(shape, per) % len(squares)
    expected = torch.zeros(len(squares)).double().index_add(0, owner, flat)
    torch.testing.assert_close(torch.tensor(squares), expected)


def test_products_are_made_once(memory_pool: MakePool) -> None:
    pool = pool_of(memory_pool, 3, 4)
    assert gram(pool, MODELS, NAME) is gram(pool, MODELS, NAME)
    assert gram(pool, MODELS, NAME) is not gram(pool, MODELS, NAME, per="row")
    with pytest.raises(ValueError, match="read-only"):
        gram(pool, MODELS, NAME)[0, 0, 0] = 1.0
