from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from evomerge.errors import DiskError, MergeError, StoreError
from evomerge.merging.export import export_checkpoint
from evomerge.merging.pool import ModelPool

MakeFamily = Callable[..., Any]


@pytest.fixture
def pool(make_family: MakeFamily) -> ModelPool:
    family = make_family(kind="llama", dtype="float32")
    return ModelPool.open(family.base, family.experts)


def weights(pool: ModelPool, model: str = "one") -> list[tuple[str, torch.Tensor]]:
    return [(spec.name, pool.tensor(model, spec.name)) for spec in pool.specs]


def load(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 4_000])
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True), ("gpt2", True)])
def test_transformers_loads_it_as_is(
    make_family: MakeFamily, tmp_path: Path, kind: str, tied: bool, shard_bytes: int
) -> None:
    family = make_family(kind=kind, tied=tied, dtype="bfloat16")
    pool = ModelPool.open(family.base, family.experts)
    out = tmp_path / "made" / "merged"
    export_checkpoint(weights(pool), pool, out, dtype="bfloat16", shard_bytes=shard_bytes)
    assert (len(list(out.glob("*.safetensors"))) > 1) == (shard_bytes == 4_000)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(load(out)(ids).logits, load(family.experts["one"])(ids).logits)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (out, family.base)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template is not None
    assert ModelPool.open(family.base, {"merged": out}).names == ("base", "merged")


def test_weights_are_rounded_once_to_the_dtype_and_the_configuration_says_so(pool: ModelPool, tmp_path: Path) -> None:
    export_checkpoint(reversed(weights(pool)), pool, tmp_path / "out", dtype="float16")
    merged = ModelPool.open(tmp_path / "out", {})
    assert merged.dtype == "float16"
    for name, tensor in weights(pool):
        assert torch.equal(merged.tensor("base", name), tensor.half())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_non_contiguous_and_scalar_tensors_are_written_in_order(pool: ModelPool, tmp_path: Path) -> None:
    strided = [(name, tensor.t().contiguous().t() if tensor.ndim == 2 else tensor) for name, tensor in weights(pool)]
    export_checkpoint(strided, pool, tmp_path / "out", dtype="float32")
    merged = ModelPool.open(tmp_path / "out", {})
    assert all(torch.equal(merged.tensor("base", name), tensor) for name, tensor in weights(pool))


def test_the_bases_constants_and_the_callers_files_come_along(make_family: MakeFamily, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_family(kind="gpt2", tied=True, experts=()).base
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    held = {**load_file(base / "model.safetensors"), "transformer.h.0.attn.bias": mask}
    save_file(held, base / "model.safetensors")
    pool = ModelPool.open(base, {})
    export_checkpoint(
        weights(pool, "base"), pool, tmp_path / "out", dtype="bfloat16", extra_files={"README.md": "# merged\n"}
    )
    assert torch.equal(ModelPool.open(tmp_path / "out", {}).tensor("base", "transformer.h.0.attn.bias"), mask)
    assert (tmp_path / "out" / "README.md").read_text() == "# merged\n"


def test_the_index_names_every_tensor_and_all_bytes(pool: ModelPool, tmp_path: Path) -> None:
    export_checkpoint(weights(pool), pool, tmp_path / "out", dtype="float32", shard_bytes=4_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == [spec.name for spec in pool.specs]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in weights(pool))
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="pt") as shard:
            assert name in shard.keys()  # noqa: SIM118 - not a mapping


def test_an_existing_target_is_refused_untouched(pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="expected a folder that does not exist yet"):
        export_checkpoint(weights(pool), pool, tmp_path / "out", dtype="float32")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held[1:], "1 never came"),
        (lambda held: [*held, held[0]], "expected each of the pool's tensors once"),
        (lambda held: [*held, ("nonsense", torch.ones(1))], "tensor nonsense: expected each of the pool's tensors"),
        (lambda held: [(held[0][0], torch.ones(3)), *held[1:]], r"expected shape \[48, 16\]; got \[3\]"),
    ],
)
def test_weights_that_do_not_fit_the_pool_leave_nothing(
    pool: ModelPool, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(MergeError, match=message):
        export_checkpoint(change(weights(pool)), pool, tmp_path / "place" / "out", dtype="float32")
    assert list((tmp_path / "place").iterdir()) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """Every file beyond 8 KB is refused, as on a full disk: also the one that the test runner may be writing to."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with full_disk(), pytest.raises(DiskError, match="out: expected to write a model; got File too large"):
        export_checkpoint(weights(pool), pool, tmp_path / "place" / "out", dtype="float32")
    assert list((tmp_path / "place").iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_disk_error(pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="check free space and permissions"):
        export_checkpoint(weights(pool), pool, tmp_path / "file" / "out", dtype="float32")


def test_an_interruption_leaves_nothing(pool: ModelPool, tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield from weights(pool)[:5]
        raise KeyboardInterrupt

    (tmp_path / "place").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(interrupted(), pool, tmp_path / "place" / "out", dtype="float32")
    assert list((tmp_path / "place").iterdir()) == []


def test_nothing_bears_the_targets_name_before_the_end(pool: ModelPool, tmp_path: Path) -> None:
    seen = []

    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        for pair in weights(pool):
            seen.append((tmp_path / "out").exists())
            yield pair

    export_checkpoint(watched(), pool, tmp_path / "out", dtype="float32")
    assert not any(seen)
    assert (tmp_path / "out").exists()


ABANDON = """
import os, sys
from pathlib import Path
from evomerge.merging.atomic import complete_or_absent
with complete_or_absent(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_export_left_goes_with_the_next(pool: ModelPool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    foreign = place / ".other.01234567.partial"
    foreign.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", ABANDON, str(place / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        abandoned = Path(writer.stdout.readline().strip())
        export_checkpoint(weights(pool), pool, place / "out", dtype="float32")
        assert abandoned.is_dir(), "its writer is alive"
        (place / "out").rename(place / "first")
        writer.kill()
    assert abandoned.is_dir()
    export_checkpoint(weights(pool), pool, place / "out", dtype="float32")
    assert sorted(place.iterdir()) == sorted([foreign, place / "first", place / "out"])
