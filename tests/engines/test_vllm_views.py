"""Where tensors lie in fused and cut parameters, on modules with the attributes of vLLM's. Needs no vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Module, Parameter

from evomerge.engines.vllm_views import View, module_of, views_of
from evomerge.merging.pool import TensorSpec

HEADS, KV_HEADS, HEAD, HIDDEN, INNER, VOCABULARY = 4, 2, 8, 16, 24, 10
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
    "model.layers.0.self_attn.q_proj.bias": (HEADS * HEAD,),
    "model.layers.0.self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
    "model.layers.0.self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
    "model.layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
}
SPECS = {
    name: TensorSpec(name=name, shape=shape, dtype="float32", role="mlp", layer=None) for name, shape in SHAPES.items()
}


def module(rank: int, ranks: int, *shape: int, **attributes: Any) -> Module:
    """A layer of one rank; its memory is full of -1, which nothing that is loaded holds."""
    made = Module()
    made.weight = Parameter(torch.full(shape, -1.0), requires_grad=False)
    for name, value in {"tp_rank": rank, "tp_size": ranks, **attributes}.items():
        setattr(made, name, value)
    return made


def placed(parent: Module, path: str, child: Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in dict(parent.named_children()):
            parent.add_module(name, Module())
        parent = parent.get_submodule(name)
    parent.add_module(last, child)


def model_of(rank: int, ranks: int) -> Any:
    """What vLLM makes of the shapes above: parts of every matrix, keys and values repeated if ranks outnumber them."""
    heads, copies = HEADS // ranks, max(1, ranks // KV_HEADS)
    kv_heads = max(1, KV_HEADS // ranks)
    made: Any = Module()
    made.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    rows = (heads + 2 * kv_heads) * HEAD
    fused = module(
        rank,
        ranks,
        rows,
        HIDDEN,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=HEAD,
        v_head_size=HEAD,
        num_kv_head_replicas=copies,
    )
    fused.bias = Parameter(torch.full((rows,), -1.0), requires_grad=False)
    share = -(-VOCABULARY // ranks)
    held = SimpleNamespace(org_vocab_start_index=rank * share, org_vocab_end_index=min(VOCABULARY, (rank + 1) * share))
    placed(made, "model.embed_tokens", module(rank, ranks, 64, HIDDEN, shard_indices=held))
    placed(made, "model.layers.0.self_attn.qkv_proj", fused)
    placed(made, "model.layers.0.self_attn.o_proj", module(rank, ranks, HIDDEN, HEADS * HEAD // ranks))
    placed(
        made,
        "model.layers.0.mlp.gate_up_proj",
        module(rank, ranks, 2 * INNER // ranks, HIDDEN, output_sizes=[INNER, INNER]),
    )
    placed(made, "model.layers.0.mlp.down_proj", module(rank, ranks, HIDDEN, INNER // ranks))
    placed(made, "model.layers.0.input_layernorm", module(rank, ranks, HIDDEN))
    return made


def numbered() -> dict[str, torch.Tensor]:
    """Tensors whose elements are all different."""
    return {
        name: torch.arange(torch.Size(shape).numel()).view(shape) + 1000.0 * place
        for place, (name, shape) in enumerate(SHAPES.items())
    }


def loaded(rank: int, ranks: int) -> tuple[Any, dict[str, View]]:
    model = model_of(rank, ranks)
    views = views_of(model, SPECS)
    assert views is not None
    for name, whole in numbered().items():
        view = views.by_name[name]
        part = whole if view.axis is None else whole.narrow(view.axis, view.start, view.memory.shape[view.axis])
        view.memory.copy_(part)
    return model, dict(views.by_name)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_hold_every_element_between_them(ranks: int) -> None:
    held: dict[str, set[float]] = {name: set() for name in SHAPES}
    for rank in range(ranks):
        for name, view in loaded(rank, ranks)[1].items():
            held[name] |= {*view.memory.flatten().tolist()}
    assert held == {name: {*whole.flatten().tolist()} for name, whole in numbered().items()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_parts_fill_their_fused_parameter_and_nothing_else(ranks: int) -> None:
    for rank in range(ranks):
        model, _ = loaded(rank, ranks)
        for path in ("self_attn.qkv_proj", "mlp.gate_up_proj", "self_attn.o_proj"):
            assert (model.get_submodule(f"model.layers.0.{path}").weight >= 0).all()
        embedding = model.model.embed_tokens
        rows = embedding.shard_indices.org_vocab_end_index - embedding.shard_indices.org_vocab_start_index
        assert (embedding.weight[rows:] == -1).all()


def test_heads_lie_in_order() -> None:
    model, _ = loaded(1, 2)
    whole = numbered()
    parts = [whole[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    expected = torch.cat([parts[0][HEADS * HEAD // 2 :], *(part[HEAD:] for part in parts[1:])])
    assert torch.equal(model.model.layers.get_submodule("0").self_attn.qkv_proj.weight, expected)


def test_ranks_beyond_the_key_heads_share_one() -> None:
    first, second, third = (loaded(rank, 4)[1]["model.layers.0.self_attn.k_proj.weight"].memory for rank in (0, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_packed_parameters_have_no_views() -> None:
    model = model_of(0, 1)
    model.model.layers.get_submodule("0").self_attn.o_proj.weight.data = torch.empty(0)
    assert views_of(model, SPECS) is None


def test_unknown_tensors_have_no_views() -> None:
    name = "model.layers.0.mlp.router.weight"
    spec = TensorSpec(name=name, shape=(2, HIDDEN), dtype="float32", role="mlp", layer=None)
    assert views_of(model_of(0, 1), {**SPECS, name: spec}) is None


def test_modules() -> None:
    model = model_of(0, 1)
    assert module_of(model, "model.layers.0.self_attn.v_proj.bias") == "model.layers.0.self_attn.qkv_proj"
    assert module_of(model, "model.layers.0.mlp.down_proj.weight") == "model.layers.0.mlp.down_proj"
