"""Plans of recipes with a path: against a naive assembly of layers, against the oracle, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.errors import ConfigError, MergeError
from evomerge.merging.adapters import export_adapter
from evomerge.merging.compiled import Compiler
from evomerge.merging.depth import config_at_depth
from evomerge.merging.executor import execute, execute_into
from evomerge.merging.export import export_checkpoint
from evomerge.merging.operators import lower
from evomerge.merging.plan import MergePlan
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.merging.routing import form_of, merged_specs
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform

LAYERS = 3
OUTER = {"model.embed_tokens.weight": (7, 4), "model.norm.weight": (4,)}
INNER = {
    "self_attn.q_proj.weight": (4, 4),
    "self_attn.o_proj.weight": (4, 4),
    "mlp.down_proj.weight": (4, 6),
    "mlp.down_proj.bias": (4,),
    "input_layernorm.weight": (4,),
}
WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "mlp.down_proj.bias")
VALUES = {"weight": (0.7, -0.4), "density": (0.6, 0.5), "lambda": (0.8,)}

MakePool = Callable[..., Any]


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inside = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in INNER.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in {**OUTER, **inside}.items()}


@pytest.fixture(scope="module")
def pool(memory_pool: MakePool) -> Any:
    return memory_pool({name: tensors(seed) for seed, name in enumerate(("base", "one", "two"))})


def recipe_of(operator: str, path: Sequence[Hop], **options: Any) -> Recipe:
    table = OPERATORS[operator]
    sources = ("one", "two")[: table.max_sources]
    values = {name: VALUES.get(name, ((p.low + p.high) / 2,) * 2) for name, p in table.parameters.items()}
    widths = {name: len(sources) if p.scope == "source" else 1 for name, p in table.parameters.items()}
    return Recipe(
        operator=operator,
        options=options_of(table, "paper", **options),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(values[name][: widths[name]], LAYERS)) for name in sorted(values)),
        path=tuple(path),
        mask_seed=3,
        dtype="float32",
    )


hops = st.builds(
    Hop,
    source=st.sampled_from([None, "base", "one", "two"]),
    layer=st.integers(0, LAYERS - 1),
    scale=st.sampled_from([1.0, 1.0, 0.5, 1.25, 3.0]),
)
paths = st.lists(hops, min_size=1, max_size=8)


@given(path=paths)
@settings(max_examples=60, deadline=None)
def test_a_path_is_its_layers_side_by_side(pool: Any, path: list[Hop]) -> None:
    recipe = recipe_of("linear", path)
    plain = dict(execute(lower(replace(recipe, path=()), pool), pool))
    wanted, total = {name: plain[name] for name in OUTER}, 1.0
    for depth, hop in enumerate(recipe.path or [Hop(layer=layer) for layer in range(LAYERS)]):
        total *= hop.scale
        for name in INNER:
            own = plain if hop.source is None else pool.tensors[hop.source]
            gain = 1.0 / total if name in WRITES else 1.0
            wanted[f"model.layers.{depth}.{name}"] = own[f"model.layers.{hop.layer}.{name}"] * gain
    found = dict(execute(lower(recipe, pool), pool))
    assert list(found) == sorted(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    "operator", ["linear", "task_arithmetic", "ties", "dare_ties", "della", "slerp", "iso_c", "sce"]
)
def test_every_executor_runs_paths(operator: str, pool: Any) -> None:
    path = [Hop(layer=0, scale=1.5), Hop(layer=2), Hop(source="two", layer=1), Hop(layer=2, scale=0.5), Hop(layer=0)]
    recipe = recipe_of(operator, path)
    plan = lower(recipe, pool)
    oracle = dict(reference_merge(recipe, pool))
    outputs = {tensor.name: torch.empty(tensor.shape) for tensor in plan.tensors}
    execute_into(plan, pool, outputs, block=5)
    for name, values in execute(plan, pool):
        assert torch.equal(values, outputs[name])
        torch.testing.assert_close(values.double(), oracle[name], rtol=2e-5, atol=2e-6)


def test_what_is_amplified_is_not_left_to_compiled_kernels(memory_pool: MakePool) -> None:
    name = "layers.0.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(0)
    models = {model: {name: torch.randn(128, 128, generator=generator)} for model in ("base", "one", "two")}
    pool = memory_pool(models)
    recipe = replace(recipe_of("linear", ()), parameters=(("weight", Field.constant((0.7, 0.3), 1)),))
    ran: list[Callable[..., Any]] = []

    def compile_(function: Callable[..., Any], _: bool) -> Callable[..., Any]:
        ran.append(function)
        return function

    compiler = Compiler(pays_from=0, compile=compile_)
    for path, wanted in (((), True), ((Hop(layer=0, scale=4.0),), False)):
        ran.clear()
        (found,) = (dict(execute(lower(replace(recipe, path=path), pool), pool, compiler=compiler))).values()
        assert bool(ran) == wanted
        expected = (0.7 * models["one"][name] + 0.3 * models["two"][name]) * (0.25 if path else 1.0)
        torch.testing.assert_close(found, expected)


def test_a_layer_that_stands_twice_has_one_mask(pool: Any) -> None:
    recipe = recipe_of("dare_linear", [Hop(layer=1), Hop(layer=1), Hop(layer=0)])
    found = dict(execute(lower(recipe, pool), pool))
    plain = dict(execute(lower(replace(recipe, path=()), pool), pool))
    for name in INNER:
        assert torch.equal(found[f"model.layers.0.{name}"], plain[f"model.layers.1.{name}"])
        assert torch.equal(found[f"model.layers.1.{name}"], plain[f"model.layers.1.{name}"])


def test_norms_that_add_one_are_folded_as_such(memory_pool: MakePool) -> None:
    name = "layers.0.post_attention_layernorm.weight"
    pool = memory_pool({"base": {name: torch.tensor([0.0, 1.0, -3.0])}}, model_type="gemma2")
    recipe = replace(uniform(("base",), layers=1, dtype="float32"), path=(Hop(layer=0, scale=4.0),))
    (found,) = dict(execute(lower(recipe, pool), pool)).values()
    assert found.tolist() == [-0.75, -0.5, -1.5]  # 1 + w becomes (1 + w) / 4


def test_only_what_a_path_needs_is_merged(pool: Any) -> None:
    path = [Hop(source="one", layer=0), Hop(layer=2)]
    assert {spec.layer for spec in merged_specs(pool, path)} == {None, 2}
    assert merged_specs(pool, ()) == pool.specs


def test_changes_are_told_by_depth(pool: Any) -> None:
    long = lower(recipe_of("linear", [Hop(layer=0), Hop(source="one", layer=0), Hop(source="two", layer=1)]), pool)
    short = lower(recipe_of("linear", [Hop(layer=0), Hop(source="one", layer=1)]), pool)
    assert short.changed(long) == {f"model.layers.1.{name}" for name in INNER}
    assert long.changed(short) == {f"model.layers.{depth}.{name}" for depth in (1, 2) for name in INNER}
    assert long.changed(long) == frozenset()


def test_plans_without_a_path_are_what_they_were(pool: Any) -> None:
    plan = lower(recipe_of("ties", ()), pool)
    assert all(tensor.origin == tensor.name and not tensor.is_amplified for tensor in plan.tensors)
    same = lower(recipe_of("ties", [Hop(layer=layer) for layer in range(LAYERS)]), pool)
    assert same == plan


def test_strangers_on_a_path_are_refused(pool: Any) -> None:
    with pytest.raises(MergeError, match=r"names the models \['three'\]"):
        lower(recipe_of("linear", [Hop(source="three", layer=0)]), pool)


def test_an_encoder_and_a_decoder_have_no_paths(memory_pool: MakePool) -> None:
    names = [
        f"{part}.block.{layer}.layer.0.SelfAttention.o.weight" for part in ("encoder", "decoder") for layer in (0, 1)
    ]
    pool = memory_pool({"base": {name: torch.ones(2, 2) for name in names}}, model_type="t5")
    with pytest.raises(MergeError, match="expected models with one stack of layers"):
        lower(replace(uniform(("base",), layers=2, dtype="float32"), path=(Hop(layer=1),)), pool)


def test_an_adapter_holds_no_path(pool: Any, tmp_path: Path) -> None:
    for path in ([Hop(layer=0)], [Hop(layer=0, scale=2.0), Hop(layer=1), Hop(layer=2)]):
        with pytest.raises(ConfigError, match="got a path through layers"):
            export_adapter(lower(recipe_of("linear", path), pool), pool, tmp_path / "out")


def config_of(kind: type[Any], **changes: Any) -> dict[str, Any]:
    shape = {
        "num_hidden_layers": 4,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    plain: dict[str, Any] = kind(**{**shape, **changes}).to_dict()
    return plain


def test_the_depth_stands_under_all_its_names() -> None:
    gpt2 = transformers.GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=16).to_dict()
    assert config_at_depth(gpt2 | {"num_hidden_layers": 3}, [0, 0, 1, 2]) == gpt2 | {
        "n_layer": 4,
        "num_hidden_layers": 4,
    }
    assert config_at_depth(gpt2, [0, 1, 2]) == gpt2


def test_patterns_that_a_file_leaves_out_are_spelled() -> None:
    plain = config_of(transformers.Gemma2Config, head_dim=8)
    del plain["layer_types"]
    found = config_at_depth(plain, [1, 1, 0])
    assert found["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]


def test_experts_in_some_layers_are_spelled() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    plain = config_of(transformers.Qwen2MoeConfig, decoder_sparse_step=2, mlp_only_layers=[3], **experts)
    found = config_at_depth(plain, [1, 0, 1, 3])
    assert (found["decoder_sparse_step"], found["mlp_only_layers"], found["num_hidden_layers"]) == (1, [1, 3], 4)


def test_layers_that_count_themselves_are_refused() -> None:
    plain = transformers.GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=16, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(MergeError, match=r"cannot be written as a plain gpt2 checkpoint: at depth 0 .*scaling"):
        config_at_depth(plain.to_dict(), [1, 1])
    assert config_at_depth(plain.to_dict(), [0, 1])["n_layer"] == 2


def test_dense_layers_that_must_come_first_may_stay_there() -> None:
    latent = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
    }
    plain = config_of(transformers.DeepseekV3Config, first_k_dense_replace=1, **latent, **experts)
    assert config_at_depth(plain, [0, 2, 2, 1])["first_k_dense_replace"] == 1
    with pytest.raises(MergeError, match=r"cannot be written .* at depth 0 it would have"):
        config_at_depth(plain, [2, 0, 1])


def test_what_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(MergeError, match="expected an architecture that the installed transformers knows"):
        config_at_depth({"model_type": "lama", "num_hidden_layers": 2}, [0])


def test_models_of_another_kind_take_unscaled_paths(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    pool = ModelPool.open(tmp_path / "base", {})
    recipe = replace(uniform(("base",), layers=2, dtype="float32"), path=tuple(Hop(layer=i) for i in (0, 1, 1)))
    export_checkpoint(execute(lower(recipe, pool), pool), pool, tmp_path / "out", dtype=recipe.dtype, path=recipe.path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 3
    with pytest.raises(MergeError, match="norms are known to take the scale out again"):
        lower(replace(recipe, path=(Hop(layer=0, scale=2.0),)), pool)


def test_constants_inside_layers_stay_behind(make_family: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    family = make_family(kind="gpt2", experts=("one",))
    file = family.base / "model.safetensors"
    held = load_file(file)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 32, 32) for layer in range(3)}
    save_file({**held, **masks}, file, metadata={"format": "pt"})
    pool = ModelPool.open(family.base, family.experts)
    assert len(pool.carried) == 3
    path = (Hop(source="one", layer=1), Hop(layer=0))
    recipe = replace(uniform(("base",), layers=3, dtype=pool.dtype), path=path)
    form = form_of(pool, path)
    assert form.carried == ()
    assert {spec.layer for spec in form.specs} == {None, 0, 1}
    plan: MergePlan = lower(recipe, pool)
    export_checkpoint(execute(plan, pool), pool, tmp_path / "out", dtype=recipe.dtype, path=path)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {tensor.name for tensor in plan.tensors}
