from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Checkpoint, read_header

MakeFamily = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A minimal model folder with three tensors."""
    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.zeros(0, dtype=torch.bfloat16),
        "c": torch.ones(3).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("shard", [None, "8KB"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_reads_what_transformers_wrote(make_family: MakeFamily, dtype: str, shard: str | None) -> None:
    folder = make_family(dtype=dtype, shard=shard, experts=()).base
    checkpoint = Checkpoint.open(folder)
    assert (len(checkpoint.files) > 1) == (shard is not None)
    stored = {name: tensor for file in checkpoint.files for name, tensor in load_file(file).items()}
    assert list(checkpoint.tensors) == sorted(stored)
    for name, tensor in stored.items():
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape) == (dtype, tuple(tensor.shape))
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_tensors_share_one_memory_map(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensor("a").data_ptr() == checkpoint.tensor("a").data_ptr()
    checkpoint.tensor("a").fill_(7.0)
    assert torch.equal(Checkpoint.open(folder).tensor("a"), torch.arange(6.0).reshape(2, 3)), "the file must not change"


def test_pickles_as_headers_and_reopens(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    checkpoint.tensor("a")
    copy = pickle.loads(pickle.dumps(checkpoint))
    assert torch.equal(copy.tensor("a"), checkpoint.tensor("a"))
    assert copy.tensors == checkpoint.tensors


@given(cut=st.integers(min_value=1))
def test_any_truncation_is_named(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("cut") / "model.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: -(1 + cut % len(content))])
    with pytest.raises(PoolError, match=r"model\.safetensors: truncated or garbled; expected .*; got"):
        read_header(file)


@given(position=st.integers(min_value=0), value=st.integers(min_value=0, max_value=255))
def test_a_garbled_header_is_a_pool_error_or_readable(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("garbled") / "model.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, file)
    content = bytearray(file.read_bytes())
    content[position % (len(content) - 36)] = value
    file.write_bytes(content)
    try:
        tensors = read_header(file)
    except PoolError:
        return
    assert all(0 <= tensor.start <= tensor.stop <= len(content) for tensor in tensors)


@given(content=st.binary(max_size=64))
def test_garbage_is_a_pool_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("garbage") / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(PoolError, match="truncated or garbled"):
        read_header(file)


def _header(entries: dict[str, Any], size: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4),  # too few bytes for its shape
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),  # a gap
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),  # bytes that belong to none
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, 0),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4),
        ({"a": 3}, 4),
    ],
)
def test_a_header_that_lies_is_refused(entries: dict[str, Any], size: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(_header(entries, size))
    with pytest.raises(PoolError, match="truncated or garbled"):
        read_header(file)


def test_a_missing_shard_is_named(make_family: MakeFamily) -> None:
    folder = make_family(shard="8KB", experts=()).base
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(PoolError, match=f"{lost.name}: cannot be read"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, [], {"a": "../model.safetensors"}, {"a": 3}])
def test_an_index_without_a_usable_map_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(PoolError, match="expected 'weight_map', tensor names to safetensors files of this folder"):
        Checkpoint.open(folder)


def test_an_index_that_names_an_absent_tensor_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"z": "model.safetensors"}}))
    with pytest.raises(PoolError, match=r"expected tensor z in model\.safetensors; got it in no file"):
        Checkpoint.open(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PoolError, match=r"pytorch_model\.bin.*pickled weights are never read"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(PoolError, match=r"config\.json: expected (a )?JSON"):
        Checkpoint.open(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="expected a folder with a model; got nothing"):
        Checkpoint.open(tmp_path / "nowhere")
