from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.merging.pool import ModelPool
from evomerge.recipe import uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """The expert `rev` with one more token and a row for it."""
    folder = tmp_path / "chat"
    shutil.copytree(MODELS / "rev", folder)
    held = load_file(folder / "model.safetensors")
    for name in held:
        if "embed_tokens" in name or "lm_head" in name:
            held[name] = torch.cat([held[name], held[name][:1]])
            rows = len(held[name])
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    data = json.loads((folder / "tokenizer.json").read_text())
    like = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] = [*(data.get("added_tokens") or []), {"id": rows - 1, "content": "<|im_end|>", **like}]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_the_live_model_has_the_chosen_vocabulary(chat: Path) -> None:
    pool = ModelPool.open(MODELS / "base", {"chat": chat, "sort": MODELS / "sort"}, tokenizer="chat")
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    engine.load(uniform(["chat"], layers=pool.layers, dtype=pool.dtype))
    held = load_file(chat / "model.safetensors")
    live = dict(engine.model.named_parameters(remove_duplicate=False))
    for name, tensor in held.items():
        assert torch.equal(live[name], tensor.to(live[name].dtype))
    assert engine.tokenizer.convert_tokens_to_ids("<|im_end|>") == len(engine.model.get_input_embeddings().weight) - 1
