"""Whether models can be merged: one architecture, the same tensors, vocabularies that match.

Faults are returned, not raised, so that a pool can report all of them at once; each names the tensor or file, what the
base has and what the model has. Needs no torch: shapes and dtypes come from headers, bytes from memory maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Model, TensorInfo
from evomerge.merging.layout import (
    has_vocabulary_rows,
    is_buffer,
    is_output_projection,
    is_token_embedding,
    is_tower,
    layout_of,
    towers_of,
)
from evomerge.merging.settings import contradictions
from evomerge.merging.tokenizer import shorten, tokenizer_faults, translation_faults

__all__ = [
    "FLOATS",
    "Terms",
    "carried_by",
    "faults_between",
    "faults_within",
    "same_bytes",
    "saying_whether_tied",
    "ties_head",
    "weights_of",
]

FLOATS = ("bfloat16", "float16", "float32")
"""What weights may be stored in, by torch's name."""

_ROWS_REMEDY = "; say with pool.tokenizer (or --tokenizer) whose vocabulary the merged model takes"

_LISTED = 8
"""Tensors named one by one before the rest are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """On what terms the models of a pool are merged.

    Attributes:
        tied: the output head is the token embedding, in every model.
        towers: tensors beside the base's language model that some expert lacks, and that are the base's therefore.
        chosen: whose tokenizer and vocabulary the merged model takes; None if all must have the same.
    """

    tied: bool
    towers: frozenset[str]
    chosen: Model | None

    @classmethod
    def of(cls, models: Mapping[str, Model], chosen: str | None) -> Terms:
        """The terms of a pool, whose base comes first."""
        base, *experts = models.values()
        towers = towers_of(base.tensors)
        return cls(
            tied=ties_head(models),
            towers=towers if any(towers - expert.tensors.keys() for expert in experts) else frozenset(),
            chosen=None if chosen is None else models[chosen],
        )


def ties_head(models: Mapping[str, Model]) -> bool:
    """Whether the output head is the token embedding.

    The base's configuration says so; where it is silent, the head is tied if no model stores one of its own.
    """
    declared = _declared_tying(next(iter(models.values())).config)
    if declared is not None:
        return declared
    return all(_head_is_embedding(model) and not _has_unnamed_head(model) for model in models.values())


def _declared_tying(config: Mapping[str, Any]) -> bool | None:
    declared = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    return None if declared is None else bool(declared)


def saying_whether_tied(config: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """A configuration that tells whether the output head is the token embedding.

    Silence means yes in some architectures and no in others, whatever the weights hold.
    """
    if _declared_tying(config) is not None:
        return dict(config)
    said = {"tie_word_embeddings": terms.tied}
    return {**config, **said, **({"text_config": {**config["text_config"], **said}} if "text_config" in config else {})}


def weights_of(model: Model, terms: Terms) -> dict[str, TensorInfo]:
    """The tensors that are merged, by name: nothing that is carried over, nor the stored copy of a tied head."""
    carried = carried_by(model, terms)
    return {
        name: tensor
        for name, tensor in model.tensors.items()
        if name not in carried and not (terms.tied and is_output_projection(name))
    }


def carried_by(model: Model, terms: Terms) -> dict[str, TensorInfo]:
    """The tensors that a merge takes from the base as they are, by name: constants, and towers that an expert lacks."""
    return {
        name: tensor for name, tensor in model.tensors.items() if name in terms.towers or is_buffer(name, tensor.shape)
    }


def faults_within(name: str, model: Model, terms: Terms) -> list[str]:
    """What keeps one model from being merged with any other.

    Args:
        name: its pool name, for the messages.
        model: the model.
        terms: of the pool.
    """
    if model.config.get("quantization_config"):
        method = shorten(model.config["quantization_config"])
        return [f"{name}: config.json: expected plain weights; got quantization_config {method}; use the full model"]
    quantised = any(tensor.dtype not in (*FLOATS, "float64") for tensor in model.tensors.values())
    remedy = "quantised models cannot be merged: use the full model" if quantised else "save it in one of these"
    faults = _limited(
        f"{name}: tensor {tensor.name}: expected a dtype of {', '.join(FLOATS)}; got {tensor.dtype}; {remedy}"
        for tensor in weights_of(model, terms).values()
        if tensor.dtype not in FLOATS
    )
    if terms.chosen is not None and model is not terms.chosen:
        faults += [f"{name}: {fault}" for fault in _readable(translation_faults, terms.chosen, model)]
    faults += [f"{name}: {fault}" for fault in _row_faults(model, terms)]
    head = next(filter(is_output_projection, model.tensors), None)
    if terms.tied and not _head_is_embedding(model):
        faults.append(
            f"{name}: tensor {head}: expected the values of the token embedding, because config.json ties the two "
            "(tie_word_embeddings); got others; remove the tensor, or set tie_word_embeddings to false in every model"
        )
    if not terms.tied and head is None and _has_head(model) and not _has_unnamed_head(model):
        faults.append(
            f"{name}: tensor lm_head.weight: expected one, because config.json does not tie it to the embedding "
            "(tie_word_embeddings); got none; use the causal language model, not its body alone"
        )
    return faults


def faults_between(base: Model, name: str, model: Model, terms: Terms) -> list[str]:
    """What keeps an expert from being merged with its base.

    Args:
        base: the base model.
        name: the expert's pool name, for the messages.
        model: the expert.
        terms: of the pool.
    """
    ignored = () if terms.chosen is None else ("vocab_size",)
    faults = [*contradictions(base.config, model.config, ignored), *_tensor_faults(base, model, terms)]
    faults += _carried_faults(base, model, terms)
    if terms.chosen is None:
        faults += _readable(tokenizer_faults, base, model)
    return [f"{name}: {fault}" for fault in faults]


def _row_faults(model: Model, terms: Terms) -> list[str]:
    """Where a model's own tensors do not have one vocabulary, whose rows could be matched with another's."""
    rows = {name: [*info.shape[:1]] for name, info in weights_of(model, terms).items() if has_vocabulary_rows(name)}
    embedding = next(filter(is_token_embedding, rows), None)
    if terms.chosen is None or embedding is None:
        return []
    return [
        f"tensor {name}: expected {rows[embedding]} rows, as {embedding} has; got {count}; a model whose tensors have "
        "two vocabularies cannot be brought to another's: cut or pad one of them"
        for name, count in rows.items()
        if count != rows[embedding]
    ]


def _readable(compare: Callable[[Path, Path], list[str]], one: Model, other: Model) -> list[str]:
    """Faults between the tokenizers of two models; a file that cannot be read is one of them."""
    try:
        return compare(one.tokenizer_folder, other.tokenizer_folder)
    except (PoolError, OSError) as error:
        return [str(error)]


def _has_head(model: Model) -> bool:
    """Whether the configuration promises an output head, or says nothing."""
    return all("CausalLM" in name or "LMHead" in name for name in model.config.get("architectures") or ())


def _tensor_faults(base: Model, model: Model, terms: Terms) -> list[str]:
    mine, theirs = weights_of(base, terms), weights_of(model, terms)
    missing = (f"tensor {name}: expected shape {[*mine[name].shape]}; got none" for name in mine if name not in theirs)
    extra = (f"tensor {name}: expected none; got shape {[*theirs[name].shape]}" for name in theirs if name not in mine)
    shapes = (
        f"tensor {name}: expected shape {[*mine[name].shape]} as in the base; got {[*theirs[name].shape]}"
        f"{_ROWS_REMEDY if terms.chosen is None and has_vocabulary_rows(name) else ''}"
        for name in mine
        if name in theirs and _fixed_axes(mine[name], name, terms) != _fixed_axes(theirs[name], name, terms)
    )
    return _limited(missing) + _limited(extra) + _limited(shapes)


def _fixed_axes(tensor: TensorInfo, name: str, terms: Terms) -> tuple[int, ...]:
    """The axes in which all models must agree."""
    return tensor.shape[1:] if terms.chosen is not None and has_vocabulary_rows(name) else tensor.shape


def _carried_faults(base: Model, model: Model, terms: Terms) -> list[str]:
    mine, theirs = carried_by(base, terms), carried_by(model, terms)
    return _limited(
        f"tensor {name}: expected the base's {mine[name].dtype} {[*mine[name].shape]}, because it is not merged; "
        f"got {theirs[name].dtype} {[*theirs[name].shape]} with other values"
        for name in mine
        if name in theirs and not same_bytes(mine[name], theirs[name])
    )


def _head_is_embedding(model: Model) -> bool:
    """Whether the model stores no output head, or one with the very bytes of its token embedding."""
    heads = [tensor for name, tensor in model.tensors.items() if is_output_projection(name)]
    others = {name: tensor for name, tensor in model.tensors.items() if not is_output_projection(name)}
    # Where no embedding has a name that is known, any tensor may be it.
    embeddings = [tensor for name, tensor in others.items() if is_token_embedding(name)] or [*others.values()]
    return all(any(same_bytes(head, embedding) for embedding in embeddings) for head in heads)


def _has_unnamed_head(model: Model) -> bool:
    """Whether a matrix behind the layers has the shape of the token embedding: a head whose name is not known."""
    roles = {
        name: key.role for name, key in layout_of(model.tensors).items() if key.layer is None and not is_tower(name)
    }
    shapes = {name: model.tensors[name].shape for name in roles if len(model.tensors[name].shape) == 2}
    embeddings = {*filter(is_token_embedding, shapes)} or {*shapes}
    heads = {name for name in shapes if roles[name] == "head"}
    known = any(map(is_output_projection, model.tensors))
    return not known and any(shapes[head] == shapes[other] for head in heads for other in embeddings - {head})


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors agree in dtype, shape and every byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.start == one.stop or bool(np.array_equal(_bytes(one), _bytes(other)))


def _bytes(tensor: TensorInfo) -> np.memmap[Any, np.dtype[np.uint8]]:
    return np.memmap(tensor.file, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.stop - tensor.start,))


def _limited(faults: Iterable[str]) -> list[str]:
    """The first few faults of a kind, and how many more there are."""
    every = list(faults)
    return every if len(every) <= _LISTED + 1 else [*every[:_LISTED], f"... and {len(every) - _LISTED} more like it"]
