"""What an export takes from its models beside the weights, and what it says when these cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from evomerge.recipe import uniform

MakeFamily = Callable[..., Any]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def export(pool: ModelPool, out: Path, model: str = "base") -> Path:
    recipe = uniform([model], layers=pool.layers, dtype=pool.dtype)
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype=pool.dtype)
    return out


def logits(folder: Path) -> torch.Tensor:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 20)[None]).logits
    return found


def silence(folder: Path) -> None:
    """Take away what the configuration says of tying."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))


def gemma(folder: Path) -> Path:
    config = transformers.GemmaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
    )
    transformers.GemmaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "llama", "qwen2"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_that_no_configuration_mentions(
    make_family: MakeFamily, tmp_path: Path, kind: str, stored: bool
) -> None:
    """Llama without the key means an untied head, GPT-2 and Gemma a tied one."""
    base = gemma(tmp_path / "gemma") if kind == "gemma" else make_family(kind=kind, tied=True, experts=()).base
    before = logits(base)
    silence(base)
    if stored:
        held = load_file(base / "model.safetensors")
        embedding = next(held[name] for name in held if name.endswith(("embed_tokens.weight", "wte.weight")))
        save_file({**held, HEAD: embedding.clone()}, base / "model.safetensors", metadata={"format": "pt"})
    out = export(ModelPool.open(base, {}), tmp_path / "out")
    assert HEAD not in load_file(out / "model.safetensors")
    assert torch.equal(logits(out), before)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_head_of_its_own_that_no_configuration_mentions(make_family: MakeFamily, tmp_path: Path, kind: str) -> None:
    base = make_family(kind=kind, tied=False, experts=()).base
    before = logits(base)
    silence(base)
    out = export(ModelPool.open(base, {}), tmp_path / "out")
    assert HEAD in load_file(out / "model.safetensors")
    assert torch.equal(logits(out), before)


def test_a_source_that_vanishes_is_no_fault_of_the_target(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(experts=("one",))
    pool = ModelPool.open(family.base, family.experts)
    (family.experts["one"] / "model.safetensors").unlink()
    with pytest.raises(PoolError, match=r"one/model.safetensors: cannot be read \(No such file or directory"):
        export(pool, tmp_path / "place" / "out", "one")
    assert list((tmp_path / "place").iterdir()) == []


def test_a_source_that_is_cut_short_is_no_fault_of_the_target(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(experts=("one",))
    pool = ModelPool.open(family.base, family.experts)
    file = family.experts["one"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(PoolError, match=r"one/model.safetensors: changed since it was opened"):
        export(pool, tmp_path / "place" / "out", "one")


def test_an_unreadable_tokenizer_is_told_before_anything_is_written(make_family: MakeFamily, tmp_path: Path) -> None:
    pool = ModelPool.open(make_family(experts=()).base, {})
    file = pool.tokenizer_folder / "tokenizer_config.json"
    file.unlink()
    file.symlink_to(file)
    (pool.tokenizer_folder / "tokenizer.json").unlink()
    (pool.tokenizer_folder / "tokenizer.json").symlink_to("/proc/self/mem")  # there, but reading it fails
    with pytest.raises(PoolError, match=r"tokenizer.json: cannot be read \(Input/output error"):
        export(pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generation_settings_follow_the_model_of_the_chosen_tokenizer(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family()
    for number, folder in enumerate([family.base, *family.experts.values()]):
        (folder / "generation_config.json").write_text(json.dumps({"top_k": number}))
    for number, chosen in enumerate(["base", "one", "two"]):
        pool = ModelPool.open(family.base, family.experts, tokenizer=chosen)
        settings = json.loads((export(pool, tmp_path / chosen) / "generation_config.json").read_text())
        assert settings == {"top_k": number}


def test_an_adapter_has_the_generation_settings_of_its_base(make_family: MakeFamily, tmp_path: Path) -> None:
    base, folder = make_family(experts=()).base, tmp_path / "adapter"
    folder.mkdir()
    (base / "generation_config.json").write_text('{"top_k": 7}')
    save_file(
        {f"base_model.model.{HEAD}": load_file(base / "model.safetensors")[HEAD] + 1},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((base / file).read_text())
    pool = ModelPool.open(base, {"chat": folder}, tokenizer="chat")
    assert pool.tokenizer_folder == folder
    assert json.loads((export(pool, tmp_path / "out") / "generation_config.json").read_text()) == {"top_k": 7}
