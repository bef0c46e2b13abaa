"""A LoRA adapter on a base model, read as if it were a model: a PEFT folder with `adapter_model.safetensors`.

An adapted weight is `W + s B A`, formed in fp32 when it is asked for and handed out in fp32, never rounded to the
dtype of the base: a task vector taken from it differs from `s B A` by rounding errors of fp32 alone. Weights without
factors are the adapter's own where it stores them whole (`modules_to_save`, biases), else the base's. Knows nothing
of merging.

Legend: `r` rank; `A` of shape `[r, in]` and `B` of shape `[out, r]` low-rank factors; `s` scale; `W` weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Checkpoint, Model, TensorInfo, read_header
from evomerge.merging.homology import FLOATS, same_bytes, ties_head
from evomerge.merging.layout import aligned, is_output_projection, is_token_embedding
from evomerge.merging.small_files import read_json
from evomerge.merging.tokenizer import has_vocabulary, shorten

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTER_CONFIG", "ADAPTER_FILE", "Adapter", "LowRank", "adapters_of", "is_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT writes in front of the base's names."""

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.weight)?")
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save)(?=\.)")

_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases inside LoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "single trained token rows",
    "alora_invocation_tokens": "activated LoRA",
}
"""Settings of PEFT that change what an adapter computes, and what they mean."""

_LARGEST = 1e38
"""Of scales; fp32 holds little more, and NaN is not below it."""

_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Those that leave the base's weights as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """The low-rank change of one weight.

    Attributes:
        a, b: names of A and B in the adapter's file.
        rank: r.
        scale: s: `alpha / r` (Hu et al. 2022), or `alpha / sqrt(r)` if rank-stabilised (Kalajdzievski 2023).
        transposed: the weight is stored as `[in, out]`, as in GPT-2's modules and in embeddings.
        embedding: the factors are those of an embedding, which PEFT stores under other names.
    """

    a: str
    b: str
    rank: int
    scale: float
    transposed: bool
    embedding: bool

    @property
    def module(self) -> str:
        """The name of the adapted module in the adapter."""
        return self.a.removeprefix(_PREFIX).rsplit(".lora_", maxsplit=1)[0]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """One adapter over its base.

    Attributes:
        own: what the adapter's folder stores; its `config` is that of the adapter.
        base: the model that it was trained on.
        whole: of every weight that the adapter stores whole and that is not the base's, its name there, by the base's
            name.
        factors: of every adapted weight, by the base's name.
    """

    own: Checkpoint
    base: Checkpoint
    whole: Mapping[str, str]
    factors: Mapping[str, LowRank]

    @classmethod
    def open(cls, folder: Path, base: Checkpoint) -> Adapter:
        """Read the header of an adapter.

        Args:
            folder: a PEFT folder.
            base: the model that it was trained on.

        Raises:
            PoolError: a file is missing or garbled, the adapter is no plain LoRA, or it does not fit the base.
        """
        config = read_json(folder / ADAPTER_CONFIG)
        _check_kind(folder, config)
        if not (folder / ADAPTER_FILE).is_file():
            raise PoolError(
                f"{folder}: expected {ADAPTER_FILE}; got none; pickled weights are never read: save it anew"
            )
        own = Checkpoint(folder, config, {tensor.name: tensor for tensor in read_header(folder / ADAPTER_FILE)})
        parts = {name: _FACTOR.fullmatch(name) for name in own.tensors}
        whole = {name: _WRAPPED.sub("", name.removeprefix(_PREFIX)) for name, part in parts.items() if part is None}
        adapted = {part["module"]: part for part in parts.values() if part}
        targets = {module: f"{module.removeprefix(_PREFIX)}.weight" for module in adapted}
        ours = aligned({*whole.values(), *targets.values()}, base.tensors)
        adapter = cls(
            own=own,
            base=base,
            whole={ours[name]: stored for stored, name in whole.items() if not _is_copy(own, stored, base, ours[name])},
            factors={ours[targets[module]]: _low_rank(own, module, part) for module, part in adapted.items()},
        )
        _check_fit(adapter)
        return adapter

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.own.folder

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder if it holds a tokenizer, else the base's."""
        return self.folder if has_vocabulary(self.folder) else self.base.tokenizer_folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's configuration."""
        return self.base.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors; what the adapter stores whole in their place."""
        return {**self.base.tensors, **{name: self.own.tensors[stored] for name, stored in self.whole.items()}}

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter's own file."""
        return self.own.files

    def tensor(self, name: str) -> torch.Tensor:
        """One weight: `W + s B A` in fp32 if it is adapted, else memory-mapped as stored; do not write to it.

        Raises:
            KeyError: no such tensor.
        """
        import torch

        stored = self.own.tensor(self.whole[name]) if name in self.whole else self.base.tensor(name)
        if name not in self.factors:
            return stored
        left, right = self.sides(name)
        return torch.addmm(stored.float(), left, right, alpha=self.factors[name].scale)

    def sides(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of one change, `W + s left right` with the weight in its stored shape; fp32.

        Raises:
            KeyError: the adapter does not change this weight.
        """
        change = self.factors[name]
        a, b = self.own.tensor(change.a).float(), self.own.tensor(change.b).float()
        return (a.T, b.T) if change.transposed else (b, a)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()


def adapters_of(models: Mapping[str, Model], names: Iterable[str]) -> dict[str, Adapter]:
    """Models of a pool that must be adapters, for what is done to low-rank changes alone.

    Raises:
        PoolError: one of them is a full model.
    """
    adapters = {}
    for name in names:
        model = models[name]
        if not isinstance(model, Adapter):
            raise PoolError(
                f"{name}: core space needs LoRA adapters that keep the base's vocabulary; got a full model; leave out "
                "'space: core' to merge weights, or give an adapter"
            )
        adapters[name] = model
    return adapters


def _is_copy(own: Checkpoint, stored: str, base: Checkpoint, name: str) -> bool:
    """Whether a weight is the base's: PEFT stores embeddings and heads that it adapts along with their factors."""
    return name in base.tensors and same_bytes(own.tensors[stored], base.tensors[name])


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse whatever is not `W + s B A` on the base's own weights."""
    found = [meaning for key, meaning in _REFUSED.items() if config.get(key)]
    if config.get("peft_type") != "LORA":
        found.insert(0, f"peft_type {shorten(config.get('peft_type'))}")
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        found.append(f"{config['init_lora_weights']}, which starts by changing the base")
    if found:
        raise PoolError(
            f"{folder / ADAPTER_CONFIG}: expected plain LoRA; got {', '.join(found)}; "
            "merge the adapter into its base with PEFT (merge_and_unload) and give the full model"
        )


def _low_rank(own: Checkpoint, module: str, part: re.Match[str]) -> LowRank:
    embedding = part["embedding"] is not None
    stem, end = (f"{module}.lora_embedding_", "") if embedding else (f"{module}.lora_", ".weight")
    a, b = (own.tensors.get(f"{stem}{factor}{end}") for factor in "AB")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        shapes = [None if factor is None else [*factor.shape] for factor in (a, b)]
        raise PoolError(
            f"{own.folder}: module {module.removeprefix(_PREFIX)}: expected factors A of shape [r, in] and B of shape "
            f"[out, r]; got {shorten(shapes[0])} and {shorten(shapes[1])}; only linear maps and embeddings can be read"
        )
    if strange := next((factor for factor in (a, b) if factor.dtype not in FLOATS), None):
        raise PoolError(
            f"{own.folder}: tensor {strange.name}: expected a dtype of {', '.join(FLOATS)}; got {strange.dtype}; "
            "quantised factors cannot be merged: save the adapter in one of these"
        )
    return LowRank(
        a=a.name,
        b=b.name,
        rank=a.shape[0],
        scale=_scale(own.folder, own.config, module.removeprefix(_PREFIX), a.shape[0]),
        transposed=embedding or bool(own.config.get("fan_in_fan_out")),
        embedding=embedding,
    )


def _scale(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """`alpha / r`, where patterns of module names may set another alpha for some modules."""
    alpha = config.get("lora_alpha")
    try:
        patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
        alpha = next((a for pattern, a in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), alpha)
        scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]
        if not abs(scale) <= _LARGEST:
            raise ValueError(f"no fp32 number: {scale}")
        return scale
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise PoolError(
            f"{folder / ADAPTER_CONFIG}: expected numbers as lora_alpha and in alpha_pattern; got {shorten(alpha)}; "
            "copy the adapter again"
        ) from error


def _check_fit(adapter: Adapter) -> None:
    """Refuse an adapter whose weights are not the base's."""
    for name in [*adapter.whole, *adapter.factors]:
        if name not in adapter.base.tensors:
            raise PoolError(f"{adapter.folder}: tensor {name}: expected one of the base's weights; the base has none")
    for name, factors in adapter.factors.items():
        shape = (adapter.own.tensors[factors.b].shape[0], adapter.own.tensors[factors.a].shape[1])
        expected = adapter.tensors[name].shape
        if (shape[::-1] if factors.transposed else shape) != expected:
            raise PoolError(
                f"{adapter.folder}: tensor {name}: expected factors of a matrix {[*expected]} as in the base; "
                f"got {[*shape]} (fan_in_fan_out {shorten(factors.transposed)}); check which base this adapter is for"
            )
        if (is_token_embedding(name) or is_output_projection(name)) and ties_head({"base": adapter.base}):
            raise PoolError(
                f"{adapter.folder}: tensor {name}: expected no LoRA on an embedding that is also the output head; "
                "the adapter changes one of the two; merge it with PEFT into a model that does not tie them"
            )
