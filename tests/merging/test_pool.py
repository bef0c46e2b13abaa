from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.merging.content import scan
from evomerge.merging.pool import ModelPool

MakeFamily = Callable[..., Any]


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a single-file model; None removes one. Names with `__` for dots."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("qwen3", True), ("gpt2", True)])
def test_every_family_opens(make_family: MakeFamily, kind: str, tied: bool, dtype: str) -> None:
    family = make_family(kind=kind, tied=tied, dtype=dtype)
    pool = ModelPool.open(family.base, family.experts)
    assert (pool.base, pool.experts, pool.names) == ("base", ("one", "two"), ("base", "one", "two"))
    assert (pool.layers, pool.dtype) == (3, dtype)
    names = [spec.name for spec in pool.specs]
    assert names == sorted(names)
    assert ("lm_head.weight" in names) != tied
    for spec in pool.specs:
        for model in pool.names:
            assert tuple(pool.tensor(model, spec.name).shape) == spec.shape
    assert pool.folder("two") == family.experts["two"]


def test_needs_no_torch(make_family: MakeFamily) -> None:
    family = make_family()
    script = (
        "import sys; from pathlib import Path; from evomerge.merging.pool import ModelPool;"
        f"ModelPool.open(Path({str(family.base)!r}), {{'one': Path({str(family.experts['one'])!r})}});"
        "print(sorted({'torch', 'transformers', 'safetensors', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pickles(make_family: MakeFamily) -> None:
    family = make_family()
    pool = ModelPool.open(family.base, family.experts)
    copy = pickle.loads(pickle.dumps(pool))
    assert (copy.specs, copy.digest, copy.names) == (pool.specs, pool.digest, pool.names)
    assert torch.equal(copy.tensor("one", "lm_head.weight"), pool.tensor("one", "lm_head.weight"))


def test_the_digest_follows_content_and_not_place(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family()
    digest = ModelPool.open(family.base, family.experts).digest
    moved = {name: shutil.copytree(folder, tmp_path / "elsewhere" / name) for name, folder in family.experts.items()}
    assert ModelPool.open(family.base, moved).digest == digest
    assert ModelPool.open(family.base, {"one": moved["two"], "two": moved["one"]}).digest != digest
    file = moved["two"] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert ModelPool.open(family.base, moved).digest != digest


def test_an_expert_may_store_another_dtype(make_family: MakeFamily) -> None:
    base, wide = make_family(dtype="bfloat16").base, make_family(dtype="float32").experts["one"]
    pool = ModelPool.open(base, {"wide": wide})
    assert pool.dtype == "bfloat16"
    assert pool.tensor("wide", "lm_head.weight").dtype == torch.float32


def test_the_dtype_is_that_of_most_bytes(make_family: MakeFamily) -> None:
    base = make_family(dtype="bfloat16", experts=()).base
    edit_weights(base, model__norm__weight=torch.ones(16))
    assert ModelPool.open(base, {}).dtype == "bfloat16"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_that_are_not_finite_are_counted(make_family: MakeFamily, dtype: str, value: float) -> None:
    family = make_family(dtype=dtype, experts=("one",))
    broken = load_file(family.experts["one"] / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    broken[2, 3] = broken[0, 0] = value
    edit_weights(family.experts["one"], model__layers__1__mlp__up_proj__weight=broken)
    with pytest.raises(PoolError, match=r"one: tensor model\.layers\.1\.mlp\.up_proj\.weight: .* got 2 NaN"):
        ModelPool.open(family.base, family.experts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_finite_value_counts_as_broken(dtype: torch.dtype, tmp_path: Path) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, limits.min, limits.tiny, limits.smallest_normal / 2, 0.0, -0.0], dtype=dtype)
    save_file({"a": values}, tmp_path / "a.safetensors")
    assert scan(tmp_path / "a.safetensors").nonfinite == {}


def test_the_scan_remembers_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, file)
    first = scan(file)
    (entry,) = _entries()
    assert scan(file) == first
    remembered = json.loads(entry.read_text())
    entry.write_text(json.dumps({**remembered, "digest": "from the cache"}))
    assert scan(file).digest == "from the cache"
    save_file({"a": torch.full((1000,), math.nan)}, file)
    assert scan(file).nonfinite == {"a": 1000}


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"key": 1}', '{"key": null, "digest": 1, "nonfinite": []}'])
def test_a_corrupted_cache_is_ignored(tmp_path: Path, garbage: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(10)}, file)
    first = scan(file)
    (entry,) = _entries()
    entry.write_text(garbage)
    assert scan(file) == first
    assert json.loads(entry.read_text())["digest"] == first.digest


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(10)}, file)
    monkeypatch.setenv("EVOMERGE_CACHE", str(file))
    assert scan(file) == scan(file)


def _entries() -> list[Path]:
    return list(Path(os.environ["EVOMERGE_CACHE"]).glob("content/*.json"))


def test_all_faults_of_all_models_come_at_once(make_family: MakeFamily, edit_json: Callable[..., None]) -> None:
    family = make_family(experts=("one", "two", "three"))
    edit_json(family.experts["one"] / "config.json", rms_norm_eps=0.5)
    edit_weights(family.experts["two"], model__norm__weight=torch.full((16,), math.nan, dtype=torch.bfloat16))
    (family.experts["three"] / "model.safetensors").write_bytes(b"short")
    with pytest.raises(PoolError) as caught:
        ModelPool.open(family.base, {**family.experts, "base": family.base})
    text = str(caught.value)
    assert text.startswith("these models cannot be merged: 4 faults\n")
    for part in ("cannot be named 'base'", "one: config.json: rms_norm_eps", "two: tensor model.norm", "three: "):
        assert part in text


def test_a_stored_copy_of_a_tied_head_is_left_out(make_family: MakeFamily) -> None:
    family = make_family(tied=True, experts=("one",))
    for folder in (family.base, family.experts["one"]):
        embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        edit_weights(folder, lm_head__weight=embedding.clone())
    pool = ModelPool.open(family.base, family.experts)
    assert "lm_head.weight" not in {spec.name for spec in pool.specs}
    pool = ModelPool.open(make_family(tied=True).base, family.experts)
    assert "lm_head.weight" not in {spec.name for spec in pool.specs}


def test_constants_are_kept_apart(make_family: MakeFamily) -> None:
    family = make_family(kind="gpt2", tied=True, experts=("one", "two"))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    for folder in (family.base, family.experts["one"]):  # newer versions of transformers leave it out
        edit_weights(folder, transformer__h__0__attn__bias=mask)
    pool = ModelPool.open(family.base, family.experts)
    assert [spec.name for spec in pool.carried] == ["transformer.h.0.attn.bias"]
    assert not {spec.name for spec in pool.carried} & {spec.name for spec in pool.specs}
    edit_weights(family.experts["one"], transformer__h__0__attn__bias=~mask)
    with pytest.raises(PoolError, match=r"one: tensor transformer\.h\.0\.attn\.bias: expected the base's bool"):
        ModelPool.open(family.base, family.experts)


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    save_file({"something.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(PoolError, match=r"expected tensors in layers.*got \['something\.weight'\]"):
        ModelPool.open(tmp_path, {})
