"""WIDEN: known results, and the published procedure written out once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Delta
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Recipe, options_of

MakePool = Callable[..., Any]
MATRIX, NORM, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "model.layers.0.norm.weight", "model.embed_tokens.weight"


def recipe_of(
    sources: Sequence[str], t: float = 1.0, s: float = 1.0, weights: Sequence[float] = (), scale: float = 1.0
) -> Recipe:
    values = {"lambda": [scale], "s": [s], "t": [t], "weight": weights or [1.0] * len(sources)}
    return Recipe(
        operator="widen",
        options=options_of(OPERATORS["widen"], "paper"),
        base="base",
        sources=tuple(sources),
        parameters=tuple((name, Field.constant(row, 1)) for name, row in values.items()),
        dtype="float32",
    )


def family(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {MATRIX: (6, 9), NORM: (9,), EMBEDDING: (7, 4)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {"base": base} | {
        model: {name: theta + 0.1 * torch.randn(theta.shape, generator=generator) for name, theta in base.items()}
        for model in ("one", "two", "three")
    }


def published(base: torch.Tensor, experts: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """The paper's procedure on a matrix `[out, in]` and experts `[K, out, in]`, in torch's own terms."""

    def scores(changes: torch.Tensor) -> torch.Tensor:
        n = changes.shape[1]
        ranks = changes.argsort(dim=1, stable=True).argsort(dim=1, stable=True) / n
        return torch.where(ranks > t * (n - 1) / (2 * n) + 1e-9, s, ranks.softmax(0))

    lengths = (experts.norm(dim=1) - base.norm(dim=0)).abs()
    turns = 1 - torch.cosine_similarity(experts, base[None], dim=1)
    coefficients = (scores(lengths) + scores(turns)) / 2
    return base + ((experts - base) * coefficients[:, None]).sum(0)


@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.5, 0.7), (1.6, -0.3), (0.0, 1.0), (2.0, 1.0)])
def test_it_is_the_published_procedure(memory_pool: MakePool, t: float, s: float) -> None:
    models = family()
    merged = dict(execute(lower(recipe_of(("one", "two", "three"), t, s), pool := memory_pool(models)), pool))
    for name, turned in ((MATRIX, False), (EMBEDDING, True)):
        base, *experts = (models[m][name].double().T if turned else models[m][name].double() for m in models)
        expected = published(base, torch.stack(experts), t, s)
        torch.testing.assert_close(merged[name].double().T if turned else merged[name].double(), expected)
    x = torch.stack([models[m][NORM] - models["base"][NORM] for m in ("one", "two", "three")]).double()
    coefficients = torch.where(x.abs() > t * x.abs().mean(1, keepdim=True), s, x.abs().softmax(0))
    torch.testing.assert_close(merged[NORM].double(), models["base"][NORM] + (coefficients * x).sum(0))


def test_coefficients_of_a_small_matrix(memory_pool: MakePool) -> None:
    """Base and experts are columns along one axis: directions never change, lengths rank 0, 1, 2 and 2, 1, 0."""
    one, two = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    tensors = {"base": torch.ones(1, 3), "one": 1 + one, "two": 1 + two}
    pool = memory_pool({model: {MATRIX: theta} for model, theta in tensors.items()})
    ((_, merged),) = execute(lower(recipe_of(("one", "two")), pool), pool)
    low, half = 1 / (1 + torch.e ** (2 / 3)), 0.5
    # by length: (low, 1) and (1/2, 1/2), the middle being the mean; by direction: all equal, so in their order
    lengths = [(low, 1.0), (half, half), (1.0, low)]
    turns = [(half, half), (half, half), (1.0, 1.0)]
    expected = [
        1 + (a + c) / 2 * float(x) + (b + d) / 2 * float(y)
        for (a, b), (c, d), x, y in zip(lengths, turns, one[0], two[0], strict=True)
    ]
    assert merged[0].tolist() == pytest.approx(expected)


def test_one_expert_alone_is_kept_whole(memory_pool: MakePool) -> None:
    pool = memory_pool(family())
    assert {tensor.kernel for tensor in lower(recipe_of(("one",)), pool).tensors} == {Copy(source="one")}
    assert {tensor.kernel for tensor in lower(recipe_of(("one",), scale=0.0), pool).tensors} == {Copy(source="base")}


def test_an_expert_of_weight_zero_adds_nothing_and_is_not_read(memory_pool: MakePool) -> None:
    pool = memory_pool(family())
    for tensor in lower(recipe_of(("one", "two"), weights=(1.0, 0.0)), pool).tensors:
        assert tensor.sources in {("base", "one"), ("one",)}


def test_equal_experts_share_what_is_not_important(memory_pool: MakePool) -> None:
    models = family()
    models["two"] = models["one"]
    pool = memory_pool(models)
    merged = dict(execute(lower(recipe_of(("one", "two"), t=2.0), pool), pool))
    for name in (MATRIX, EMBEDDING):
        torch.testing.assert_close(merged[name], models["one"][name])


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("zero", ["base", "one", "both"])
def test_weights_of_zero_have_no_direction(memory_pool: MakePool, zero: str, model_type: str) -> None:
    models = family()
    for model in ("base", "one") if zero == "both" else (zero,):
        models[model][MATRIX][:, 2] = 0
        models[model][MATRIX][3] = 0
    pool = memory_pool(models, model_type)
    recipe = recipe_of(("one", "two"), t=1.0, s=0.5)
    expected = dict(reference_merge(recipe, pool))
    for name, merged in execute(lower(recipe, pool), pool):
        assert bool(merged.isfinite().all())
        torch.testing.assert_close(merged.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_coefficients_are_per_input(memory_pool: MakePool) -> None:
    pool = memory_pool(family())
    kernels = {tensor.name: tensor.kernel for tensor in lower(recipe_of(("one", "two"), s=0.7), pool).tensors}
    for name, count, run in ((MATRIX, 9, 1), (EMBEDDING, 7, 4), (NORM, 9, 1)):
        kernel = kernels[name]
        assert isinstance(kernel, Delta)
        factors = kernel.terms[0].factors
        assert factors is not None
        assert (len(factors.values), factors.run) == (4 * count, run)
