"""Which tensors transforms are for, what they do with the others, which axis is which, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.pool import ModelPool
from evomerge.merging.transforms import Curvature, transformed
from evomerge.merging.transforms.regression import regmean, wudi
from evomerge.merging.transforms.spectral import star
from evomerge.recipe.transform_table import TRANSFORMS

EMBED, MATRIX, STACK, NORM = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.experts.down_proj",
    "model.norm.weight",
)
SHAPES = {EMBED: (11, 4), MATRIX: (6, 4), STACK: (2, 4, 6), NORM: (4,), "model.layers.0.mlp.up_proj.bias": (6,)}


@dataclass(frozen=True)
class Known:
    """Facts in memory, by expert and tensor."""

    grams: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    curvatures: dict[tuple[str, str], Curvature] = field(default_factory=dict)

    def gram(self, model: str, tensor: str) -> torch.Tensor | None:
        return self.grams.get((model, tensor))

    def fisher(self, model: str, tensor: str) -> Curvature | None:
        return self.curvatures.get((model, tensor))

    second_moments = fisher


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pool_of(
    make: Callable[..., Any], shapes: dict[str, tuple[int, ...]], model_type: str = "llama", experts: int = 2
) -> Any:
    base = {name: random(*shape) for name, shape in shapes.items()} | {"model.ids": torch.arange(3)}
    changed = {
        f"e{k}": {
            name: old + 1e-2 * random(*old.shape, seed=k + 1) if old.is_floating_point() else old
            for name, old in base.items()
        }
        for k in range(experts)
    }
    return make({"base": base, **changed}, model_type)


def everything(shapes: dict[str, tuple[int, ...]], experts: int = 2, inputs: int = -1) -> Known:
    """Facts of every expert: Gram matrices of matrices, curvatures of all."""
    known = Known()
    for k in range(experts):
        for name, shape in shapes.items():
            known.curvatures[f"e{k}", name] = random(*shape, seed=30 + k) ** 2
            if len(shape) > 1:
                x = random(*shape[:-2], 9, shape[inputs], seed=60 + k)
                known.grams[f"e{k}", name] = x.mT @ x
    return known


def taus(pool: Any, name: str) -> dict[str, torch.Tensor]:
    return {expert: pool.tensor(expert, name).float() - pool.tensor("base", name).float() for expert in pool.experts}


def averaged(deltas: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {expert: delta / len(deltas) for expert, delta in deltas.items()}


def assert_equal(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(made) == list(wanted)
    for one, other in zip(made.values(), wanted.values(), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("experts", [1, 2])
def test_every_transform_of_the_table_gives_every_float_tensor_of_every_expert(
    memory_pool: Callable[..., Any], name: str, experts: int
) -> None:
    pool = pool_of(memory_pool, SHAPES, experts=experts)
    made = dict(transformed(name, pool, everything(SHAPES, experts)))
    assert list(made) == sorted(SHAPES)
    for tensor, changes in made.items():
        assert list(changes) == list(pool.experts)
        assert all(change.shape == SHAPES[tensor] and change.dtype == torch.float32 for change in changes.values())
        assert all(change.isfinite().all() and change.is_contiguous() for change in changes.values())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_equal_inputs_give_equal_bits(memory_pool: Callable[..., Any], name: str) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    first, second = (dict(transformed(name, pool, facts)) for _ in range(2))
    for tensor, changes in first.items():
        assert all(torch.equal(change, second[tensor][expert]) for expert, change in changes.items())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_bits_do_not_depend_on_the_number_of_threads(memory_pool: Callable[..., Any], name: str) -> None:
    shapes = SHAPES | {MATRIX: (300, 400), EMBED: (3000, 40)}
    pool, facts, made = pool_of(memory_pool, shapes), everything(shapes), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(dict(transformed(name, pool, facts)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, three = made
    assert [*one] == [*three]
    for tensor, changes in one.items():
        assert all(torch.equal(change, three[tensor][expert]) for expert, change in changes.items())


def test_a_fault_in_a_tensor_leaves_the_number_of_threads_alone(memory_pool: Callable[..., Any]) -> None:
    before = torch.get_num_threads()
    with pytest.raises(MergeError, match="second moments"):
        dict(transformed("ota", pool_of(memory_pool, SHAPES), Known()))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", TRANSFORMS)
def test_experts_equal_to_the_base_stay_so(memory_pool: Callable[..., Any], name: str) -> None:
    base = {tensor: random(*shape) for tensor, shape in SHAPES.items()}
    pool = memory_pool({"base": base, "e0": base, "e1": base})
    for _, changes in transformed(name, pool, everything(SHAPES)):
        assert all(not change.any() for change in changes.values())


@pytest.mark.parametrize("name", ["tsv_m", "lore", "regmean", "wudi"])
@pytest.mark.parametrize("tensor", [EMBED, NORM, "model.layers.0.mlp.up_proj.bias"])
def test_what_is_no_matrix_of_a_layer_is_averaged(memory_pool: Callable[..., Any], name: str, tensor: str) -> None:
    pool = pool_of(memory_pool, SHAPES)
    assert_equal(dict(transformed(name, pool, everything(SHAPES)))[tensor], averaged(taus(pool, tensor)))


@pytest.mark.parametrize("tensor", [EMBED, NORM])
def test_star_leaves_what_is_no_matrix_of_a_layer_alone(memory_pool: Callable[..., Any], tensor: str) -> None:
    pool = pool_of(memory_pool, SHAPES)
    assert_equal(dict(transformed("star", pool, Known()))[tensor], taus(pool, tensor))


def test_none_gives_task_vectors(memory_pool: Callable[..., Any]) -> None:
    pool = pool_of(memory_pool, SHAPES)
    for tensor, changes in transformed("none", pool, Known()):
        assert_equal(changes, taus(pool, tensor))


def test_maps_of_moe_experts_are_transformed_one_by_one(memory_pool: Callable[..., Any]) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    deltas = taus(pool, STACK)
    for place in range(2):
        own = {expert: delta[place] for expert, delta in deltas.items()}
        grams = {expert: facts.grams[expert, STACK][place] for expert in own}
        for name, wanted in (("star:40", star(own, 40)), ("regmean:0.5", regmean(own, grams, 0.5))):
            made = dict(transformed(name, pool, facts))[STACK]
            assert_equal({expert: change[place] for expert, change in made.items()}, wanted)


@pytest.mark.parametrize(
    ("model_type", "tensor", "shape"),
    [("gpt2", "h.0.mlp.c_fc.weight", (4, 6)), ("gpt_oss", "model.layers.0.mlp.experts.down_proj", (2, 4, 6))],
)
def test_inputs_may_be_the_first_axis_of_a_map(
    memory_pool: Callable[..., Any], model_type: str, tensor: str, shape: tuple[int, ...]
) -> None:
    shapes = {tensor: shape}
    pool, facts = pool_of(memory_pool, shapes, model_type), everything(shapes, inputs=-2)
    swapped = {expert: delta.mT.reshape(-1, 6, 4) for expert, delta in taus(pool, tensor).items()}
    grams = {expert: facts.grams[expert, tensor].reshape(-1, 4, 4) for expert in swapped}
    for place in range(len(swapped["e0"])):
        own = {expert: delta[place] for expert, delta in swapped.items()}
        by_input = regmean(own, {expert: gram[place] for expert, gram in grams.items()}, 0.1)
        for name, wanted in (("regmean:0.1", by_input), ("wudi:0.01", wudi(own, 0.01))):
            made = dict(transformed(name, pool, facts))[tensor]
            assert_equal({e: made[e].mT.reshape(-1, 6, 4)[place] for e in made}, wanted)


@pytest.mark.parametrize("name", ["fisher", "ota"])
@pytest.mark.parametrize(
    ("model_type", "tensor", "stored"), [("llama", MATRIX, (6, 4)), ("gpt2", "h.0.mlp.c_fc.weight", (4, 6))]
)
def test_a_pair_stands_for_the_product_of_outputs_and_inputs(
    memory_pool: Callable[..., Any], name: str, model_type: str, tensor: str, stored: tuple[int, int]
) -> None:
    pool = pool_of(memory_pool, {tensor: stored}, model_type)
    pairs = {f"e{k}": (random(6, seed=k) ** 2, random(4, seed=k + 9) ** 2) for k in range(2)}
    whole = {expert: torch.outer(row, column) for expert, (row, column) in pairs.items()}
    given: list[dict[str, Curvature]] = [
        {**pairs},
        {expert: own if stored == (6, 4) else own.T for expert, own in whole.items()},
    ]
    factored, full = (
        dict(transformed(name, pool, Known(curvatures={(expert, tensor): c for expert, c in own.items()})))[tensor]
        for own in given
    )
    assert_equal(factored, full)


@pytest.mark.parametrize("name", ["fisher", "ota"])
def test_what_lacks_a_curvature_by_nature_is_averaged(memory_pool: Callable[..., Any], name: str) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    del facts.curvatures["e1", NORM]
    assert_equal(dict(transformed(name, pool, facts))[NORM], averaged(taus(pool, NORM)))


@pytest.mark.parametrize("name", ["tsv_m", "lore", "pcb", "regmean", "wudi", "fisher", "ota"])
def test_the_sum_at_weight_one_is_no_larger_than_the_task_vectors_together(
    memory_pool: Callable[..., Any], name: str
) -> None:
    pool = pool_of(memory_pool, SHAPES)
    for tensor, changes in transformed(name, pool, everything(SHAPES)):
        together = reduce(torch.add, (delta.norm() for delta in taus(pool, tensor).values()))
        assert reduce(torch.add, changes.values()).norm() <= 1.5 * together


@pytest.mark.parametrize(
    ("name", "give"), [("regmean", "calibration text"), ("fisher", "calibration text"), ("ota", "second moments")]
)
def test_a_missing_fact_is_named(memory_pool: Callable[..., Any], name: str, give: str) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    facts.grams.pop(("e1", MATRIX))
    facts.curvatures.pop(("e1", MATRIX))
    with pytest.raises(MergeError, match=f"{name}: expert e1: .* {MATRIX}; got none; give .*{give}"):
        dict(transformed(name, pool, facts))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.ones(4, 5), r"\(6, 4\); got \(4, 5\)"),
        (-torch.ones(6, 4), "from -1"),
        (torch.full((6, 4), torch.nan), "nan"),
    ],
)
def test_a_curvature_that_does_not_fit_is_refused(
    memory_pool: Callable[..., Any], bad: torch.Tensor, said: str
) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    facts.curvatures["e1", MATRIX] = bad
    with pytest.raises(MergeError, match=f"fisher: expert e1: .* {MATRIX}.*{said}"):
        dict(transformed("fisher", pool, facts))


@pytest.mark.parametrize(
    ("bad", "said"), [(torch.ones(6, 6), r"\(4, 4\); got \(6, 6\)"), (torch.full((4, 4), torch.inf), "infinity")]
)
def test_a_gram_matrix_that_does_not_fit_is_refused(
    memory_pool: Callable[..., Any], bad: torch.Tensor, said: str
) -> None:
    pool, facts = pool_of(memory_pool, SHAPES), everything(SHAPES)
    facts.grams["e1", MATRIX] = bad
    with pytest.raises(MergeError, match=f"regmean: expert e1: .* {MATRIX}.*{said}"):
        dict(transformed("regmean", pool, facts))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["star:40", "tsv_m", "wudi"])
def test_real_checkpoints(make_family: Callable[..., Any], kind: str, name: str) -> None:
    family = make_family(kind=kind)
    pool = ModelPool.open(family.base, family.experts)
    changed = dict(transformed(name, pool, Known()))
    assert list(changed) == [spec.name for spec in pool.specs]
    matrix = next(spec.name for spec in pool.specs if spec.name.endswith(("up_proj.weight", "c_fc.weight")))
    for expert, delta in taus(pool, matrix).items():
        cosine = torch.cosine_similarity(changed[matrix][expert].reshape(1, -1), delta.reshape(1, -1))
        assert 0.3 < float(cosine) < 0.999
