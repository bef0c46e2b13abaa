"""Sizes of pools, against the models as transformers builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from evomerge.merging.pool import ModelPool
from evomerge.merging.sizes import sizes_of
from evomerge.recipe import Hop, uniform


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("qwen3", True), ("gpt2", True)])
def test_parameters_and_flops_are_those_of_the_model(make_family: Callable[..., Any], kind: str, tied: bool) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    family = make_family(kind=kind, tied=tied, dtype="float32")
    pool = ModelPool.open(family.base, family.experts)
    sizes, plain = sizes_of(pool), uniform([pool.base], layers=pool.layers, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(family.base)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.tensor([[1]]))
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    matrices = sum(count for op, count in counted.items() if op in ("aten.mm", "aten.addmm"))
    assert sizes.of(plain, "parameters") == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.of(plain, "flops") == matrices
    assert sizes.of(plain, "layers") == sizes.of(plain, "kv_slots") == model.config.num_hidden_layers


def test_a_longer_path_costs_the_layers_that_it_repeats(make_family: Callable[..., Any]) -> None:
    family = make_family(experts=("one",))
    pool = ModelPool.open(family.base, family.experts)
    sizes, plain = sizes_of(pool), uniform([pool.base], layers=pool.layers, dtype="float32")
    longer = replace(plain, path=tuple(Hop(source="one", layer=layer) for layer in [*range(pool.layers), 0]))
    first = sum(1 for spec in pool.specs if spec.layer == 0)
    assert first
    assert sizes.of(longer, "layers") == pool.layers + 1
    assert sizes.of(longer, "parameters") - sizes.of(plain, "parameters") == sizes.layers["parameters"][0] > 0


def test_a_token_meets_a_part_of_the_experts_of_a_mixture(memory_pool: Callable[..., Any]) -> None:
    import torch

    names: dict[str, tuple[int, ...]] = {f"model.layers.0.mlp.experts.{k}.up_proj.weight": (6, 5) for k in range(4)}
    names |= {"model.layers.0.self_attn.q_proj.weight": (5, 5), "model.layers.0.mlp.gate.weight": (4, 5)}
    names |= {"model.layers.0.input_layernorm.weight": (5,), "model.embed_tokens.weight": (7, 5)}
    pool = memory_pool({"base": {name: torch.zeros(shape) for name, shape in names.items()}})
    pool = replace(pool, config={"num_local_experts": 4, "num_experts_per_tok": 2})
    sizes = sizes_of(pool)
    assert sizes.layers["parameters"] == (4 * 30 + 25 + 20 + 5,)
    assert sizes.layers["flops"] == (2 * (2 * 30 + 25 + 20),)
    assert sizes.outside["flops"] == 2 * 35  # the embedding is the output head, too


def test_layers_that_keep_no_keys_have_no_slot(memory_pool: Callable[..., Any]) -> None:
    import torch

    names = {"model.layers.0.linear_attn.in_proj.weight": (5, 5), "model.layers.1.self_attn.q_proj.weight": (5, 5)}
    pool = memory_pool({"base": {name: torch.zeros(shape) for name, shape in names.items()}})
    assert sizes_of(pool).layers["kv_slots"] == (0, 1)
