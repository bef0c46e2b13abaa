from __future__ import annotations

import pytest

from evomerge.merging.layout import (
    aligned,
    classify,
    has_vocabulary_rows,
    is_buffer,
    is_output_projection,
    is_token_embedding,
    layout_of,
    towers_of,
    writes_to_residual,
)


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
        ("encoder.block.1.layer.0.SelfAttention.q.weight", "attention", 1),  # T5
        ("decoder.block.1.layer.1.EncDecAttention.k.weight", "attention", 1),
        ("decoder.block.1.layer.2.DenseReluDense.wi.weight", "mlp", 1),
        ("shared.weight", "embed", None),
        ("backbone.layers.5.mixer.in_proj.weight", "attention", 5),  # Mamba
        ("bert.embeddings.LayerNorm.weight", "embed", None),  # BERT
        ("bert.encoder.layer.2.intermediate.dense.weight", "mlp", 2),
        ("blocks.3.attn.qkv.weight", "attention", 3),  # ViT as timm has it
        ("blocks.3.norm1.weight", "norm", 3),
    ],
)
def test_every_family_finds_its_layer_and_role(name: str, role: str, layer: int | None) -> None:
    key = classify(name)
    assert (key.role, key.layer) == (role, layer)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "embed_out.weight", "transformer.output_layer.weight", "output.weight"]
)
def test_output_projections(name: str) -> None:
    assert is_output_projection(name)
    assert not is_token_embedding(name)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "wte.weight", "gpt_neox.embed_in.weight", "backbone.embeddings.weight"]
)
def test_token_embeddings(name: str) -> None:
    assert is_token_embedding(name)
    assert not is_output_projection(name)


@pytest.mark.parametrize("name", ["lm_head.bias", "model.norm.weight", "weight", "layers.0.output.weight"])
def test_neither_embedding_nor_projection(name: str) -> None:
    assert not is_token_embedding(name)
    assert not is_output_projection(name)


def test_masks_are_buffers_and_biases_are_not() -> None:
    assert is_buffer("transformer.h.0.attn.bias", (1, 1, 32, 32))
    assert is_buffer("gpt_neox.layers.0.attention.masked_bias", ())
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq", (2,))
    assert is_buffer("swin.encoder.layers.0.blocks.0.attention.self.relative_position_index", (4, 4))
    assert not is_buffer("model.layers.0.attn.bias", (64,))
    assert not is_buffer("model.layers.0.self_attn.q_proj.bias", (64,))


def test_towers_stand_beside_a_language_model_only() -> None:
    language = ["model.language_model.embed_tokens.weight", "model.language_model.layers.0.mlp.up_proj.weight"]
    tower = ["model.visual.blocks.7.attn.qkv.weight", "model.visual.merger.mlp.0.weight"]
    assert towers_of([*language, *tower]) == {*tower}
    assert towers_of(tower) == frozenset()
    keys = layout_of([*language, *tower])
    assert [keys[name].layer for name in (*language, *tower)] == [None, 0, None, None]
    assert layout_of(tower)[tower[0]].layer == 7


def test_unknown_module_lists_are_layers_if_they_hold_most() -> None:
    names = [f"net.rungs.{i}.{part}.weight" for i in range(3) for part in ("attn.q", "mlp.up", "ln")]
    keys = layout_of([*names, "net.stem.0.weight", "net.tok_embeddings.weight"])
    assert [keys[name].layer for name in names] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [keys[name].role for name in names[:3]] == ["attention", "mlp", "norm"]
    assert (keys["net.stem.0.weight"].layer, keys["net.tok_embeddings.weight"].role) == (None, "embed")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("transformer.h.0.ln_1.weight", "h.0.ln_1.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_names_find_each_other_behind_wrapping_modules(name: str, base: str) -> None:
    assert aligned([name, "strange.weight"], [base, "other.weight"]) == {name: base, "strange.weight": "strange.weight"}
    assert aligned([base], [name]) == {base: name}


def test_no_two_tensors_get_one_name() -> None:
    names = ["model.layers.0.mlp.weight", "layers.0.mlp.weight"]
    assert aligned(names, ["transformer.layers.0.mlp.weight"]) == {name: name for name in names}


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("model.layers.0.self_attn.o_proj.weight", True),
        ("model.layers.0.mlp.down_proj.weight", True),
        ("model.layers.0.mlp.up_proj.weight", False),
        ("model.layers.0.self_attn.q_proj.weight", False),
        ("model.layers.0.self_attn.dense.bias", True),  # Phi
        ("model.layers.0.mlp.fc2.weight", True),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", True),  # Mixtral
        ("model.layers.0.block_sparse_moe.gate.weight", False),
        ("transformer.h.0.attn.c_proj.weight", True),  # GPT-2
        ("transformer.h.0.mlp.c_fc.weight", False),
        ("gpt_neox.layers.0.attention.dense.weight", True),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", True),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", False),
        ("pooler.dense.weight", False),
        ("weight", False),
    ],
)
def test_what_writes_to_the_residual_stream(name: str, writes: bool) -> None:
    assert writes_to_residual(name) == writes


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("model.embed_tokens.weight", True),
        ("lm_head.weight", True),
        ("lm_head.bias", True),
        ("cls.predictions.bias", True),  # BERT
        ("lm_head.decoder.weight", True),  # RoBERTa
        ("transformer.wpe.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_which_tensors_have_a_row_per_token(name: str, rows: bool) -> None:
    assert has_vocabulary_rows(name) == rows
