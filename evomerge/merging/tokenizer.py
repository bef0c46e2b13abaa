"""Whether two models read and write text alike: their tokenizers and chat templates, compared by content.

Compares what the files mean, not their bytes: versions of the libraries order and spell the same tokenizer differently.
Knows nothing of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.merging.small_files import read_bytes, read_json, read_text

__all__ = ["TOKENIZER_FILES", "has_vocabulary", "shorten", "token_ids", "tokenizer_faults", "translation_faults"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer may consist of."""

_SPECIAL = ("bos_token", "eos_token", "unk_token")
"""The padding token is left out: training scripts set it at will and a model never reads it."""

_FLAGS = ("add_bos_token", "add_eos_token")

_REMEDY = (
    "say with pool.tokenizer (or --tokenizer) whose the merged model takes, or, if the two mean the same, copy the "
    "base's file over"
)

_INHERENT = frozenset({"type", "normalization", "content"})
"""Parts of a vocabulary file that tokens cannot be told apart without: they spell the same text differently."""


def tokenizer_faults(base: Path, model: Path) -> list[str]:
    """Every difference between the tokenizers of two model folders.

    A chat template may be missing in one of them, but not differ.

    Raises:
        PoolError: a tokenizer file that is no JSON.
    """
    faults = [*(fault for _, fault in _vocabulary_faults(base, model)), *_setting_faults(base, model)]
    mine, theirs = _chat_template(base), _chat_template(model)
    if mine is not None and theirs is not None and mine != theirs:
        faults.append(_difference("chat template", {"text": mine}, {"text": theirs}))
    return faults


def translation_faults(chosen: Path, model: Path) -> list[str]:
    """What keeps the tokens of a model from being found, by their text, in another vocabulary.

    Merges, ids, added and special tokens and the chat template may differ.

    Args:
        chosen: folder of the tokenizer that the merged model takes.
        model: folder of another model's tokenizer.

    Raises:
        PoolError: a tokenizer file that is no JSON.
    """
    if not has_vocabulary(chosen) or not has_vocabulary(model):
        lacking = model if has_vocabulary(chosen) else chosen
        return [f"{lacking}: expected a tokenizer, one of {[*_READERS]}, to tell tokens by their text; got none"]
    found = [fault for part, fault in _vocabulary_faults(chosen, model) if part in _INHERENT]
    return [fault.removesuffix(_REMEDY) + "tokens that are spelled differently cannot be matched" for fault in found]


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / file).is_file() for file in _READERS)


def token_ids(folder: Path) -> dict[str, int]:
    """The id of every token, by its text; empty where the vocabulary is in a binary file.

    Raises:
        PoolError: a tokenizer file that is no JSON.
    """
    file = next((file for file in _READERS if (folder / file).is_file()), None)
    parts = {} if file is None else _parts(file, folder)
    ids = {}
    for key, value in parts.get("vocabulary", {}).items():
        # Unigram models and plain lists are read as id to token, the others as token to id.
        token, number = (key, value) if isinstance(key, str) else (value, key)
        ids[token if isinstance(token, str) else str(token[0])] = int(number)
    return ids | {content: int(number) for number, content in parts.get("added tokens", {}).items()}


def shorten(value: Any, width: int = 60) -> str:
    """A value as JSON, cut to a width."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _vocabulary_faults(base: Path, model: Path) -> list[tuple[str, str]]:
    """Part and fault of every difference in the first vocabulary file that both have."""
    common = [file for file in _READERS if (base / file).is_file() and (model / file).is_file()]
    if common:
        file = common[0]
        mine, theirs = _parts(file, base), _parts(file, model)
        parts = [part for part in mine if mine[part] != theirs.get(part)]
        return [(part, _difference(f"{file} {part}", mine[part], theirs.get(part, {}))) for part in parts]
    held = [[file for file in _READERS if (folder / file).is_file()] for folder in (base, model)]
    if held == [[], []]:
        return []
    fault = f"tokenizer: expected {shorten(held[0])} as in the base; got {shorten(held[1])}; {_REMEDY}"
    return [("type", fault)]


def _setting_faults(base: Path, model: Path) -> list[str]:
    """Differences in special tokens, if both models name theirs."""
    mine, theirs = _settings(base), _settings(model)
    if not mine or not theirs:
        return []
    keys = [key for key in _SPECIAL if mine.get(key) != theirs.get(key)]
    keys += [key for key in _FLAGS if mine.get(key, theirs.get(key)) != theirs.get(key, mine.get(key))]
    return [
        f"tokenizer_config.json {key}: expected {shorten(mine.get(key))} as in the base; "
        f"got {shorten(theirs.get(key))}; {_REMEDY}"
        for key in keys
    ]


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            settings |= read_json(folder / file)
    return {key: _token_text(value) for key, value in settings.items()}


def _token_text(token: Any) -> Any:
    """A token, whether it is written as its text or as an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path) -> Any:
    """The default chat template, wherever this version keeps it; None if there is none."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    for file in ("chat_template.json", "tokenizer_config.json"):
        if (folder / file).is_file() and (template := read_json(folder / file).get("chat_template")):
            return template
    return None


def _difference(what: str, base: Mapping[Any, Any], model: Mapping[Any, Any]) -> str:
    keys = [key for key in {**base, **model} if base.get(key) != model.get(key)]
    mine, theirs = _first_difference(base.get(keys[0]), model.get(keys[0]))
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{what}: {shorten(keys[0])}: expected {mine} as in the base; got {theirs}{more}; {_REMEDY}"


def _first_difference(base: Any, model: Any) -> tuple[str, str]:
    """Both values; of two long texts, the places where they part."""
    if not isinstance(base, str) or not isinstance(model, str):
        return shorten(base), shorten(model)
    place = next((i for i, (a, b) in enumerate(zip(base, model, strict=False)) if a != b), min(len(base), len(model)))
    start = max(0, place - 20)
    return shorten(base[start:]), shorten(model[start:])


def _parts(file: str, folder: Path) -> dict[str, dict[Any, Any]]:
    """What a vocabulary file holds, by part.

    Raises:
        PoolError: it cannot be read, or is none.
    """
    try:
        return _READERS[file](folder)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PoolError(
            f"{folder / file}: expected a tokenizer; got {type(error).__name__}: {error}; copy the file again"
        ) from error


def _read_tokenizer_json(folder: Path) -> dict[str, dict[Any, Any]]:
    data = read_json(folder / "tokenizer.json")
    model = data.get("model") or {}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    return {
        "type": {"model": model.get("type")},
        "vocabulary": _vocabulary(model.get("vocab") or {}),
        "merges": dict(enumerate(merges)),
        "added tokens": {int(token["id"]): token["content"] for token in data.get("added_tokens") or []},
        "normalization": {key: data.get(key) for key in ("normalizer", "pre_tokenizer")},
    }


def _vocabulary(vocab: Mapping[str, int] | list[Any]) -> dict[Any, Any]:
    """Token to id; for unigram models, id to token and its log probability."""
    if isinstance(vocab, Mapping):
        return {token: int(number) for token, number in vocab.items()}
    if any(not isinstance(entry, str) and not isinstance(entry[0], str) for entry in vocab):
        raise TypeError("tokens that are no text")
    return dict(enumerate(vocab))


def _read_vocab_json(folder: Path) -> dict[str, dict[Any, Any]]:
    merges = folder / "merges.txt"
    lines = read_text(merges).splitlines() if merges.is_file() else []
    rules = [line for line in lines if line and not line.startswith("#version")]
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    return {
        "vocabulary": read_json(folder / "vocab.json"),
        "merges": dict(enumerate(rules)),
        "added tokens": {number: token for token, number in added.items()},
    }


def _read_vocab_txt(folder: Path) -> dict[str, dict[Any, Any]]:
    lines = read_text(folder / "vocab.txt").splitlines()
    return {"vocabulary": dict(enumerate(lines))}


def _read_binary(file: str) -> Callable[[Path], dict[str, dict[Any, Any]]]:
    def read(folder: Path) -> dict[str, dict[Any, Any]]:
        return {"content": {"digest": hashlib.blake2b(read_bytes(folder / file), digest_size=8).hexdigest()}}

    return read


_READERS: Mapping[str, Callable[[Path], dict[str, dict[Any, Any]]]] = {
    "tokenizer.json": _read_tokenizer_json,
    "tokenizer.model": _read_binary("tokenizer.model"),
    "spiece.model": _read_binary("spiece.model"),
    "sentencepiece.bpe.model": _read_binary("sentencepiece.bpe.model"),
    "tekken.json": _read_binary("tekken.json"),
    "vocab.json": _read_vocab_json,
    "vocab.txt": _read_vocab_txt,
}
"""How to read each kind of vocabulary, the most telling first."""
