"""Mixtures of experts, whose maps transformers packs: the live model computes what the exported checkpoint computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
import transformers

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.engines.places import places_of
from evomerge.errors import PoolError
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
IDS = torch.arange(2, 18).view(2, 8)
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
MOE = {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 8}  # 12, so that order by text shows
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
KINDS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**MOE, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2},
    "Qwen3Moe": {**MOE, "mlp_only_layers": [1], "head_dim": 4},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Glm4Moe": {**ROUTED, "n_group": 1, "topk_group": 1, "head_dim": 4},
    "GraniteMoe": {"num_local_experts": 4, "num_experts_per_tok": 2},  # packed in files, too
}
PATH = (
    Hop(source="one", layer=2),
    Hop(source=None, layer=1),
    Hop(source="base", layer=2),
    Hop(source="two", layer=2),
)

Family = Callable[[str], ModelPool]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A pool of three random models of a kind."""
    pools: dict[str, ModelPool] = {}

    def made(kind: str) -> ModelPool:
        if kind not in pools:
            folder = tmp_path_factory.mktemp(kind)
            for seed, name in enumerate(("base", "one", "two")):
                _save(kind, seed, folder / name)
            pools[kind] = ModelPool.open(folder / "base", {name: folder / name for name in ("one", "two")})
        return pools[kind]

    return made


def _save(kind: str, seed: int, folder: Path) -> None:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **KINDS[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).requires_grad_(False)
    for name, weight in model.state_dict().items():
        weight.add_((0.3 if "correction" not in name else 0.01) * torch.randn_like(weight))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        copy(MODELS / "base" / file, folder)


def ties(pool: ModelPool) -> Recipe:
    return Recipe(
        operator="ties",
        options=options_of(OPERATORS["ties"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=tuple(
            (name, Field.constant([value] * count, pool.layers))
            for name, value, count in (("density", 0.5, 2), ("lambda", 0.8, 1), ("weight", 1.0, 2))
        ),
        dtype=pool.dtype,
    )


def exported(pool: ModelPool, recipe: Recipe, out: Path) -> Any:
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype=recipe.dtype, path=recipe.path)
    return transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_mixture_is_the_exported_one(kind: str, family: Family, tmp_path: Path) -> None:
    pool = family(kind)
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", dtype="float32"))
    merged = ties(pool)
    recipes = (uniform(("one",), layers=3, dtype=pool.dtype), merged, replace(merged, path=PATH), merged)
    seen = []
    for number, recipe in enumerate(recipes):
        engine.load(recipe)
        seen.append(logits(engine.model))
        assert torch.equal(seen[-1], logits(exported(pool, recipe, tmp_path / str(number))))
    assert torch.equal(seen[1], seen[3])
    assert not any(torch.equal(seen[1], other) for other in (seen[0], seen[2]))


def test_an_experts_map_is_a_view_of_the_packed_parameter(family: Family) -> None:
    pool = family("Qwen3Moe")
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    packed = engine.model.model.layers[2].mlp.experts.gate_up_proj
    place = places_of(engine.model, pool)["model.layers.2.mlp.experts.10.up_proj.weight"]
    assert place.parameter == "model.layers.2.mlp.experts.gate_up_proj"
    view = place.within(engine.model)
    assert view.is_contiguous()
    assert torch.equal(view, packed[10, 8:])
    view.fill_(7.0)
    assert packed.eq(7.0).sum() == view.numel()


def test_only_the_maps_that_change_are_written(family: Family) -> None:
    pool = family("Mixtral")
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    assert engine.load(ties(pool)).rewritten_share == 1.0
    assert engine.load(ties(pool)).rewritten_share == 0.0
    engine.load(replace(ties(pool), path=PATH))
    assert engine.load(replace(ties(pool), path=PATH[::-1])).rewritten_share == 0.0


def test_what_transformers_makes_of_several_tensors_otherwise_is_refused_with_how(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping
    from transformers.core_model_loading import Interleave, WeightConverter

    pool = family("GraniteMoe")
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    name = "self_attn.q_proj.weight"
    rule = WeightConverter(source_patterns=name, target_patterns=name, operations=[Interleave(dim=0)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [rule])
    with pytest.raises(PoolError, match=r"layers\.1\.self_attn\.q_proj\.weight.*by \[Interleave.*undone in place"):
        places_of(engine.model, pool)


def test_an_expert_that_is_missing_is_told(family: Family) -> None:
    pool = family("Mixtral")
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    fewer = replace(pool, specs=tuple(spec for spec in pool.specs if ".0.block_sparse_moe.experts.3." not in spec.name))
    with pytest.raises(PoolError, match=r"layers\.0\.block_sparse_moe\.experts\.0\.w1.*of 6 such tensors"):
        places_of(engine.model, fewer)
