"""Every family goes the whole way: opened, merged, written, loaded by transformers, asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Recipe, options_of

TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD_TEXT = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
MOE = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts_per_tok": 1}

LANGUAGE_MODELS: Mapping[str, dict[str, Any]] = {
    "Llama": TEXT,
    "Mistral": TEXT,
    "Qwen2": {**TEXT, "tie_word_embeddings": True},
    "Qwen3": {**TEXT, "head_dim": 4},
    "Gemma2": {**TEXT, "head_dim": 4},
    "Gemma3": {**TEXT, "head_dim": 4},
    "Phi": TEXT,
    "Phi3": TEXT,
    "Olmo2": TEXT,
    "GPTNeoX": OLD_TEXT,
    "GPT2": {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "Mixtral": {**TEXT, "num_local_experts": 2},
    "Qwen2Moe": {**TEXT, **MOE, "num_experts": 2},
}

IDS = torch.arange(3, 20)[None]
PIXELS = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


def language_model(kind: str) -> Any:
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, name)(config(**LANGUAGE_MODELS[kind]))


def save_family(model: Any, root: Path, experts: tuple[str, ...] = ("one", "two")) -> dict[str, Path]:
    """The model as `base`, and experts that differ from it by noise; folders by name."""
    torch.manual_seed(0)
    model.bfloat16().save_pretrained(root / "base")
    for name in experts:
        expert = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        expert.save_pretrained(root / name)
    return {name: root / name for name in ("base", *experts)}


def open_family(folders: Mapping[str, Path]) -> ModelPool:
    return ModelPool.open(folders["base"], {name: folder for name, folder in folders.items() if name != "base"})


def task_arithmetic(pool: ModelPool, *weights: float) -> Recipe:
    fields = {"lambda": Field.constant([1.0], pool.layers), "weight": Field.constant(weights, pool.layers)}
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=pool.experts,
        parameters=tuple(sorted(fields.items())),
        dtype=pool.dtype,
    )


def export(pool: ModelPool, recipe: Recipe, out: Path) -> Path:
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype=recipe.dtype)
    return out


def load(kind: Any, folder: Path) -> Any:
    model, info = kind.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def same_answers(kind: Any, one: Path, other: Path, **inputs: torch.Tensor) -> bool:
    answers = [load(kind, folder)(**inputs) for folder in (one, other)]
    return all(
        torch.equal(answer, answers[1][key]) for key, answer in answers[0].items() if isinstance(answer, torch.Tensor)
    )


def check_whole_way(folders: Mapping[str, Path], kind: Any, out: Path, **inputs: torch.Tensor) -> ModelPool:
    """Open, merge, export, load: one-hot answers as the expert, anything else as the reference says."""
    pool = open_family(folders)
    one_hot = export(pool, task_arithmetic(pool, 1.0, 0.0), out / "one-hot")
    assert same_answers(kind, one_hot, folders["one"], **inputs)
    mixed = task_arithmetic(pool, 0.4, 0.7)
    for (name, got), (other, want) in zip(execute(lower(mixed, pool), pool), reference_merge(mixed, pool), strict=True):
        assert name == other
        torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-6)
    load(kind, export(pool, mixed, out / "mixed"))
    return pool


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_language_models(kind: str, tmp_path: Path) -> None:
    folders = save_family(language_model(kind), tmp_path)
    pool = check_whole_way(folders, transformers.AutoModelForCausalLM, tmp_path, input_ids=IDS)
    assert pool.layers == 2
    assert not pool.carried
    for layer in range(2):
        roles = {spec.role for spec in pool.specs if spec.layer == layer}
        assert roles == {"attention", "mlp", "norm"}
    assert {spec.role for spec in pool.specs if spec.layer is None} == {"embed", "head"}


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe"])
def test_mixtures_are_merged_expert_by_expert(kind: str, tmp_path: Path) -> None:
    pool = open_family(save_family(language_model(kind), tmp_path))
    experts = [spec for spec in pool.specs if ".experts." in spec.name]
    assert len(experts) == 2 * 2 * 3  # layers, experts, maps
    assert {spec.role for spec in experts} == {"mlp"}


def test_a_mixture_and_a_dense_model_are_refused(tmp_path: Path) -> None:
    folders = save_family(language_model("Mixtral"), tmp_path / "moe", ())
    folders |= {"one": save_family(language_model("Mistral"), tmp_path / "dense", ())["base"]}
    with pytest.raises(PoolError, match=r'one: config\.json: architectures: expected \["MixtralForCausalLM"\]'):
        open_family(folders)


def test_an_encoder(tmp_path: Path) -> None:
    folders = save_family(transformers.BertForSequenceClassification(transformers.BertConfig(**OLD_TEXT)), tmp_path)
    kind = transformers.AutoModelForSequenceClassification
    pool = check_whole_way(folders, kind, tmp_path, input_ids=IDS)
    roles = {spec.name: spec.role for spec in pool.specs}
    assert roles["bert.embeddings.token_type_embeddings.weight"] == "embed"
    assert roles["bert.encoder.layer.1.attention.output.dense.weight"] == "attention"
    assert roles["bert.encoder.layer.1.attention.output.LayerNorm.weight"] == "norm"
    assert roles["bert.encoder.layer.1.output.dense.weight"] == "mlp"
    assert roles["bert.encoder.layer.1.output.LayerNorm.weight"] == "norm"
    assert roles["classifier.weight"] == "head"


def test_a_vision_transformer(tmp_path: Path) -> None:
    folders = save_family(transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE)), tmp_path)
    pool = check_whole_way(folders, transformers.AutoModelForImageClassification, tmp_path, pixel_values=PIXELS)
    assert pool.layers == 2
    assert {spec.role for spec in pool.specs if spec.layer == 0} == {"attention", "mlp", "norm"}


def test_the_image_side_of_clip(tmp_path: Path) -> None:
    folders = save_family(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**IMAGE)), tmp_path)
    check_whole_way(folders, transformers.CLIPVisionModel, tmp_path, pixel_values=PIXELS)


def test_both_sides_of_clip_keep_their_depth(tmp_path: Path) -> None:
    text = {**OLD_TEXT, "max_position_embeddings": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=8)
    folders = save_family(transformers.CLIPModel(config), tmp_path)
    pool = check_whole_way(folders, transformers.CLIPModel, tmp_path, input_ids=IDS, pixel_values=PIXELS)
    layers = {spec.name: spec.layer for spec in pool.specs}
    assert layers["vision_model.encoder.layers.1.mlp.fc1.weight"] == 1
    assert layers["text_model.encoder.layers.1.mlp.fc1.weight"] == 1
    assert not pool.carried


@pytest.fixture
def multimodal(tmp_path: Path) -> dict[str, Path]:
    """A multimodal base of three vision layers over a language model of two, and its experts."""
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**{**IMAGE, "num_hidden_layers": 3}),
        image_token_index=47,
    )
    return save_family(transformers.LlavaForConditionalGeneration(config), tmp_path / "multimodal")


def test_a_vision_tower_lies_outside_the_layers_of_its_language_model(multimodal: dict[str, Path]) -> None:
    pool = open_family(multimodal)
    assert pool.layers == 2
    tower = [spec for spec in pool.specs if "vision_tower" in spec.name]
    assert tower
    assert {(spec.role, spec.layer) for spec in tower} == {("head", None)}
    assert not pool.carried


def test_a_language_model_merges_into_a_multimodal_one(multimodal: dict[str, Path], tmp_path: Path) -> None:
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).bfloat16()
    plain.save_pretrained(tmp_path / "plain")
    pool = open_family({"base": multimodal["base"], "plain": tmp_path / "plain"})
    assert {spec.name.split(".")[0] for spec in pool.specs} == {"language_model"}
    assert {spec.name.split(".")[0] for spec in pool.carried} == {"vision_tower", "multi_modal_projector"}
    merged = load(transformers.AutoModelForImageTextToText, export(pool, task_arithmetic(pool, 1.0), tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(merged(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    base, out = (load_file(folder / "model.safetensors") for folder in (multimodal["base"], tmp_path / "out"))
    assert all(torch.equal(out[spec.name], base[spec.name]) for spec in pool.carried)


def test_a_tower_that_is_not_merged_must_be_the_bases(multimodal: dict[str, Path], tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).bfloat16().save_pretrained(tmp_path / "plain")
    with pytest.raises(
        PoolError, match=r"one: tensor .*vision_tower.* expected the base's .*, because it is not merged"
    ):
        open_family({"base": multimodal["base"], "plain": tmp_path / "plain", "one": multimodal["one"]})


def test_a_multimodal_expert_of_a_plain_base_is_refused(multimodal: dict[str, Path], tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).bfloat16().save_pretrained(tmp_path / "plain")
    with pytest.raises(PoolError, match=r"one: tensor multi_modal_projector\.linear_1\.bias: expected none"):
        open_family({"base": tmp_path / "plain", "one": multimodal["one"]})


def test_a_language_model_of_another_shape_does_not_fit_inside(multimodal: dict[str, Path], tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1})
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "plain")
    with pytest.raises(PoolError, match=r"plain: config\.json: num_attention_heads: expected 4 as in the base; got 2"):
        open_family({"base": multimodal["base"], "plain": tmp_path / "plain"})


def test_names_with_and_without_the_wrapping_module_are_the_same(tmp_path: Path) -> None:
    folders = save_family(language_model("GPT2"), tmp_path)
    held = load_file(folders["base"] / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in held.items()}
    save_file(bare, folders["base"] / "model.safetensors", metadata={"format": "pt"})  # as the first GPT-2 is stored
    pool = check_whole_way(folders, transformers.AutoModelForCausalLM, tmp_path, input_ids=IDS)
    assert "wte.weight" in {spec.name for spec in pool.specs}


def test_an_unknown_architecture_has_its_layers_inferred(tmp_path: Path) -> None:
    folders = save_family(language_model("Llama"), tmp_path)
    for folder in folders.values():
        held = load_file(folder / "model.safetensors")
        odd = {name.replace("model.layers.", "net.rungs."): tensor for name, tensor in held.items()}
        save_file(odd, folder / "model.safetensors")
    pool = open_family(folders)
    assert pool.layers == 2
    assert {spec.role for spec in pool.specs if spec.layer == 1} == {"attention", "mlp", "norm"}


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": False}], ids=str)
@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("tokens.weight", "lm_head.weight"),
        ("word_embeddings.weight", "to_logits.weight"),
        ("tokens.weight", "to_logits.weight"),
        ("tok_embeddings.weight", "output.weight"),
    ],
)
def test_a_head_of_its_own_is_never_lost(tmp_path: Path, embedding: str, head: str, said: dict[str, bool]) -> None:
    shapes = {embedding: (8, 4), "layers.0.mixer.in_proj.weight": (4, 4), head: (8, 4)}
    for name in ("base", "one"):
        (tmp_path / name).mkdir()
        save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"], **said}))
    pool = ModelPool.open(tmp_path / "base", {"one": tmp_path / "one"})
    assert {spec.name for spec in pool.specs} == shapes.keys()
    assert pool.config["tie_word_embeddings"] is False
