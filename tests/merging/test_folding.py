"""A folded, exported checkpoint computes what a forward pass with a scaled residual stream computes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from evomerge.errors import MergeError
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint
from evomerge.merging.folding import Fold, fold_of
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import Hop, Recipe, uniform

VOCAB = 40
IDS = torch.arange(2, 18).view(2, 8)
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SLIDING = {"head_dim": 4, "sliding_window": 4}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 4}),
    "gemma": ("Gemma", {"head_dim": 4}),
    "gemma2": ("Gemma2", {**SLIDING, "query_pre_attn_scalar": 4}),
    "gemma3_text": ("Gemma3", {**SLIDING, "query_pre_attn_scalar": 4, "sliding_window_pattern": 3}),
    "gpt2": ("GPT2", {}),
    "phi": ("Phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "gpt_neox-serial": ("GPTNeoX", {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "olmo": ("Olmo", {}),
    "olmo2": ("Olmo2", {"attention_bias": True}),
    "olmo3": ("Olmo3", {"sliding_window": 4}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("Granite", {"residual_multiplier": 0.3}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "starcoder2": ("Starcoder2", {}),
    "stablelm": ("StableLm", {}),
    "stablelm-parallel": ("StableLm", {"use_parallel_residual": True}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {"sliding_window": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2}),
    "qwen3_moe": ("Qwen3Moe", {**MOE, "mlp_only_layers": [1], "head_dim": 4}),
}
PATH = (
    Hop(source="base", layer=0, scale=1.7),
    Hop(source="one", layer=2),
    Hop(source="one", layer=1, scale=0.4),
    Hop(source="base", layer=1),
    Hop(source="one", layer=2, scale=2.5),
    Hop(source="base", layer=3, scale=0.8),
)


def fresh(kind: str, seed: int) -> Any:
    """A model with random weights everywhere, norms and biases included."""
    prefix, extra = KINDS[kind]
    common = {k: v for k, v in LLAMA.items() if k not in {"intermediate_size", "num_key_value_heads"}}
    shape = {**common, "n_inner": 24} if prefix == "GPT2" else dict(LLAMA)
    name = f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, name)(**{**shape, **extra})
    torch.manual_seed(seed)
    kind = "GPT2LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
    model = getattr(transformers, kind)(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.25 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}))
    return folder


def stack_of(model: Any, depth: int) -> tuple[Any, str]:
    ((name, _),) = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n.count(".") == 1]
    owner, _, attribute = name.rpartition(".")
    assert len(getattr(model.get_submodule(owner), attribute)) == depth
    return model.get_submodule(owner), attribute


def naive(models: dict[str, Any], path: Sequence[Hop]) -> Any:
    """The path as its definition has it: whole layers side by side, and hooks that multiply what enters them."""
    model = copy.deepcopy(models["base"])
    owner, attribute = stack_of(model, 4)
    layers = []
    for hop in path:
        layer = copy.deepcopy(getattr(*stack_of(models[hop.source or "base"], 4))[hop.layer])
        layer.register_forward_pre_hook(lambda _, args, scale=hop.scale: (args[0] * scale, *args[1:]))
        layers.append(layer)
    setattr(owner, attribute, nn.ModuleList(layers))
    types = getattr(model.config, "layer_types", None)
    model.config.num_hidden_layers = len(path)
    if types is not None:
        model.config.layer_types = [types[hop.layer] for hop in path]
    return model


def route(path: Sequence[Hop]) -> Recipe:
    return replace(uniform(("base",), layers=4, dtype="float32"), path=tuple(path))


def exported(pool: ModelPool, path: Sequence[Hop], out: Path) -> Any:
    recipe = route(path)
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype="float32", path=recipe.path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def family(kind: str, root: Path) -> tuple[dict[str, Any], ModelPool]:
    models = {name: fresh(kind, seed) for seed, name in enumerate(("base", "one"))}
    folders = {name: save(model, root / name) for name, model in models.items()}
    return models, ModelPool.open(folders["base"], {"one": folders["one"]})


def with_epsilon(model: Any, epsilon: float) -> Any:
    """The model with another constant in all of its norms."""
    for module in model.modules():
        for key in ("eps", "variance_epsilon"):
            if key in vars(module):
                setattr(module, key, epsilon)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_folded_checkpoint_are_those_of_a_scaled_stream(kind: str, tmp_path: Path) -> None:
    models, pool = family(kind, tmp_path)
    found = logits(with_epsilon(exported(pool, PATH, tmp_path / "out"), 1e-12))
    wanted = logits(with_epsilon(naive(models, PATH), 1e-12))
    unscaled = logits(with_epsilon(naive(models, [replace(hop, scale=1.0) for hop in PATH]), 1e-12))
    spread = float((wanted - wanted.mean()).abs().max())
    assert float((unscaled - wanted).abs().max()) > 2e-2 * spread
    tolerance = 1e-3 if kind == "olmo" else 2e-5  # its norms have a constant of 1e-5 that cannot be set
    assert float((found - wanted).abs().max()) < tolerance * spread


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "olmo2"])
def test_the_constant_of_norms_is_all_that_differs(kind: str, tmp_path: Path) -> None:
    models, pool = family(kind, tmp_path)
    folded, scaled = exported(pool, PATH, tmp_path / "out"), naive(models, PATH)
    differences = {
        epsilon: float((logits(with_epsilon(folded, epsilon)) - logits(with_epsilon(scaled, epsilon))).abs().max())
        for epsilon in (1e-2, 1e-3)
    }
    assert differences[1e-2] > 1e-4
    assert 4 < differences[1e-2] / differences[1e-3] < 25  # of first order


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "smollm3", "cohere2", "olmo3"])
def test_lists_of_the_configuration_follow_the_path(kind: str, tmp_path: Path) -> None:
    models, pool = family(kind, tmp_path)
    merged = exported(pool, PATH, tmp_path / "out")
    types = models["base"].config.layer_types
    assert merged.config.layer_types == [types[hop.layer] for hop in PATH]
    assert merged.config.num_hidden_layers == len(PATH)
    if kind == "smollm3":
        rope = models["base"].config.no_rope_layers
        assert merged.config.no_rope_layers == [rope[hop.layer] for hop in PATH]


def test_what_a_fold_does_to_tensors() -> None:
    output, norm = "model.layers.3.mlp.down_proj.weight", "model.layers.3.post_attention_layernorm.weight"
    assert fold_of(output, 4.0, "llama") == Fold(gain=0.25)
    assert fold_of(norm, 4.0, "llama") == Fold()
    assert fold_of(output, 4.0, "gemma2") == Fold()
    assert fold_of(norm, 4.0, "gemma2") == Fold(gain=0.25, shift=-0.75)
    assert fold_of(norm, 4.0, "olmo2") == Fold(gain=0.25)
    assert fold_of("model.layers.3.self_attn.v_proj.weight", 4.0, "olmo2") == Fold(gain=4.0)
    assert fold_of("model.layers.3.self_attn.v_proj.bias", 4.0, "olmo2") == Fold()
    assert fold_of("bert.encoder.layer.0.output.dense.weight", 1.0, "bert") == Fold()
    with pytest.raises(MergeError, match=r"known to take the scale out again .* got 'bert'; leave all scales"):
        fold_of("bert.encoder.layer.0.output.dense.weight", 4.0, "bert")
