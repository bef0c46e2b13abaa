"""Experts whose vocabulary, special tokens or chat template differ from the base's."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from evomerge.config import PoolConfig
from evomerge.errors import PoolError
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.merging.tokenizer import token_ids
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

MakeFamily = Callable[..., Any]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHAT = ("<|im_start|>", "<|im_end|>")


def retokenize(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


def add_tokens(folder: Path, tokens: Mapping[str, int]) -> None:
    def change(data: dict[str, Any]) -> None:
        like = {key: value for key, value in data["added_tokens"][0].items() if key not in ("id", "content")}
        data["added_tokens"] += [{"id": number, "content": token, **like} for token, number in tokens.items()]

    retokenize(folder, change)


def resize(folder: Path, rows: int) -> None:
    """Pad the vocabulary with rows of its own."""
    held = load_file(folder / "model.safetensors")
    for name in {EMBED, HEAD} & held.keys():
        fresh = torch.randn(rows, held[name].shape[1]).to(held[name].dtype)
        count = min(rows, len(held[name]))
        fresh[:count] = held[name][:count]
        held[name] = fresh
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", vocab_size=rows)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def make_chat(folder: Path, ids: Mapping[str, int], rows: int) -> None:
    """Give a model chat tokens, a template, and another end of text: what instruction tuning commonly does."""
    add_tokens(folder, ids)
    resize(folder, rows)
    edit(folder / "config.json", eos_token_id=ids[CHAT[1]])
    edit(folder / "tokenizer_config.json", eos_token=CHAT[1])
    edit(folder / "generation_config.json", eos_token_id=ids[CHAT[1]])
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")


@pytest.fixture
def family(make_family: MakeFamily) -> Any:
    """A base of 48 tokens; `chat` with two more and padding to 52 rows; `plain` with the base's vocabulary."""
    family = make_family(experts=("chat", "plain"))
    make_chat(family.experts["chat"], {CHAT[0]: 48, CHAT[1]: 49}, 52)
    return family


def stored(folder: Path, name: str) -> torch.Tensor:
    tensor: torch.Tensor = load_file(folder / "model.safetensors")[name]
    return tensor


def task_arithmetic(pool: ModelPool, weights: Mapping[str, float]) -> Recipe:
    fields = {"lambda": [1.0], "weight": list(weights.values())}
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=tuple(weights),
        parameters=tuple((name, Field.constant(values, pool.layers)) for name, values in sorted(fields.items())),
        dtype=pool.dtype,
    )


def export(pool: ModelPool, recipe: Recipe, out: Path) -> Any:
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype=recipe.dtype)
    return load(out)


def load(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def test_without_a_choice_every_difference_is_refused_and_the_choice_named(family: Any) -> None:
    with pytest.raises(PoolError) as caught:
        ModelPool.open(family.base, family.experts)
    text = str(caught.value)
    for part in ("config.json: vocab_size", "tokenizer.json added tokens", "eos_token", "chat template", EMBED, HEAD):
        assert f"chat: {part}" in text or f"chat: tokenizer_config.json {part}" in text or f"tensor {part}" in text
    assert text.count("say with pool.tokenizer (or --tokenizer) whose") == 5
    assert "plain: " not in text


def test_the_chosen_model_comes_through_whole(family: Any, tmp_path: Path) -> None:
    pool = ModelPool.open(family.base, family.experts, tokenizer="chat")
    merged = export(pool, task_arithmetic(pool, {"chat": 1.0}), tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(family.experts["chat"] / "model.safetensors").items():
        assert torch.equal(held[name], tensor)
    assert merged.config.vocab_size == 52
    assert merged.config.eos_token_id == merged.generation_config.eos_token_id == 49
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == CHAT[1]
    assert tokenizer.chat_template.startswith("{% for m in messages %}<|im_start|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=True)["input_ids"][0] == 48


def test_every_model_answers_as_before_in_the_chosen_vocabulary(family: Any, tmp_path: Path) -> None:
    pool = ModelPool.open(family.base, family.experts, tokenizer="chat")
    ids = torch.arange(3, 40)[None]
    for name, folder in {"base": family.base, "plain": family.experts["plain"]}.items():
        merged = export(pool, uniform([name], layers=pool.layers, dtype=pool.dtype), tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(merged(ids).logits[..., :48], load(folder)(ids).logits, rtol=0, atol=0)


def test_tokens_of_the_chosen_model_alone_keep_its_rows(family: Any) -> None:
    pool = ModelPool.open(family.base, family.experts, tokenizer="chat")
    mixed = dict(execute(lower(task_arithmetic(pool, {"chat": 0.3, "plain": 0.6}), pool), pool))
    for name in (EMBED, HEAD):
        chat, plain, base = (stored(folder, name) for folder in (*family.experts.values(), family.base))
        assert torch.equal(mixed[name][48:], chat[48:])
        expected = base.float() + 0.3 * (chat[:48].float() - base.float()) + 0.6 * (plain.float() - base.float())
        torch.testing.assert_close(mixed[name][:48].float(), expected, rtol=2**-8, atol=0)


def test_the_bases_vocabulary_may_be_chosen(family: Any, tmp_path: Path) -> None:
    pool = ModelPool.open(family.base, family.experts, tokenizer="base")
    merged = export(pool, task_arithmetic(pool, {"chat": 1.0}), tmp_path / "out")
    for name in (EMBED, HEAD):
        assert torch.equal(stored(tmp_path / "out", name), stored(family.experts["chat"], name)[:48])
    assert (merged.config.vocab_size, merged.config.eos_token_id) == (48, 2)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_rows_follow_the_text_of_their_tokens(family: Any) -> None:
    def shuffle(data: dict[str, Any]) -> None:
        vocab = data["model"]["vocab"]
        letters = [token for token in vocab if token not in ("<unk>", "<s>", "</s>")]
        for token, number in zip(letters, reversed([vocab[token] for token in letters]), strict=True):
            vocab[token] = number

    retokenize(family.experts["plain"], shuffle)
    pool = ModelPool.open(family.base, family.experts, tokenizer="chat")
    folders = {"base": family.base, **family.experts}
    ids = {name: token_ids(folder) for name, folder in folders.items()}
    assert ids["plain"] != ids["base"]
    for name in (EMBED, HEAD):
        own = {model: stored(folder, name) for model, folder in folders.items()}
        for model in folders:
            rows = pool.tensor(model, name)
            for token, number in ids["chat"].items():
                owner = next(m for m in (model, "base", "chat") if token in ids[m])
                assert torch.equal(rows[number], own[owner][ids[owner][token]])


def test_experts_keep_their_own_rows_of_tokens_that_the_base_lacks(family: Any) -> None:
    make_chat(family.experts["plain"], {CHAT[1]: 50, CHAT[0]: 51}, 60)
    pool = ModelPool.open(family.base, family.experts, tokenizer="chat")
    rows = pool.tensor("plain", EMBED)
    assert rows.shape == (52, 16)
    assert torch.equal(rows[[48, 49]], stored(family.experts["plain"], EMBED)[[51, 50]])
    assert torch.equal(pool.tensor("base", EMBED)[48:], stored(family.experts["chat"], EMBED)[48:])


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabularies_of_the_same_tokens(make_family: MakeFamily, tied: bool) -> None:
    family = make_family(tied=tied, experts=("one",))
    resize(family.experts["one"], 64)
    with pytest.raises(PoolError, match=r"expected shape \[48, 16\] as in the base; got \[64, 16\]; say with pool"):
        ModelPool.open(family.base, family.experts)
    for chosen, rows in (("base", 48), ("one", 64)):
        pool = ModelPool.open(family.base, family.experts, tokenizer=chosen)
        assert {pool.tensor(model, EMBED).shape for model in pool.names} == {(rows, 16)}
        assert next(spec for spec in pool.specs if spec.name == EMBED).shape == (rows, 16)
        assert torch.equal(pool.tensor("one", EMBED), stored(family.experts["one"], EMBED)[:rows])


def test_a_chat_template_alone_moves_no_row(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))
    (family.experts["one"] / "chat_template.jinja").write_text("other")
    pool = ModelPool.open(family.base, family.experts, tokenizer="one")
    assert pool.tensor("base", EMBED).data_ptr() == pool.models["base"].tensor(EMBED).data_ptr(), "still a memory map"
    assert pool.tokenizer_folder == family.experts["one"]


def test_rows_of_mixed_dtypes_are_not_rounded(make_family: MakeFamily) -> None:
    base, wide = make_family(dtype="bfloat16").base, make_family(dtype="float32").experts["one"]
    make_chat(wide, {CHAT[0]: 48, CHAT[1]: 49}, 50)
    pool = ModelPool.open(base, {"wide": wide}, tokenizer="wide")
    assert pool.tensor("base", EMBED).dtype == torch.float32
    assert torch.equal(pool.tensor("base", EMBED)[48:], stored(wide, EMBED)[48:])
    assert torch.equal(pool.tensor("base", EMBED)[:48], stored(base, EMBED).float())
    assert pool.dtype == "bfloat16"


def test_the_choice_is_part_of_the_digest_and_is_pickled(family: Any) -> None:
    pools = [ModelPool.open(family.base, family.experts, tokenizer=name) for name in ("base", "chat")]
    assert pools[0].digest != pools[1].digest
    copy = pickle.loads(pickle.dumps(pools[1]))
    assert copy.tokenizer == "chat"
    assert torch.equal(copy.tensor("plain", HEAD), pools[1].tensor("plain", HEAD))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: retokenize(folder, lambda data: data.update(normalizer={"type": "Lowercase"})), "normalizer"),
        (lambda folder: retokenize(folder, lambda data: data["model"].update(type="WordLevel")), '"WordLevel"'),
        (lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer, one of"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json: expected JSON"),
    ],
)
def test_what_no_choice_can_reconcile_is_refused(family: Any, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(family.experts["plain"])
    with pytest.raises(PoolError, match=r"cannot be merged: 1 fault\n  plain: ") as caught:
        ModelPool.open(family.base, family.experts, tokenizer="chat")
    assert message in str(caught.value)


@pytest.mark.parametrize("chosen", ["base", "one"])
def test_a_head_of_more_rows_than_the_embedding_is_refused(make_family: MakeFamily, chosen: str) -> None:
    family = make_family(experts=("one",))
    file = family.experts["one"] / "model.safetensors"
    save_file({**load_file(file), HEAD: torch.ones(64, 16)}, file)
    with pytest.raises(PoolError, match=r"one: tensor lm_head\.weight: expected \[48\] rows, as .*; got \[64\]"):
        ModelPool.open(family.base, family.experts, tokenizer=chosen)


def test_the_choice_must_be_a_model(family: Any) -> None:
    with pytest.raises(PoolError, match=r"expected a tokenizer of one of the models \['base', .*; got 'chatty'"):
        ModelPool.open(family.base, family.experts, tokenizer="chatty")
    with pytest.raises(ValidationError, match=r"tokenizer: expected one of \['base', 'chat'\]; got 'chatty'"):
        PoolConfig(base=Path("b"), experts={"chat": Path("c")}, tokenizer="chatty")
    assert PoolConfig(base=Path("b"), experts={"chat": Path("c")}, tokenizer="chat").tokenizer == "chat"


def test_an_adapter_may_bring_tokens_of_its_own(make_family: MakeFamily, tmp_path: Path) -> None:
    base, folder = make_family(experts=()).base, tmp_path / "adapter"
    folder.mkdir()
    rows = {EMBED: torch.randn(50, 16), HEAD: torch.randn(50, 16)}
    save_file({f"base_model.model.{name}": v for name, v in rows.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((base / file).read_text())
    add_tokens(folder, {CHAT[0]: 48, CHAT[1]: 49})
    pool = ModelPool.open(base, {"chat": folder}, tokenizer="chat")
    merged = export(pool, uniform(["chat"], layers=pool.layers, dtype="bfloat16"), tmp_path / "out")
    assert torch.equal(merged.get_input_embeddings().weight, rows[EMBED].bfloat16())
    assert merged.config.vocab_size == 50
    assert torch.equal(pool.tensor("base", EMBED)[:48], stored(base, EMBED).float())


def test_a_language_model_merges_into_a_multimodal_one_with_more_tokens(
    make_family: MakeFamily, tmp_path: Path
) -> None:
    plain = make_family(kind="llama", experts=()).base
    text = transformers.LlamaConfig.from_pretrained(plain, vocab_size=50)
    image = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    config = transformers.LlavaConfig(text_config=text, vision_config=image, image_token_index=49)
    transformers.LlavaForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / file).write_text((plain / file).read_text())
    add_tokens(tmp_path / "base", {"<image>": 49})
    pool = ModelPool.open(tmp_path / "base", {"plain": plain}, tokenizer="base")
    name = f"language_model.{EMBED}"
    assert torch.equal(pool.tensor("plain", name)[:48], stored(plain, EMBED))
    assert torch.equal(pool.tensor("plain", name)[48:], stored(tmp_path / "base", name)[48:])


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}}, {"a": 0, "b": 1}),
        ({"tokenizer.json": {"model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", 0.0]]}}}, {"a": 0, "b": 1}),
        ({"tokenizer.json": {"model": {}, "added_tokens": [{"id": 7, "content": "<x>"}]}}, {"<x>": 7}),
        ({"vocab.json": {"a": 0}, "added_tokens.json": {"<x>": 1}}, {"a": 0, "<x>": 1}),
        ({"vocab.txt": "a\nb\n"}, {"a": 0, "b": 1}),
        ({"tokenizer.model": "binary"}, {}),
    ],
)
def test_token_ids_of_every_kind_of_file(files: dict[str, Any], ids: dict[str, int], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert token_ids(tmp_path) == ids
