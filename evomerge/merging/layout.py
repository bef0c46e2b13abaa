"""What a tensor is, told from its name: its layer, its module role, its tower.

The one table that knows how Llama, Qwen, Mistral, Gemma, Phi, OLMo, GPT-2, NeoX, BERT, T5, ViT, CLIP and their kin name
their weights. Knows nothing of files, values or shapes beyond the number of axes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.recipe import Role

if TYPE_CHECKING:
    from evomerge.merging.pool import TensorSpec

__all__ = [
    "TensorKey",
    "aligned",
    "at_layer",
    "classify",
    "has_vocabulary_rows",
    "is_buffer",
    "is_matrix",
    "is_output_projection",
    "is_token_embedding",
    "is_tower",
    "layout_of",
    "stacked",
    "stores_inputs_first",
    "towers_of",
    "writes_to_residual",
]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")
_NUMBERED = re.compile(r"(?P<stack>.*?)\.(?P<index>\d+)\.(?P<rest>.+)")

_INSIDE: tuple[tuple[Role, frozenset[str]], ...] = (
    ("norm", frozenset({"LayerNorm"})),  # BERT keeps a block's norms inside the modules that they follow
    (
        "attention",
        frozenset({"self_attn", "attn", "attention", "self_attention", "linear_attn", "encoder_attn", "cross_attn"})
        | frozenset({"SelfAttention", "EncDecAttention", "mixer", "mamba"}),
    ),
    (
        "mlp",
        frozenset({"mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "fc1", "fc2", "DenseReluDense"})
        | frozenset({"intermediate", "output"}),
    ),
)
"""Modules inside a layer by role, the first that matches; whatever else a layer holds is `norm`."""

_TOKEN_EMBEDDING = frozenset(
    {"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared", "embeddings"}
)
_EMBED = _TOKEN_EMBEDDING | {
    "wpe",
    "embed_positions",
    "position_embeddings",
    "rotary_emb",
    "embed_layer_norm",
    "word_embeddings_layernorm",
}
_OUTPUT_PROJECTION = frozenset({"lm_head", "embed_out", "decoder", "output_layer", "output_projection"})

_RESIDUAL = frozenset({"o_proj", "out_proj", "c_proj", "wo", "down_proj", "fc2", "w2", "dense_4h_to_h"})
_RESIDUAL_IN_ATTENTION = frozenset({"dense"})  # Phi and NeoX; elsewhere it may be any linear map

_TOWERS = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "visual", "audio_tower", "audio_model", "audio_encoder"}
    | {"multi_modal_projector", "mm_projector", "connector", "embed_vision", "embed_audio", "image_newline"}
)
"""Parts of a multimodal model that stand beside its language model."""

_WRAPPERS = frozenset({"model", "transformer", "language_model"})
"""Modules in front of a language model, which some files name and others leave out."""

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose layers store every linear map as `[in, out]`."""

_INPUTS_FIRST_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text", "aria", "aria_text"})
"""Model types that store the maps of all experts of a layer in one tensor as `[experts, in, out]`."""

_BUFFERS = frozenset({"masked_bias", "position_ids", "inv_freq", "relative_position_index", "causal_mask"})
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
    """Role and layer of a tensor, by its name alone.

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
    return TensorKey(_role_inside(inside[2]), int(inside[1]))


def layout_of(names: Iterable[str]) -> dict[str, TensorKey]:
    """Role and layer of every tensor of one model.

    Beside a language model, other towers and projectors lie outside the layers, as `head`: their depth is not its
    depth. Where no name is known to number layers, the module list that holds most tensors is taken for them.
    """
    names = tuple(names)
    towers = towers_of(names)
    keys = {name: TensorKey("head", None) if name in towers else classify(name) for name in names}
    if all(key.layer is None for key in keys.values()):
        keys |= _inferred(name for name in names if name not in towers)
    return keys


def stacked(name: str) -> tuple[str, str]:
    """The module list that a tensor of a layer lies in, and the tensor's name inside its layer.

    Example:
        >>> stacked("model.layers.3.mlp.up_proj.weight")
        ('model.layers', 'mlp.up_proj.weight')

    Raises:
        ValueError: the name numbers no layer.
    """
    if inside := _LAYER.search(name):
        return name[: inside.start(1) - 1], inside[2]
    if inside := _NUMBERED.match(name):
        return inside["stack"], inside["rest"]
    raise ValueError(f"expected the name of a tensor in a layer; got {name!r}")


def at_layer(name: str, layer: int) -> str:
    """What the same tensor of another layer is called.

    Example:
        >>> at_layer("model.layers.3.mlp.up_proj.weight", 7)
        'model.layers.7.mlp.up_proj.weight'
    """
    stack, rest = stacked(name)
    return f"{stack}.{layer}.{rest}"


def towers_of(names: Iterable[str]) -> frozenset[str]:
    """The tensors that stand beside a model's language model; none if it has no language model."""
    towers = {name for name in names if is_tower(name)}
    return frozenset(towers) if any(is_token_embedding(name) for name in {*names} - towers) else frozenset()


def is_tower(name: str) -> bool:
    """Whether this tensor or module stands beside a language model, if there is one."""
    return _stem(name).split(".")[0] in _TOWERS


def aligned(names: Iterable[str], base: Iterable[str]) -> dict[str, str]:
    """What the base calls each tensor of a model, where the two name the modules in front of them differently.

    So a plain language model finds itself inside a multimodal one: `model.layers.0.x` is its
    `language_model.model.layers.0.x`, or its `model.language_model.layers.0.x`.

    Returns:
        A name for every name; its own where the base has no counterpart.
    """
    names, stems = tuple(names), {_stem(name): name for name in base}
    found = {name: stems.get(_stem(name), name) for name in names}
    return found if len({*found.values()}) == len(names) else {name: name for name in names}


def is_token_embedding(name: str) -> bool:
    """Whether this is the token embedding matrix."""
    return name.endswith(".weight") and name.split(".")[-2] in _TOKEN_EMBEDDING


def is_output_projection(name: str) -> bool:
    """Whether this is the matrix from hidden states to logits, which a model may tie to its token embedding."""
    return name == "output.weight" or (name.endswith(".weight") and name.split(".")[-2] in _OUTPUT_PROJECTION)


def has_vocabulary_rows(name: str) -> bool:
    """Whether the first axis of this tensor counts the tokens: embedding, output projection and its bias."""
    *_, parent, last = ("", *name.split("."))
    is_bias = last == "bias" and parent in _OUTPUT_PROJECTION | {"predictions"}
    return is_bias or is_token_embedding(name) or is_output_projection(name)


def writes_to_residual(name: str) -> bool:
    """Whether this belongs to the map by which an attention or MLP module adds to the residual stream.

    A layer whose such tensors are zero does nothing. In a mixture of experts every expert has one.

    Example:
        >>> writes_to_residual("model.layers.3.mlp.down_proj.weight")
        True
    """
    key, (*_, parent, _) = classify(name), ("", "", *name.split("."))
    named = parent in _RESIDUAL or (key.role == "attention" and parent in _RESIDUAL_IN_ATTENTION)
    return key.layer is not None and named


def is_matrix(spec: TensorSpec) -> bool:
    """Whether a tensor is a linear map inside a layer, or a stack of those of MoE experts."""
    if spec.layer is None:
        return False
    parts = spec.name.split(".")
    return (len(spec.shape) == 2 and parts[-1] == "weight") or (len(spec.shape) == 3 and "experts" in parts)


def stores_inputs_first(name: str, axes: int, model_type: str) -> bool:
    """Whether the next to last axis of a linear map is that of its inputs, unlike in `torch.nn.Linear`.

    Args:
        name: of a linear map inside a layer.
        axes: how many it has.
        model_type: as the `config.json` has it.

    Example:
        >>> stores_inputs_first("h.0.mlp.c_fc.weight", 2, "gpt2")
        True
    """
    types = _CONV1D if axes == 2 else _INPUTS_FIRST_EXPERTS
    return classify(name).layer is not None and model_type in types


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether this is a constant that some checkpoints store beside their weights.

    Position ids and indices, inverse rotary frequencies, and the causal mask, which GPT-2 and NeoX keep as a four-axis
    `attn.bias`.
    """
    *_, parent, last = ("", *name.split("."))
    return last in _BUFFERS or (last == "bias" and parent in {"attn", "attention"} and len(shape) == 4)


def _role_inside(rest: str) -> Role:
    """The role of a tensor by what stands behind its layer's number."""
    parts = rest.split(".")
    return next((role for role, modules in _INSIDE if not modules.isdisjoint(parts)), "norm")


def _inferred(names: Iterable[str]) -> dict[str, TensorKey]:
    """Keys of the tensors in the numbered module list that holds most of them."""
    stacks: defaultdict[str, dict[str, TensorKey]] = defaultdict(dict)
    for name in names:
        if found := _NUMBERED.match(name):
            stacks[found["stack"]][name] = TensorKey(_role_inside(found["rest"]), int(found["index"]))
    return max(stacks.values(), key=len, default={})


def _stem(name: str) -> str:
    """A name without the modules that only wrap a language model."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)
