"""Model folders for benchmarks: random weights in a Llama layout, and experts that differ from a base.

Experts are the base plus noise of 3 % of each tensor's root mean square: good for time and memory, not for quality.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = ["LARGE", "QUICK_LAYOUT", "SMOLLM2", "Layout", "write_expert", "write_random"]

_NOISE = 0.03
_TILE = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
"""Random numbers, used again and again: drawing all anew would take longer than what is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Sizes of a Llama whose output head is its embedding."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int

    @property
    def config(self) -> dict[str, object]:
        """Content of its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Shapes by name: what lies outside the layers, then layer by layer."""
        size, inner = self.hidden, self.intermediate
        narrow = size // self.heads * self.key_value_heads
        yield {"model.embed_tokens.weight": (self.vocabulary, size), "model.norm.weight": (size,)}
        for layer in range(self.layers):
            within: dict[str, tuple[int, ...]] = {
                "input_layernorm": (size,),
                "mlp.down_proj": (size, inner),
                "mlp.gate_proj": (inner, size),
                "mlp.up_proj": (inner, size),
                "post_attention_layernorm": (size,),
                "self_attn.k_proj": (narrow, size),
                "self_attn.o_proj": (size, size),
                "self_attn.q_proj": (size, size),
                "self_attn.v_proj": (narrow, size),
            }
            yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in within.items()}


SMOLLM2 = Layout(layers=30, hidden=576, intermediate=1536, heads=9, key_value_heads=3, vocabulary=49152)
"""SmolLM2-135M."""

QUICK_LAYOUT = Layout(layers=6, hidden=576, intermediate=1536, heads=9, key_value_heads=3, vocabulary=4096)

LARGE = Layout(layers=23, hidden=2048, intermediate=8192, heads=32, key_value_heads=8, vocabulary=32000)
"""2.9 GB in bf16."""


def write_random(folder: Path, layout: Layout) -> None:
    """A model of random weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(layout.config))
    files: dict[str, str] = {}
    for number, shapes in enumerate(layout.shards()):
        tensors = {name: _random(shape, number + place) for place, (name, shape) in enumerate(shapes.items())}
        _write(folder / f"part-{number:03}.safetensors", {name: (0.04 * x).bfloat16() for name, x in tensors.items()})
        files |= dict.fromkeys(shapes, f"part-{number:03}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def write_expert(folder: Path, base: Path, number: int) -> None:
    """A model that differs from a base by noise; whatever else lies in the base's folder is copied."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            tensors = {name: _moved(stored.get_tensor(name), number + i) for i, name in enumerate(stored.keys())}
        _write(folder / file.name, tensors)


def _moved(values: torch.Tensor, shift: int) -> torch.Tensor:
    x = values.float()
    return torch.add(x, _random(values.shape, 101 * shift), alpha=float(_NOISE * x.square().mean().sqrt())).bfloat16()


def _random(shape: tuple[int, ...] | torch.Size, shift: int) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return _TILE.roll(7919 * shift).repeat(-(-size // len(_TILE)))[:size].view(shape)


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: values.contiguous() for name, values in tensors.items()}, file, metadata={"format": "pt"})
