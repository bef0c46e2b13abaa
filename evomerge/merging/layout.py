"""What a tensor is, told from its name: its layer and its module role.

The one table that knows how Llama, Qwen, Mistral, Gemma, Phi, OLMo, GPT-2, NeoX and their kin name their weights. Knows
nothing of files, values or shapes beyond the number of axes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evomerge.recipe import Role

__all__ = ["TensorKey", "classify", "is_buffer", "is_output_projection", "is_token_embedding"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")

_ATTENTION = frozenset({"self_attn", "attn", "attention", "self_attention", "linear_attn"})
_MLP = frozenset({"mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "fc1", "fc2"})

_TOKEN_EMBEDDING = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"})
_EMBED = _TOKEN_EMBEDDING | {
    "wpe",
    "embed_positions",
    "position_embeddings",
    "rotary_emb",
    "embed_layer_norm",
    "word_embeddings_layernorm",
}
_OUTPUT_PROJECTION = frozenset({"lm_head", "embed_out"})

_BUFFERS = frozenset({"masked_bias", "position_ids", "inv_freq"})
"""Stored by some versions of transformers, recomputed by all: constants, not weights."""


@dataclass(frozen=True, slots=True)
class TensorKey:
    """Where a tensor lives.

    Attributes:
        role: its module role.
        layer: its layer, counted from 0; None outside the layers.
    """

    role: Role
    layer: int | None


def classify(name: str) -> TensorKey:
    """Role and layer of a tensor.

    Inside a layer, whatever belongs to the attention or MLP module takes that role (query and key norms too) and the
    rest is `norm`. Outside, embeddings of tokens and positions are `embed` and the rest is `head`.

    Example:
        >>> classify("model.layers.3.self_attn.q_proj.weight")
        TensorKey(role='attention', layer=3)
        >>> classify("model.norm.weight")
        TensorKey(role='head', layer=None)
    """
    inside = _LAYER.search(name)
    if inside is None:
        return TensorKey("head" if _EMBED.isdisjoint(name.split(".")) else "embed", None)
    layer, parts = int(inside[1]), inside[2].split(".")
    if not _ATTENTION.isdisjoint(parts):
        return TensorKey("attention", layer)
    return TensorKey("norm" if _MLP.isdisjoint(parts) else "mlp", layer)


def is_token_embedding(name: str) -> bool:
    """Whether this is the token embedding matrix."""
    return name.endswith(".weight") and name.split(".")[-2] in _TOKEN_EMBEDDING


def is_output_projection(name: str) -> bool:
    """Whether this is the matrix from hidden states to logits, which a model may tie to its token embedding."""
    return name.endswith(".weight") and name.split(".")[-2] in _OUTPUT_PROJECTION


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether this is a constant that some checkpoints store beside their weights.

    Position ids, inverse rotary frequencies, and the causal mask that GPT-2 and NeoX keep as a four-axis `attn.bias`.
    """
    *_, parent, last = ("", *name.split("."))
    return last in _BUFFERS or (last == "bias" and parent in _ATTENTION and len(shape) == 4)
