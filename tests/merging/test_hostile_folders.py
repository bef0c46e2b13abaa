"""Model folders that are broken, or made to break a reader: each is refused by name, and nothing else happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.config import shipped_folder
from evomerge.errors import PoolError
from evomerge.merging.kinship import kinship
from evomerge.merging.pool import ModelPool

MODELS = shipped_folder("experiments") / "quickstart" / "models"
Spoil = Callable[[Path], Any]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("base", "rev"):
        shutil.copytree(MODELS / name, tmp_path / name)
    return tmp_path / "base", tmp_path / "rev"


def put(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Spoil:
    """Other tensors."""
    return lambda folder: save_file(dict(change(load_file(folder / SINGLE))), folder / SINGLE)


def header(entries: Any, *, raw: bytes | None = None, body: bytes = b"0000") -> Spoil:
    """A weight file of this header."""
    text = json.dumps(entries).encode() if raw is None else raw
    return lambda folder: (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + body)


def text(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def setting(**changes: Any) -> Spoil:
    """Changes in the configuration."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def shards(
    change: Callable[[dict[str, Any]], Any] = lambda _: None, *, twice: bool = False, lost: bool = False
) -> Spoil:
    """Two files and an index, to which something is done."""

    def spoil(folder: Path) -> None:
        held = load_file(folder / SINGLE)
        names = sorted(held)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2] + names[: int(twice)]}
        for file, inside in parts.items():
            save_file({name: held[name] for name in inside}, folder / file)
        (folder / SINGLE).unlink()
        if lost:
            (folder / "b.safetensors").unlink()
        index = {name: file for file, inside in parts.items() for name in inside}
        change(index)
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))

    return spoil


def link(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replaced(make: Spoil) -> Spoil:
    """Something else in the folder's place."""

    def spoil(folder: Path) -> None:
        shutil.rmtree(folder)
        make(folder)

    return spoil


def adapter(config: str, **files: str) -> Spoil:
    """An adapter's folder in the model's place."""

    def spoil(folder: Path) -> None:
        emptied(folder)
        (folder / "adapter_config.json").write_text(config)
        for name, content in files.items():
            (folder / f"adapter_model.{name}").write_text(content)

    return spoil


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Another first tensor."""
    return put(lambda held: held | {min(held): change(held[min(held)])})


def filled(value: float) -> Spoil:
    return first(lambda tensor: torch.full_like(tensor, value))


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PLAIN = '{"peft_type": "LORA", "r": 4, "lora_alpha": 4}'

HOSTILE: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-9]), "truncated or garbled"),
    "truncated header": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:50]), "truncated or garbled"),
    "empty file": (text(SINGLE, b""), "truncated or garbled"),
    "no tensors": (put(lambda _: {}), "expected weights; got files without any tensor"),
    "header of 2^63 bytes": (text(SINGLE, (2**63).to_bytes(8, "little") + b"{}"), "truncated or garbled"),
    "header nested deeply": (header(None, raw=b"[" * 100_000), "truncated or garbled"),
    "header that is a list": (header([]), "truncated or garbled"),
    "header with an infinite shape": (header({"a": {**ONE, "shape": [1e400]}}), "truncated or garbled"),
    "header with a dtype that is a list": (header({"a": {**ONE, "dtype": []}}), "truncated or garbled"),
    "header with overlaps": (header({"a": ONE, "b": ONE}), "truncated or garbled"),
    "missing shard": (shards(lost=True), "b.safetensors: cannot be read (No such file or directory)"),
    "tensor in two shards": (shards(twice=True), "expected tensor lm_head.weight once; got it in a.safetensors and b"),
    "index of an absent file": (shards(lambda index: index.update(x="c.safetensors")), "c.safetensors: cannot"),
    "index of an absent tensor": (shards(lambda index: index.update(x="a.safetensors")), "tensor x in a.safetensors"),
    "index out of the folder": (shards(lambda index: index.update(x="../b.safetensors")), "got '../b.safetensors'"),
    "index of a folder": (shards(lambda index: index.update(x="..")), "got '..'"),
    "index with NUL": (shards(lambda index: index.update(x="a\0.safetensors")), "'weight_map'"),
    "index of a number": (shards(lambda index: index.update(x=3)), "got 3"),
    "index without a map": (text(INDEX, "{}"), "expected 'weight_map'"),
    "empty index": (text(INDEX, '{"weight_map": {}}'), "expected weights"),
    "NaN": (filled(float("nan")), "expected finite weights; got"),
    "infinity": (filled(float("-inf")), "expected finite weights; got"),
    "float8": (first(lambda x: x.to(torch.float8_e4m3fn)), "got float8_e4m3fn; quantised models cannot"),
    "another float8": (first(lambda x: x.to(torch.float8_e4m3fnuz)), "got F8_E4M3FNUZ; quantised models cannot"),
    "int8": (first(lambda x: x.to(torch.int8)), "got int8; quantised models cannot"),
    "float64": (first(lambda x: x.double()), "got float64; save it in one of these"),
    "GPTQ": (setting(quantization_config={"quant_method": "gptq", "bits": 4}), "expected plain weights; got quant"),
    "bitsandbytes": (setting(quantization_config={"load_in_4bit": True}), "expected plain weights; got quant"),
    "extra tensor": (put(lambda held: held | {"model.layers.0.x": torch.ones(3)}), "expected none; got shape [3]"),
    "extra tensor of size 0": (put(lambda held: held | {"model.layers.0.x": torch.ones(0)}), "expected none"),
    "missing tensor": (put(lambda held: {name: held[name] for name in sorted(held)[:-1]}), "expected shape [64]; got"),
    "pickled": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "pickled weights are never read"),
    "GGUF": (lambda f: (f / SINGLE).rename(f / "model.gguf"), "got ['model.gguf']; save the model again"),
    "looping link": (link(SINGLE, SINGLE), "cannot be read (Too many levels of symbolic links)"),
    "dangling link": (link(SINGLE, "nowhere"), "cannot be read (No such file or directory)"),
    "unreadable weights": (link(SINGLE, "/proc/self/mem"), "model.safetensors"),
    "configuration that is a list": (text("config.json", "[]"), "config.json: expected a JSON object; got list"),
    "configuration cut short": (text("config.json", "{"), "config.json: expected JSON"),
    "configuration nested deeply": (text("config.json", "[" * 100_000), "config.json: expected JSON"),
    "configuration that is no text": (text("config.json", b"\xff\xfe"), "expected text in UTF-8"),
    "looping configuration": (link("config.json", "config.json"), "config.json: cannot be read"),
    "text_config": (setting(text_config=[]), "config.json: text_config: expected a mapping; got []"),
    "rope_scaling": (setting(rope_scaling="x"), "config.json: rope_scaling: expected a mapping; got 'x'"),
    "rope_theta": (setting(rope_parameters={"rope_theta": "x"}), "rope_parameters.rope_theta: expected a number"),
    "architectures": (setting(architectures=[5]), "architectures: expected a list of names; got [5]"),
    "tokenizer that is a list": (text("tokenizer.json", "[]"), "tokenizer.json: expected a JSON object; got list"),
    "tokenizer without ids": (text("tokenizer.json", '{"model": {"vocab": {"a": "x"}}}'), "expected a tokenizer; got"),
    "tokenizer of empty tokens": (text("tokenizer.json", '{"model": {"vocab": [[]]}}'), "expected a tokenizer; got"),
    "added tokens without ids": (text("tokenizer.json", '{"model": {}, "added_tokens": [{}]}'), "got KeyError: 'id'"),
    "adapter of nothing": (adapter("{}"), "expected plain LoRA; got peft_type null"),
    "pickled adapter": (adapter(PLAIN, bin="x"), "pickled weights are never read"),
    "truncated adapter": (adapter(PLAIN, safetensors="x"), "truncated or garbled"),
    "empty folder": (emptied, "config.json: cannot be read"),
    "file": (replaced(lambda f: f.write_text("")), "expected a folder with a model; got a file"),
    "looping folder": (replaced(lambda f: f.symlink_to(f)), "expected a folder with a model; got nothing"),
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", [None, "rev"])
@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_expert_is_refused_by_name(
    folders: tuple[Path, Path], spoil: Spoil, message: str, tokenizer: str | None
) -> None:
    base, expert = folders
    spoil(expert)
    with pytest.raises(PoolError) as caught:
        ModelPool.open(base, {"rev": expert}, tokenizer=tokenizer)
    assert message in str(caught.value)
    assert "\n  rev: " in str(caught.value) or f"{expert}/tokenizer.json: " in str(caught.value)


def test_a_template_that_is_no_text_is_refused(folders: tuple[Path, Path]) -> None:
    (folders[1] / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(PoolError, match=r"rev: .*chat_template.jinja: expected text in UTF-8"):
        ModelPool.open(folders[0], {"rev": folders[1]})


@pytest.mark.parametrize(
    "spoil",
    [
        put(lambda held: held | {"model.layers.0.x": torch.ones(0, 5), "model.layers.0.y": torch.tensor(1.0)}),
        shards(),
        setting(text_config=None, rope_parameters=None, rope_theta=None),
        text("generation_config.json", "{"),
    ],
    ids=["tensors without elements or axes", "shards", "null", "generation settings"],
)
def test_what_is_odd_but_sound_is_taken(folders: tuple[Path, Path], spoil: Spoil) -> None:
    for folder in folders:
        spoil(folder)
    pool = ModelPool.open(folders[0], {"rev": folders[1]})
    assert kinship(pool).experts == ("rev",)
