"""Models of different vocabularies, read as if they shared one: that of the model whose tokenizer was chosen.

Rows of embeddings and output heads follow their tokens, matched by text. A token that a model lacks takes the base's
row, and if the base lacks it too, the row of the chosen model: if all others lack it, no task vector changes it, and it
comes through every merge as that model has it. Rows without a token (padding) are matched by position. Knows nothing of
how text becomes tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Model, TensorInfo
from evomerge.merging.layout import has_vocabulary_rows, is_token_embedding
from evomerge.merging.tokenizer import token_ids

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Translated", "config_in", "mergekit_differences", "translated", "vocabulary_size"]

_TOKEN_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id")


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Translated:
    """A model with the vocabulary of another.

    Attributes:
        model: the model.
        rows: for each row of the chosen vocabulary, the model's own; -1 where it has none.
        fallback: whose rows stand in; itself in the chosen vocabulary.
    """

    model: Model
    rows: npt.NDArray[np.int64]
    fallback: Model

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.model.folder

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the model's own tokenizer."""
        return self.model.tokenizer_folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's own configuration."""
        return self.model.config

    @property
    def files(self) -> tuple[Path, ...]:
        """The model's files."""
        return self.model.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The model's tensors, in the shapes of the chosen vocabulary."""
        return {
            name: replace(info, shape=(len(self.rows), *info.shape[1:])) if has_vocabulary_rows(name) else info
            for name, info in self.model.tensors.items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor; with rows of the chosen vocabulary, a copy in the widest dtype of those that it is made from.

        Raises:
            KeyError: no such tensor.
        """
        own = self.model.tensor(name)
        if not has_vocabulary_rows(name):
            return own
        import torch

        rows = torch.from_numpy(self.rows)
        lacking = rows < 0
        if not lacking.any():
            return own[rows]
        other = self.fallback.tensor(name)
        dtype = torch.promote_types(own.dtype, other.dtype)
        merged = own.to(dtype)[rows.clamp(min=0)]
        merged[lacking] = other[lacking].to(dtype)
        return merged


def translated(models: Mapping[str, Model], chosen: str, base: str) -> dict[str, Model]:
    """Every model in the vocabulary of one of them; those that have it already, as they are.

    Args:
        models: by pool name.
        chosen: whose vocabulary.
        base: whose rows stand in for tokens that an expert lacks.

    Raises:
        PoolError: a tokenizer file that is no JSON, or a model whose tokens cannot be read beside one whose can.
    """
    texts = {name: token_ids(model.tokenizer_folder) for name, model in models.items()}
    if mute := [name for name in models if bool(texts[name]) != bool(texts[chosen])]:
        raise PoolError(
            f"tokenizers: expected token texts of every model, to match rows by; {mute} and {chosen} have them in "
            "files of different kinds (tokenizer.model cannot be read here); add a tokenizer.json to each"
        )
    target = texts[chosen]
    size = vocabulary_size(models[chosen])

    def translate(name: str, fallback: Model) -> Model:
        model = models[name]
        rows = _rows(target, texts[name], size, vocabulary_size(model))
        same = vocabulary_size(model) == size and np.array_equal(rows, np.arange(size))
        return model if same else Translated(model=model, rows=rows, fallback=fallback)

    # The chosen model comes through whole: rows without a token, too, are its own.
    base_model = models[base] if base == chosen else translate(base, models[chosen])
    done = {base: base_model, chosen: models[chosen]}
    return {name: done[name] if name in done else translate(name, base_model) for name in models}


def mergekit_differences(
    models: Mapping[str, Model], chosen: str, base: str, merged: Collection[str], merged_base: str | None
) -> list[str]:
    """Where mergekit's `tokenizer_source` fills rows otherwise than `translated` does, one line each.

    A token that some merged model lacks gets the row of the merge's base if that has one, else the mean of all that
    have one; rows without a token are not kept.

    Args:
        models: by pool name, translated or not.
        chosen: whose vocabulary.
        base: whose rows stand in here.
        merged: the models that the recipe reads.
        merged_base: which of them it names as base.
    """
    texts = {name: token_ids(model.tokenizer_folder) for name, model in models.items()}
    target, size = texts[chosen], vocabulary_size(models[chosen])

    def differs(token: str) -> bool:
        having = [name for name in merged if token in texts[name]]
        filling = base if token in texts[base] else chosen
        return len(having) < len(merged) and having != [filling] and filling != merged_base

    found = []
    if target and size != len(target):
        found.append(f"padding: it gives the merged model {len(target)} rows, one for each token; here {size}")
    if averaged := [token for token in target if differs(token)]:
        some = f"{len(averaged)} token(s) that some models lack, such as {averaged[0]!r}"
        found.append(f"{some}: it fills in a mean over models where the row is that of {base} or {chosen} here")
    return found


def vocabulary_size(model: Model) -> int:
    """Rows of the token embedding, padding included; 0 if there is none."""
    return next((info.shape[0] for name, info in model.tensors.items() if is_token_embedding(name)), 0)


def config_in(base: Model, chosen: Model) -> dict[str, Any]:
    """The base's configuration with the vocabulary size and special tokens of the chosen model."""
    theirs = {**chosen.config, **chosen.config.get("text_config", {})}
    settings = {key: theirs[key] for key in _TOKEN_SETTINGS if key in theirs} | {"vocab_size": vocabulary_size(chosen)}
    text = base.config.get("text_config", {})
    outer = {key: value for key, value in settings.items() if key in base.config or key not in text}
    inner = {key: value for key, value in settings.items() if key in text}
    return {**base.config, **outer, **({"text_config": {**text, **inner}} if text else {})}


def _rows(target: Mapping[str, int], own: Mapping[str, int], size: int, own_size: int) -> npt.NDArray[np.int64]:
    texts = {number: text for text, number in target.items()}
    taken = set(own.values())

    def row(number: int) -> int:
        text = texts.get(number)
        found = own.get(text, -1) if text is not None else -1 if number in taken else number
        return found if found < own_size else -1

    return np.fromiter((row(number) for number in range(size)), dtype=np.int64, count=size)
