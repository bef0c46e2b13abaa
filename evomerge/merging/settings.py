"""Where the configurations of two models contradict each other, in what the weights compute.

Knows nothing of weights: what changes a tensor shows there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from evomerge.merging.small_files import NESTED
from evomerge.merging.tokenizer import shorten

__all__ = ["contradictions"]

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


def contradictions(base: Mapping[str, Any], model: Mapping[str, Any], ignored: Collection[str]) -> list[str]:
    """One fault for each setting that differs.

    Args:
        base: content of the base's `config.json`.
        model: of the other model's.
        ignored: settings that may differ.
    """
    if ("text_config" in base) != ("text_config" in model):  # a plain language model and one inside a multimodal one
        base, model = base.get("text_config", base), model.get("text_config", model)
        ignored = {*ignored, "architectures", "model_type"}
    mine, theirs = (_flattened(_plain(config)) for config in (base, model))
    # A key in one file only is left alone: versions of transformers differ in which defaults they spell out, and
    # whatever changes the architecture changes a tensor too.
    return [
        f"config.json: {key}: expected {shorten(mine[key])} as in the base; got {shorten(theirs[key])}"
        for key in mine
        if key in theirs and _matters(key) and key.split(".")[-1] not in ignored and mine[key] != theirs[key]
    ]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that always spells out settings that change no tensor's shape, yet what a model computes.

    Rotary positions stand in `rope_theta`, `rope_scaling` or `rope_parameters`, by version; a window that is switched
    off is none.
    """
    plain = dict(config)
    rotary = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if not any(isinstance(value, Mapping) for value in rotary.values()):  # else: rotary settings by kind of layer
        kind = rotary.pop("rope_type", rotary.pop("type", "default"))
        theta = rotary.pop("rope_theta", config.get("rope_theta") or 10_000.0)
        plain |= {"rope_theta": float(theta), "rope_scaling": {"type": kind, **rotary}}
        plain.pop("rope_parameters", None)
    if config.get("use_sliding_window") is False:
        plain["sliding_window"] = None
    return {"sliding_window": None, "hidden_act": "silu"} | plain


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner`, and the rotary base under one name in old and new files."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key in NESTED:
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    moved = flat.pop(f"{prefix}rope_parameters.rope_theta", None)
    return flat if moved is None else {f"{prefix}rope_theta": moved, **flat}


def _matters(key: str) -> bool:
    last = key.rsplit(".", maxsplit=1)[-1]
    return not (last in _IDLE or "dropout" in last or last.endswith(("pdrop", "_token_id")))
