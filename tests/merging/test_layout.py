from __future__ import annotations

import pytest

from evomerge.merging.layout import classify, is_buffer, is_output_projection, is_token_embedding


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("model.embed_tokens.weight", "embed", None),
        ("model.layers.0.self_attn.q_proj.weight", "attention", 0),
        ("model.layers.11.self_attn.q_norm.weight", "attention", 11),
        ("model.layers.3.mlp.gate_proj.weight", "mlp", 3),
        ("model.layers.3.input_layernorm.weight", "norm", 3),
        ("model.layers.3.post_feedforward_layernorm.weight", "norm", 3),
        ("model.norm.weight", "head", None),
        ("lm_head.weight", "head", None),
        ("model.layers.7.self_attn.dense.bias", "attention", 7),  # Phi
        ("model.layers.7.mlp.fc1.bias", "mlp", 7),
        ("model.final_layernorm.bias", "head", None),
        ("lm_head.bias", "head", None),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", "mlp", 2),  # Mixtral
        ("transformer.wte.weight", "embed", None),  # GPT-2
        ("wpe.weight", "embed", None),
        ("h.10.attn.c_attn.weight", "attention", 10),
        ("transformer.h.10.mlp.c_fc.bias", "mlp", 10),
        ("transformer.h.10.ln_1.weight", "norm", 10),
        ("transformer.ln_f.weight", "head", None),
        ("gpt_neox.embed_in.weight", "embed", None),  # NeoX
        ("gpt_neox.layers.4.attention.query_key_value.weight", "attention", 4),
        ("gpt_neox.layers.4.mlp.dense_4h_to_h.weight", "mlp", 4),
        ("gpt_neox.layers.4.post_attention_layernorm.bias", "norm", 4),
        ("gpt_neox.final_layer_norm.weight", "head", None),
        ("embed_out.weight", "head", None),
        ("model.decoder.layers.1.fc2.weight", "mlp", 1),  # OPT
        ("model.decoder.layers.1.self_attn_layer_norm.weight", "norm", 1),
        ("model.decoder.embed_positions.weight", "embed", None),
    ],
)
def test_every_family_finds_its_layer_and_role(name: str, role: str, layer: int | None) -> None:
    key = classify(name)
    assert (key.role, key.layer) == (role, layer)


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight"])
def test_output_projections(name: str) -> None:
    assert is_output_projection(name)
    assert not is_token_embedding(name)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "wte.weight", "gpt_neox.embed_in.weight"])
def test_token_embeddings(name: str) -> None:
    assert is_token_embedding(name)
    assert not is_output_projection(name)


@pytest.mark.parametrize("name", ["lm_head.bias", "model.norm.weight", "weight"])
def test_neither_embedding_nor_projection(name: str) -> None:
    assert not is_token_embedding(name)
    assert not is_output_projection(name)


def test_masks_are_buffers_and_biases_are_not() -> None:
    assert is_buffer("transformer.h.0.attn.bias", (1, 1, 32, 32))
    assert is_buffer("gpt_neox.layers.0.attention.masked_bias", ())
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq", (2,))
    assert not is_buffer("model.layers.0.attn.bias", (64,))
    assert not is_buffer("model.layers.0.self_attn.q_proj.bias", (64,))
