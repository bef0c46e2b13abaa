"""What a configuration for mergekit says of a chosen tokenizer, and where that tool would fill rows otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.merge import mergekit_text
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

MakeFamily = Callable[..., Any]
PATHS = {"base": "org/base", "one": "org/one", "two": "org/two"}


def extend(folder: Path, tokens: Mapping[str, int], rows: int) -> None:
    """Give a model tokens of its own, and so many rows."""
    data = json.loads((folder / "tokenizer.json").read_text())
    like = {key: value for key, value in data["added_tokens"][0].items() if key not in ("id", "content")}
    data["added_tokens"] += [{"id": number, "content": token, **like} for token, number in tokens.items()]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    held = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held[name] = torch.cat([held[name], held[name][: rows - 48] + 0.5])
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def ties(pool: ModelPool, *sources: str, base: str = "base") -> Recipe:
    return Recipe(
        operator="ties",
        options=options_of(OPERATORS["ties"], "mergekit"),
        base=base,
        sources=sources,
        parameters=tuple(
            (name, Field.constant([1.0] * (1 if name == "lambda" else len(sources)), pool.layers))
            for name in sorted(OPERATORS["ties"].parameters)
        ),
        dtype="bfloat16",
    )


def said(pool: ModelPool, recipe: Recipe) -> tuple[str | None, list[str]]:
    """The tokenizer source, and the comments."""
    text = mergekit_text(recipe, pool, PATHS)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    return yaml.safe_load(text).get("tokenizer_source"), comments


def test_equal_tokenizers_need_no_word(make_family: MakeFamily) -> None:
    family = make_family()
    for tokenizer in (None, "base"):
        pool = ModelPool.open(family.base, family.experts, tokenizer=tokenizer)
        assert said(pool, ties(pool, "one", "two")) == (None, [])


def test_another_chat_template_is_the_choice_of_a_tokenizer(make_family: MakeFamily) -> None:
    family = make_family()
    (family.experts["one"] / "chat_template.jinja").write_text("other")
    pool = ModelPool.open(family.base, family.experts, tokenizer="one")
    assert said(pool, ties(pool, "one", "two")) == ("org/one", [])


@pytest.mark.parametrize("chosen", ["base", "one"])
def test_tokens_of_one_expert_are_filled_alike(make_family: MakeFamily, chosen: str) -> None:
    family = make_family()
    extend(family.experts["one"], {"<x>": 48, "<y>": 49}, 50)
    pool = ModelPool.open(family.base, family.experts, tokenizer=chosen)
    assert said(pool, ties(pool, "one", "two")) == (PATHS[chosen], [])


def test_rows_without_a_token_are_told(make_family: MakeFamily) -> None:
    family = make_family()
    extend(family.experts["one"], {"<x>": 48}, 64)
    pool = ModelPool.open(family.base, family.experts, tokenizer="one")
    _, (comment,) = said(pool, ties(pool, "one", "two"))
    assert "padding: it gives the merged model 49 rows, one for each token; here 64" in comment


def test_tokens_that_several_experts_add_are_told(make_family: MakeFamily) -> None:
    family = make_family()
    for folder in family.experts.values():
        extend(folder, {"<x>": 48}, 49)
    pool = ModelPool.open(family.base, family.experts, tokenizer="one")
    _, (comment,) = said(pool, ties(pool, "one", "two"))
    assert "1 token(s) that some models lack, such as '<x>': it fills in a mean" in comment
    assert said(pool, ties(pool, "one")) == ("org/one", []), "one model has the token, and that is the filling"
    assert said(pool, uniform(["one", "two"], layers=pool.layers, dtype="bfloat16")) == ("org/one", []), "all have it"
    (_, (comment,)) = said(pool, uniform(["base", "one", "two"], layers=pool.layers, dtype="bfloat16"))
    assert "it fills in a mean" in comment
    assert said(pool, ties(pool, "base", "two", base="one")) == ("org/one", []), "its base is the filling"
