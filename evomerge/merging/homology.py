"""Whether models can be merged: one architecture, the same tensors, the same tokenizer.

Faults are returned, not raised, so that a pool can report all of them at once; each names the tensor or file, what the
base has and what the model has. Needs no torch: shapes and dtypes come from headers, bytes from memory maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Checkpoint, TensorInfo
from evomerge.merging.layout import is_buffer, is_output_projection, is_token_embedding
from evomerge.merging.tokenizer import shorten, tokenizer_faults

__all__ = ["buffers_of", "faults_between", "faults_within", "ties_head", "weights_of"]

_FLOATS = ("bfloat16", "float16", "float32")

_IDLE = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "auto_map",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    }
)
"""Configuration keys that do not change what the weights compute; nor do those that `_matters` rules out."""

_LISTED = 8
"""Tensors named one by one before the rest are counted."""


def ties_head(models: Mapping[str, Checkpoint]) -> bool:
    """Whether the output head is the token embedding.

    The base's configuration says so; where it is silent, the head is tied if no model stores one of its own.
    """
    config = next(iter(models.values())).config
    declared = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    return all(map(_head_is_embedding, models.values())) if declared is None else bool(declared)


def weights_of(model: Checkpoint, *, tied: bool) -> dict[str, TensorInfo]:
    """The tensors that are merged, by name: neither buffers nor the stored copy of a tied head."""
    return {
        name: tensor
        for name, tensor in model.tensors.items()
        if not is_buffer(name, tensor.shape) and not (tied and is_output_projection(name))
    }


def buffers_of(model: Checkpoint) -> dict[str, TensorInfo]:
    """The constants stored beside the weights, by name."""
    return {name: tensor for name, tensor in model.tensors.items() if is_buffer(name, tensor.shape)}


def faults_within(name: str, model: Checkpoint, *, tied: bool) -> list[str]:
    """What keeps one model from being merged with any other.

    Args:
        name: its pool name, for the messages.
        model: the model.
        tied: whether the pool's models tie the output head to the embedding.
    """
    if model.config.get("quantization_config"):
        method = shorten(model.config["quantization_config"])
        return [f"{name}: config.json: expected plain weights; got quantization_config {method}; use the full model"]
    faults = _limited(
        f"{name}: tensor {tensor.name}: expected a dtype of {', '.join(_FLOATS)}; got {tensor.dtype}; "
        "quantised models cannot be merged: use the full model"
        for tensor in weights_of(model, tied=tied).values()
        if tensor.dtype not in _FLOATS
    )
    head = next(filter(is_output_projection, model.tensors), None)
    if tied and not _head_is_embedding(model):
        faults.append(
            f"{name}: tensor {head}: expected the values of the token embedding, because config.json ties the two "
            "(tie_word_embeddings); got others; remove the tensor, or set tie_word_embeddings to false in every model"
        )
    if not tied and head is None:
        faults.append(
            f"{name}: tensor lm_head.weight: expected one, because config.json does not tie it to the embedding "
            "(tie_word_embeddings); got none; use the causal language model, not its body alone"
        )
    return faults


def faults_between(base: Checkpoint, name: str, model: Checkpoint, *, tied: bool) -> list[str]:
    """What keeps an expert from being merged with its base.

    Args:
        base: the base model.
        name: the expert's pool name, for the messages.
        model: the expert.
        tied: whether the pool's models tie the output head to the embedding.
    """
    faults = [*_config_faults(base.config, model.config), *_tensor_faults(base, model, tied=tied)]
    faults += _buffer_faults(base, model)
    try:
        faults += tokenizer_faults(base.folder, model.folder)
    except PoolError as error:
        faults.append(str(error))
    return [f"{name}: {fault}" for fault in faults]


def _config_faults(base: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    mine, theirs = _flattened(base), _flattened(model)
    # A key in one file only is left alone: versions of transformers differ in which defaults they spell out, and
    # whatever changes the architecture changes a tensor too.
    return [
        f"config.json: {key}: expected {shorten(mine[key])} as in the base; got {shorten(theirs[key])}"
        for key in mine
        if key in theirs and _matters(key) and mine[key] != theirs[key]
    ]


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner`, and the rotary base under one name in old and new files."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key in {"text_config", "rope_parameters", "rope_scaling"}:
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    moved = flat.pop(f"{prefix}rope_parameters.rope_theta", None)
    return flat if moved is None else {f"{prefix}rope_theta": moved, **flat}


def _matters(key: str) -> bool:
    last = key.rsplit(".", maxsplit=1)[-1]
    return not (last in _IDLE or "dropout" in last or last.endswith(("pdrop", "_token_id")))


def _tensor_faults(base: Checkpoint, model: Checkpoint, *, tied: bool) -> list[str]:
    mine, theirs = weights_of(base, tied=tied), weights_of(model, tied=tied)
    missing = (f"tensor {name}: expected shape {[*mine[name].shape]}; got none" for name in mine if name not in theirs)
    extra = (f"tensor {name}: expected none; got shape {[*theirs[name].shape]}" for name in theirs if name not in mine)
    shapes = (
        f"tensor {name}: expected shape {[*mine[name].shape]} as in the base; got {[*theirs[name].shape]}"
        for name in mine
        if name in theirs and mine[name].shape != theirs[name].shape
    )
    return _limited(missing) + _limited(extra) + _limited(shapes)


def _buffer_faults(base: Checkpoint, model: Checkpoint) -> list[str]:
    mine, theirs = buffers_of(base), buffers_of(model)
    return _limited(
        f"tensor {name}: expected the base's constant {mine[name].dtype} {[*mine[name].shape]}; "
        f"got {theirs[name].dtype} {[*theirs[name].shape]} with other values"
        for name in mine
        if name in theirs and not _same_bytes(mine[name], theirs[name])
    )


def _head_is_embedding(model: Checkpoint) -> bool:
    """Whether the model stores no output head, or one with the very bytes of its token embedding."""
    heads = [tensor for name, tensor in model.tensors.items() if is_output_projection(name)]
    embeddings = [tensor for name, tensor in model.tensors.items() if is_token_embedding(name)]
    return all(_same_bytes(head, embedding) for head in heads for embedding in embeddings)


def _same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.start == one.stop or bool(np.array_equal(_bytes(one), _bytes(other)))


def _bytes(tensor: TensorInfo) -> np.memmap[Any, np.dtype[np.uint8]]:
    return np.memmap(tensor.file, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.stop - tensor.start,))


def _limited(faults: Iterable[str]) -> list[str]:
    """The first few faults of a kind, and how many more there are."""
    every = list(faults)
    return every if len(every) <= _LISTED + 1 else [*every[:_LISTED], f"... and {len(every) - _LISTED} more like it"]
