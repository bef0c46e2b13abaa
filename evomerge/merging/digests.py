"""Digests of models and of pools, from those of the files that make them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from evomerge.merging.calibrated import MOMENTS_FILE
from evomerge.merging.checkpoint import Model
from evomerge.merging.content import Content, scan
from evomerge.merging.lora import ADAPTER_CONFIG
from evomerge.merging.small_files import read_bytes
from evomerge.merging.tokenizer import TOKENIZER_FILES

__all__ = ["change_of", "content_of", "digest_of", "parts_of"]


def parts_of(model: Model, contents: Mapping[Path, Content]) -> list[str]:
    """Digests of the files that make a model."""
    small = [model.folder / file for file in ("config.json", ADAPTER_CONFIG, *TOKENIZER_FILES)]
    texts = [read_bytes(file) for file in small if file.is_file()]
    moments = [scan(file).digest for file in [model.folder / MOMENTS_FILE] if file.is_file()]
    return [*(contents[file].digest for file in model.files), *map(_hash, texts), *moments]


def change_of(model: Model, contents: Mapping[Path, Content]) -> str:
    """Over the files of a model's weights, and over what scales an adapter's; whatever else models differ in."""
    config = model.folder / ADAPTER_CONFIG
    adapter = [_hash(read_bytes(config))] if config.is_file() else []
    return _hash("\x1f".join([*(contents[file].digest for file in model.files), *adapter]).encode())


def digest_of(parts: Mapping[str, list[str]], tokenizer: str | None) -> str:
    """Over names, configurations, tokenizers and every byte of the weights of a pool's models."""
    entries = ("\x1f".join([name, *own]) + "\x1e" for name, own in parts.items())
    return _hash(("".join(entries) + (tokenizer or "")).encode())


def content_of(model: str, parts: Mapping[str, list[str]], tokenizer: str | None, *, base: str) -> str:
    """A model's names, and the weights that an adapter or another vocabulary adds to, may come from two others."""
    involved = (parts[model], parts[base], [] if tokenizer is None else parts[tokenizer])
    return _hash("\x1e".join("\x1f".join(part) for part in involved).encode())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
