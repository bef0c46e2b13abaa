"""What `config.json` says of a model whose layers are those of another, in another order and number.

Some architectures tell their layers apart: attention that slides in every second layer, experts in some, positions in
others. Their configurations list that by layer, or count it; lists follow the layers here. Whether that was enough is
not believed but looked at: transformers builds both models without weights, and each layer must come out like the one
that it stands for. Knows nothing of weights or pools.

Legend: `layers[t]` the layer of the given model that stands at depth t of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evomerge.errors import MergeError
from evomerge.merging.layout import is_tower

if TYPE_CHECKING:
    from evomerge.recipe import Recipe

__all__ = ["INDICES", "config_at_depth", "find_stack", "layers_of", "model_class", "says_by_layer", "signature"]

INDICES = ("layer_idx", "layer_id", "layer_index", "layer_number")
"""Attributes of modules in which transformers keeps the number of their layer."""

_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_layers")
"""Keys that hold a value for each layer."""

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def layers_of(recipe: Recipe) -> list[int]:
    """Which of the models' layers stands at each depth of a recipe's model."""
    return [hop.layer for hop in recipe.path] or [*range(recipe.layers)]


def config_at_depth(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The configuration of a model with other layers.

    Example:
        >>> config_at_depth({"model_type": "llama", "num_hidden_layers": 2}, [0, 1, 1])["num_hidden_layers"]
        3

    Args:
        config: content of `config.json`.
        layers: see above.

    Raises:
        MergeError: transformers does not know the architecture, or its configuration cannot say this.
    """
    text = json.dumps(config, sort_keys=True)
    if [*layers] == [*range(_text_config(config)[0].num_hidden_layers)]:
        return dict(config)
    before, outside = _built(text)
    changed = _changed(config, layers)
    rotated = [len(before) - 1, *range(len(before))]
    if _fault(_changed(config, rotated), rotated, before, outside) and (
        fault := _fault(changed, layers, before, outside)
    ):
        raise MergeError(
            f"this path cannot be written as a plain {config.get('model_type')} checkpoint: {fault}; take a path that "
            "leaves such layers where they are"
        )
    return changed


def says_by_layer(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """What of a configuration depends on its layers: the number of them, and lists, by the names of attributes.

    Args:
        config: content of `config.json`.
        layers: see above.
    """
    text, _ = _text_config(config)
    said: dict[str, Any] = {text.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(layers)}
    for name in _LISTS:
        values = getattr(text, name, None)
        if isinstance(values, list) and len(values) == text.num_hidden_layers:
            said[name] = [values[layer] for layer in layers]
    dense = getattr(text, "mlp_only_layers", None)
    if dense is not None:
        step = getattr(text, "decoder_sparse_step", 1) or 1
        said["mlp_only_layers"] = [t for t, layer in enumerate(layers) if layer in dense or (layer + 1) % step]
        said |= {"decoder_sparse_step": 1} if hasattr(text, "decoder_sparse_step") else {}
    first = getattr(text, "first_k_dense_replace", None)
    if first is not None:
        said["first_k_dense_replace"] = sum(layer < first for layer in layers)
    return said


def _changed(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    said = says_by_layer(config, layers)
    _, key = _text_config(config)
    inner = dict(config if key is None else config[key])
    inner |= said | dict.fromkeys((name for name in _DEPTHS if name in inner), len(layers))
    return inner if key is None else {**config, key: inner}


def _text_config(config: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The language model's part of a configuration, as transformers completes it, and under which key it stands."""
    whole = _parsed(json.dumps(config, sort_keys=True))
    text = whole.get_text_config(decoder=True)
    keys = [key for key in whole.sub_configs if getattr(whole, key, None) is text and isinstance(config.get(key), dict)]
    return text, keys[0] if keys else None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**json.loads(text))
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise MergeError(
            f"a path through layers: expected an architecture that the installed transformers knows; got "
            f"{type(error).__name__}: {error}"
        ) from error


Signature = tuple[Any, ...]


@lru_cache(maxsize=8)
def _built(text: str) -> tuple[list[Signature], Signature]:
    """What each layer of a model is like, and what lies outside of them; built without weights."""
    import torch

    config = _parsed(text)
    kind, _ = model_class(config)
    try:
        with torch.device("meta"):
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind._from_config(config)
    except (ValueError, KeyError, TypeError, IndexError, ImportError, RuntimeError) as error:
        raise MergeError(f"a path through layers: transformers cannot build this model: {error}") from error
    name, owner = find_stack(model, config.get_text_config(decoder=True).num_hidden_layers)
    layers = getattr(owner, name.rpartition(".")[2])
    parameters = model.named_parameters()
    outside = tuple((other, tuple(p.shape)) for other, p in parameters if not other.startswith(f"{name}."))
    return [signature(layer, index) for index, layer in enumerate(layers)], outside


def _fault(config: Mapping[str, Any], layers: Sequence[int], before: Sequence[Signature], outside: Signature) -> str:
    """In what a model differs from the layers that it is to have; empty if in nothing."""
    after, around = _built(json.dumps(config, sort_keys=True))
    if around != outside:
        return "tensors outside of the layers change their shapes with the number of layers"
    for depth, layer in enumerate(layers):
        if after[depth] != before[layer]:
            differing = [(old, new) for old, new in zip(before[layer], after[depth], strict=False) if old != new]
            old, new = differing[0] if differing else (len(before[layer]), len(after[depth]))
            return f"at depth {depth} it would have {new!r:.200} instead of {old!r:.200}, as layer {layer} has"
    return ""


def signature(layer: Any, index: int) -> Signature:
    """What makes a layer behave as it does, beside its weights: modules, shapes and plain attributes.

    Args:
        layer: a module.
        index: its number; attributes that only repeat it are left out.
    """
    parts: list[tuple[str, Any]] = []
    for name, module in layer.named_modules():
        parts.append((name, type(module).__name__))
        for key, value in sorted(vars(module).items()):
            if isinstance(value, bool | int | float | str | None) and not (key in INDICES and value == index):
                parts.append((f"{name}.{key}".lstrip("."), value))
    parts += [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    return tuple(parts)


def find_stack(model: Any, depth: int) -> tuple[str, Any]:
    """The module list that holds a model's layers: its name, and the module that it is an attribute of.

    Raises:
        MergeError: there is none, or more than one.
    """
    names = list(_stacks(model, depth))
    if len(names) != 1:
        raise MergeError(
            f"a path through layers: expected one list of {depth} layers in the model; got {names or 'none'}; models "
            "with an encoder and a decoder have no paths"
        )
    return names[0], model.get_submodule(names[0].rpartition(".")[0])


def _stacks(model: Any, depth: int) -> Iterator[str]:
    """Names of the outermost module lists of a length, towers aside."""
    from torch.nn import ModuleList

    found = ""
    for name, module in model.named_modules():
        inside = bool(found) and name.startswith(f"{found}.")
        if isinstance(module, ModuleList) and len(module) == depth and not inside and not is_tower(name):
            found = name
            yield name


def model_class(config: Any) -> tuple[Any, bool]:
    """The class of a model, and whether that is a causal language model.

    Args:
        config: as transformers reads it.
    """
    import transformers

    name = (config.architectures or [""])[0]
    own = getattr(transformers, name, None)
    if own is None or (type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and "Classification" not in name):
        return transformers.AutoModelForCausalLM, True
    return own, False
