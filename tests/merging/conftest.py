"""Tiny random model families, made by transformers itself."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VOCAB = 48


@dataclass(frozen=True)
class Family:
    """Folders of a base and its experts."""

    base: Path
    experts: dict[str, Path]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_family(tmp_path: Path) -> Callable[..., Family]:
    """A factory of random families.

    `make_family(kind="llama", tied=False, dtype="bfloat16", experts=("one", "two"), shard=None, seed=0)`: `kind` is
    `llama`, `qwen2`, `qwen3` or `gpt2`; `shard` a size for transformers' `max_shard_size`; experts differ from the
    base by noise of a tenth of the weights' spread.
    """

    def make(
        *,
        kind: str = "llama",
        tied: bool = False,
        dtype: str = "bfloat16",
        experts: tuple[str, ...] = ("one", "two"),
        shard: str | None = None,
        seed: int = 0,
    ) -> Family:
        import torch

        torch.manual_seed(seed)
        base = _model(kind, tied=tied)
        root = tmp_path / f"{kind}-{'tied' if tied else 'untied'}-{dtype}-{shard}-{seed}"
        _save(base, root / "base", dtype, shard)
        for name in experts:
            expert = _model(kind, tied=tied)
            with torch.no_grad():
                for new, old in zip(expert.parameters(), base.parameters(), strict=True):
                    new.copy_(old.float() + 0.002 * torch.randn_like(old, dtype=torch.float32))
            _save(expert, root / name, dtype, shard)
        return Family(root / "base", {name: root / name for name in experts})

    return make


def _model(kind: str, *, tied: bool) -> Any:
    import transformers

    common: dict[str, Any] = {"vocab_size": VOCAB, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=32, **common)
        return transformers.GPT2LMHeadModel(config)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    prefix = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    extra = {"head_dim": 4} if kind == "qwen3" else {}
    config = getattr(transformers, f"{prefix}Config")(**shape, **extra, **common)
    return getattr(transformers, f"{prefix}ForCausalLM")(config)


def _save(model: Any, folder: Path, dtype: str, shard: str | None) -> None:
    import torch

    options = {} if shard is None else {"max_shard_size": shard}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    _save_tokenizer(folder)
    model.float()


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", *(chr(ord("!") + i) for i in range(VOCAB - 3))]
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(file, key=value, ...)`: change keys of a JSON file."""

    def edit(file: Path, **changes: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


@dataclass(frozen=True, kw_only=True)
class MemoryPool:
    """Has what merging reads of a `ModelPool`, from tensors in memory: random shapes in no time."""

    tensors: dict[str, dict[str, Any]]
    specs: tuple[Any, ...]
    layers: int
    digest: str
    config: dict[str, Any]
    carried: tuple[Any, ...] = ()
    base: str = "base"
    calibration: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(name for name in self.tensors if name != self.base)

    @property
    def contents(self) -> dict[str, str]:
        return {name: f"{name} of {self.digest}" for name in self.tensors}

    def tensor(self, model: str, name: str) -> Any:
        return self.tensors[model][name]


@pytest.fixture(scope="session")
def memory_pool() -> Callable[..., Any]:
    """`memory_pool({"base": {name: tensor}, "expert": {...}}, model_type="llama")`: names tell roles and layers."""
    from evomerge.merging.layout import classify
    from evomerge.merging.pool import TensorSpec

    def make(tensors: dict[str, dict[str, Any]], model_type: str = "llama") -> MemoryPool:
        keys = {name: classify(name) for name in sorted(tensors["base"])}
        specs = tuple(
            TensorSpec(
                name=name,
                shape=tuple(tensors["base"][name].shape),
                dtype=str(tensors["base"][name].dtype).removeprefix("torch."),
                role=key.role,
                layer=key.layer,
            )
            for name, key in keys.items()
        )
        layers = 1 + max((key.layer for key in keys.values() if key.layer is not None), default=0)
        config = {"model_type": model_type}
        return MemoryPool(tensors=tensors, specs=specs, layers=layers, digest=secrets.token_hex(), config=config)

    return make
