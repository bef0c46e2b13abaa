"""Scales of the residual stream, folded into weights: a path's factors become a plain checkpoint.

Let the stream be multiplied with `s_t` before the layer at depth t, and let `S_t = s_0 ... s_t`. A layer whose modules
read the stream through a norm does not see the factor, so `x_t+1 = s_t x_t + f_t(x_t)`; in units of `y_t = x_t / S_t-1`
that is `y_t+1 = y_t + f_t(y_t) / S_t`. So `1 / S_t` goes into all that layer t adds to the stream, and the last norm
swallows what is left. Which tensors that are is a matter of the architecture:

* norms in front (Llama, GPT-2 and most others): the output maps of attention and MLP, with their biases;
* norms behind as well (Gemma 2 and 3): these norms, which multiply with `1 + w`;
* norms behind alone (OLMo 2 and 3): these norms; what reads the stream, bare, is multiplied with `S_t` instead.

Exact but for rounding and for the constant that norms add to the mean square: `epsilon` counts as `epsilon / S^2` in
the scaled model, as `epsilon` in the folded one. Knows nothing of recipes, pools or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import MergeError
from evomerge.merging.layout import stacked, writes_to_residual

__all__ = ["Fold", "fold_of", "model_type_of"]

_NORMS_IN_FRONT = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
    }
    | {"olmo", "olmoe", "granite", "smollm3", "starcoder2", "stablelm", "cohere", "cohere2"}
)
_NORMS_AROUND = frozenset({"gemma2", "gemma3", "gemma3_text"})
_NORMS_BEHIND = frozenset({"olmo2", "olmo3"})

_NORM_BEHIND = frozenset({"post_attention_layernorm", "post_feedforward_layernorm"})
_BARE_READERS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """What becomes of a tensor: `gain * w + shift`."""

    gain: float = 1.0
    shift: float = 0.0


def model_type_of(config: Mapping[str, Any]) -> str:
    """The type of the model whose layers are numbered: of the language model, where there are others beside it."""
    inner = config.get("text_config")
    return str((inner if isinstance(inner, dict) and "model_type" in inner else config).get("model_type"))


def fold_of(name: str, total: float, model_type: str) -> Fold:
    """What a tensor of a layer takes of the factors up to that layer.

    Example:
        >>> fold_of("model.layers.3.mlp.down_proj.weight", 2.0, "llama")
        Fold(gain=0.5, shift=0.0)

    Args:
        name: of the tensor.
        total: product of all factors up to its layer, its own included.
        model_type: see `model_type_of`.

    Raises:
        MergeError: the factors cannot be folded into this architecture.
    """
    if total == 1.0:
        return Fold()
    *_, module, last = ("", *stacked(name)[1].split("."))
    if model_type in _NORMS_IN_FRONT:
        return Fold(gain=1.0 / total) if writes_to_residual(name) else Fold()
    if model_type in _NORMS_AROUND:
        return Fold(gain=1.0 / total, shift=1.0 / total - 1.0) if module in _NORM_BEHIND else Fold()
    if model_type in _NORMS_BEHIND:
        gains = dict.fromkeys(_NORM_BEHIND, 1.0 / total) | dict.fromkeys(
            _BARE_READERS if last == "weight" else (), total
        )
        return Fold(gain=gains.get(module, 1.0))
    known = ", ".join(sorted(_NORMS_IN_FRONT | _NORMS_AROUND | _NORMS_BEHIND))
    raise MergeError(
        f"a path that scales the residual stream: expected an architecture whose norms are known to take the scale out "
        f"again ({known}); got {model_type!r}; leave all scales at 1"
    )
