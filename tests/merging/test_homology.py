from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.merging.pool import ModelPool

MakeFamily = Callable[..., Any]
EditJson = Callable[..., None]


def faults(family: Any) -> str:
    with pytest.raises(PoolError) as caught:
        ModelPool.open(family.base, family.experts)
    return str(caught.value)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("num_attention_heads", 2, "expected 4 as in the base; got 2"),
        ("hidden_act", "gelu", 'expected "silu" as in the base; got "gelu"'),
        ("architectures", ["MistralForCausalLM"], 'expected ["LlamaForCausalLM"] as in the base; got ["Mistral'),
        ("tie_word_embeddings", True, "expected false as in the base; got true"),
    ],
)
def test_a_setting_that_differs_is_named(
    make_family: MakeFamily, edit_json: EditJson, key: str, value: Any, both: str
) -> None:
    family = make_family(experts=("one",))
    edit_json(family.experts["one"] / "config.json", **{key: value})
    assert f"one: config.json: {key}: {both}" in faults(family)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope_parameters": None, "rope_theta": 1e6},
        {"sliding_window": 16},
    ],
)
def test_a_setting_that_only_one_file_spells_out_counts_by_what_it_does(
    make_family: MakeFamily, edit_json: EditJson, change: dict[str, Any]
) -> None:
    family = make_family(experts=("one",))
    edit_json(family.experts["one"] / "config.json", **change)
    assert "one: config.json" in faults(family)


def test_a_window_that_is_switched_off_is_none(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    edit_json(family.experts["one"] / "config.json", sliding_window=16, use_sliding_window=False)
    ModelPool.open(family.base, family.experts)


def test_settings_that_do_not_matter_are_ignored(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    edit_json(
        family.experts["one"] / "config.json",
        dtype="float64",
        transformers_version="0",
        _name_or_path="elsewhere",
        use_cache=False,
        attention_dropout=0.5,
        pad_token_id=7,
        a_key_of_a_later_version=1,
    )
    ModelPool.open(family.base, family.experts)


@pytest.mark.parametrize(("theta", "same"), [(10000.0, True), (500000.0, False)])
def test_the_rotary_base_is_compared_in_old_and_new_files(make_family: MakeFamily, theta: float, same: bool) -> None:
    family = make_family(experts=("one",))
    file = family.experts["one"] / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps({**config, "rope_theta": theta, "rope_scaling": None}))
    if same:
        ModelPool.open(family.base, family.experts)
    else:
        assert "config.json: rope_theta: expected 10000.0 as in the base; got 500000.0" in faults(family)


def test_missing_extra_and_misshapen_tensors_are_named_with_both_shapes(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
        tensors["lm_head.weight"] = torch.zeros(50, 16)

    change_tensors(family.experts["one"], change)
    text = faults(family)
    assert "one: tensor model.norm.weight: expected shape [16]; got none" in text
    assert "one: tensor model.layers.3.mlp.up_proj.weight: expected none; got shape [24, 16]" in text
    assert "one: tensor lm_head.weight: expected shape [48, 16] as in the base; got [50, 16]" in text


def test_many_faults_of_a_kind_are_counted(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))

    def remove_twenty(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors)[:20]:
            del tensors[name]

    change_tensors(family.experts["one"], remove_twenty)
    assert "one: ... and 12 more like it" in faults(family)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_weights_of_other_dtypes_are_refused_by_name(make_family: MakeFamily, dtype: torch.dtype) -> None:
    family = make_family(experts=("one",))
    change_tensors(
        family.experts["one"], lambda tensors: tensors.update({"model.norm.weight": torch.ones(16).to(dtype)})
    )
    got = str(dtype).removeprefix("torch.")
    assert f"tensor model.norm.weight: expected a dtype of bfloat16, float16, float32; got {got}" in faults(family)


def test_quantised_models_are_refused(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    edit_json(family.experts["one"] / "config.json", quantization_config={"quant_method": "gptq"})
    assert 'one: config.json: expected plain weights; got quantization_config {"quant_method": "gptq"}' in faults(
        family
    )


def test_a_tied_head_with_values_of_its_own_is_a_fault(make_family: MakeFamily) -> None:
    family = make_family(tied=True, experts=("one",))
    change_tensors(
        family.experts["one"], lambda tensors: tensors.update({"lm_head.weight": torch.ones(48, 16).bfloat16()})
    )
    assert "one: tensor lm_head.weight: expected the values of the token embedding" in faults(family)


def test_an_untied_model_without_head_is_a_fault(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))
    change_tensors(family.experts["one"], lambda tensors: tensors.__delitem__("lm_head.weight"))
    text = faults(family)
    assert "one: tensor lm_head.weight: expected one, because config.json does not tie it" in text
    assert "one: tensor lm_head.weight: expected shape [48, 16]; got none" in text


def test_a_body_that_claims_no_head_needs_none(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    for folder in (family.base, family.experts["one"]):
        change_tensors(folder, lambda tensors: tensors.__delitem__("lm_head.weight"))
        edit_json(folder / "config.json", architectures=["LlamaModel"])
    assert "lm_head.weight" not in {spec.name for spec in ModelPool.open(family.base, family.experts).specs}


@pytest.mark.parametrize("stored", [True, False])
def test_a_silent_configuration_ties_what_the_weights_tie(make_family: MakeFamily, stored: bool) -> None:
    family = make_family(tied=True, experts=("one",))
    for folder in (family.base, family.experts["one"]):
        config = json.loads((folder / "config.json").read_text())
        del config["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        if stored:
            change_tensors(
                folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
            )
    pool = ModelPool.open(family.base, family.experts)
    assert "lm_head.weight" not in {spec.name for spec in pool.specs}


def _swap_two_tokens(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["$"], vocab["%"] = vocab["%"], vocab["$"]


def _add_a_token(data: dict[str, Any]) -> None:
    data["added_tokens"].append({**data["added_tokens"][0], "id": 99, "content": "<new>"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap_two_tokens, r'tokenizer.json vocabulary: "$": expected 6 as in the base; got 7 (and 1 more)'),
        (lambda data: data["model"].update(merges=["! $"]), 'merges: 0: expected null as in the base; got ["!", "$"]'),
        (_add_a_token, 'tokenizer.json added tokens: 99: expected null as in the base; got "<new>"'),
        (lambda data: data["model"].update(type="WordLevel"), 'expected "BPE" as in the base; got "WordLevel"'),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "normalizer"),
    ],
)
def test_tokenizers_that_differ_are_told_apart(
    make_family: MakeFamily, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    family = make_family(experts=("one",))
    change_tokenizer(family.experts["one"], change)
    assert message in faults(family)


def test_the_same_tokenizer_in_other_bytes_is_the_same(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))
    change_tokenizer(family.base, lambda data: data["model"].update(merges=["! $", "% &"]))

    def respell(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [["!", "$"], ["%", "&"]]
        data["model"]["vocab"] = dict(reversed(data["model"]["vocab"].items()))
        data["padding"] = {"strategy": "BatchLongest"}

    change_tokenizer(family.experts["one"], respell)
    ModelPool.open(family.base, family.experts)


@pytest.mark.parametrize(("expert", "same"), [("a\nb\n", True), ("b\na\n", False)])
def test_plain_vocabularies_are_compared(make_family: MakeFamily, expert: str, same: bool) -> None:
    family = make_family(experts=("one",))
    for folder, text in ((family.base, "a\nb\n"), (family.experts["one"], expert)):
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text(text)
    if same:
        ModelPool.open(family.base, family.experts)
    else:
        assert 'vocab.txt vocabulary: 0: expected "a" as in the base; got "b" (and 1 more)' in faults(family)


@pytest.mark.parametrize("file", ["tokenizer.model", "vocab.json"])
def test_other_tokenizer_files_are_compared(make_family: MakeFamily, file: str) -> None:
    family = make_family(experts=("one",))
    for folder, content in ((family.base, '{"a": 0}'), (family.experts["one"], '{"a": 1}')):
        (folder / "tokenizer.json").unlink()
        (folder / file).write_text(content)
    assert f"one: {file} " in faults(family)


def test_a_missing_tokenizer_is_a_fault_unless_all_lack_one(make_family: MakeFamily) -> None:
    family = make_family(experts=("one",))
    (family.experts["one"] / "tokenizer.json").unlink()
    assert 'one: tokenizer: expected ["tokenizer.json"] as in the base; got []' in faults(family)
    (family.base / "tokenizer.json").unlink()
    ModelPool.open(family.base, family.experts)


def test_special_tokens_are_compared_however_they_are_written(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    file = family.experts["one"] / "tokenizer_config.json"
    edit_json(file, eos_token={"content": "</s>", "lstrip": False}, pad_token="<unk>")
    ModelPool.open(family.base, family.experts)
    edit_json(file, eos_token="<s>", bos_token=None)
    text = faults(family)
    assert 'tokenizer_config.json eos_token: expected "</s>" as in the base; got "<s>"' in text
    assert 'tokenizer_config.json bos_token: expected "<s>" as in the base; got null' in text


def test_chat_templates_may_be_missing_but_not_differ(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    template = family.experts["one"] / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("content", "contents"))
    fault = faults(family)
    assert "one: chat template" in fault
    assert "m.content }}" in fault
    assert "m.contents }}" in fault
    template.unlink()
    ModelPool.open(family.base, family.experts)
    edit_json(family.experts["one"] / "tokenizer_config.json", chat_template=text)
    ModelPool.open(family.base, family.experts)


def test_a_garbled_tokenizer_is_one_fault_among_others(make_family: MakeFamily, edit_json: EditJson) -> None:
    family = make_family(experts=("one",))
    edit_json(family.experts["one"] / "config.json", rms_norm_eps=0.5)
    (family.experts["one"] / "tokenizer.json").write_text("[1]")
    text = faults(family)
    assert "tokenizer.json: expected a JSON object; got list" in text
    assert "rms_norm_eps" in text
