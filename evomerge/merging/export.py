"""Write merged weights as a Hugging Face folder that transformers loads as is.

Weights stream straight into files whose headers are known beforehand: one tensor is written while the next is merged,
and memory holds no third. All is written in a hidden folder beside the target and renamed at the very end: whatever
bears the target's name is complete. Knows nothing of how the weights came about.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from evomerge.errors import MergeError
from evomerge.merging.atomic import complete_or_absent
from evomerge.merging.checkpoint import INDEX_FILE, ITEM_BYTES, SINGLE_FILE
from evomerge.merging.header import Slot, header_of
from evomerge.merging.lora import is_adapter
from evomerge.merging.pool import ModelPool, TensorSpec
from evomerge.merging.routing import Form, form_of
from evomerge.merging.small_files import read_bytes
from evomerge.merging.tokenizer import TOKENIZER_FILES
from evomerge.recipe import Hop, OutputDtype

if TYPE_CHECKING:
    import torch

__all__ = ["export_checkpoint", "export_skeleton"]


def export_checkpoint(
    tensors: Iterable[tuple[str, torch.Tensor]],
    pool: ModelPool,
    out: Path,
    *,
    dtype: OutputDtype,
    path: Sequence[Hop] = (),
    extra_files: Mapping[str, str] = {},
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a merged model: weights, configuration, the chosen tokenizer and chat template, and files of the caller's.

    Args:
        tensors: every weight of the merged model (see `routing.form_of`), once each, in any order, on any device.
        pool: the models that were merged.
        out: the new folder; its parents are made as needed.
        dtype: of the weights as written.
        path: through the models' layers; empty for their own.
        extra_files: texts by file name, for example a model card.
        shard_bytes: most bytes of weights per file; a larger tensor gets a file of its own.

    Raises:
        StoreError: `out` exists.
        PoolError: a file of the models cannot be read.
        MergeError: a tensor is missing, unknown, given twice or of another shape; or no plain checkpoint of this
            architecture can hold the path.
        DiskError: the disk refused a write; nothing is left behind.
    """
    form = form_of(pool, path)
    slots = _layout(form, dtype, shard_bytes)
    small = _small_files(pool, form, dtype)
    carried = ((spec.name, pool.tensor(pool.base, spec.name)) for spec in form.carried)
    with complete_or_absent(out) as folder:
        _write_weights(folder, slots, chain(carried, tensors))
        if len({slot.file for slot in slots}) > 1:
            _write_text(folder / INDEX_FILE, _index(slots))
        for name, content in small.items():
            (folder / name).write_bytes(content)
        for name, text in extra_files.items():
            _write_text(folder / name, text)


def export_skeleton(pool: ModelPool, out: Path, *, dtype: OutputDtype, path: Sequence[Hop] = ()) -> None:
    """Write all of a merged model but its weights; see `export_checkpoint`."""
    small = _small_files(pool, form_of(pool, path), dtype)
    with complete_or_absent(out) as folder:
        for name, content in small.items():
            (folder / name).write_bytes(content)


def _small_files(pool: ModelPool, form: Form, dtype: OutputDtype) -> dict[str, bytes]:
    copies = {file.name: read_bytes(file) for file in _copied(pool) if file.is_file()}
    return {"config.json": _config(form.config, dtype).encode(), **copies}


def _copied(pool: ModelPool) -> list[Path]:
    """The chosen tokenizer, and the generation settings of its model; an adapter has none but the base's."""
    chosen = pool.folder(pool.tokenizer)
    model = pool.folder(pool.base) if is_adapter(chosen) else chosen
    return [*(pool.tokenizer_folder / name for name in TOKENIZER_FILES), model / "generation_config.json"]


def _layout(form: Form, dtype: OutputDtype, shard_bytes: int) -> tuple[Slot, ...]:
    """Every tensor's place; wider dtypes first, so that each tensor is aligned to its element."""
    wanted = [(spec, spec.dtype) for spec in form.carried] + [(spec, dtype) for spec in form.specs]
    wanted.sort(key=lambda pair: (-ITEM_BYTES[pair[1]], pair[0].name))
    shards: list[list[tuple[TensorSpec, str, int]]] = [[]]
    room = shard_bytes
    for spec, stored in wanted:
        size = _size(spec, stored)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append((spec, stored, shard_bytes - room))
        room -= size
    return tuple(
        Slot(
            name=spec.name,
            shape=spec.shape,
            dtype=stored,
            file=SINGLE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors",
            start=start,
            stop=start + _size(spec, stored),
        )
        for number, shard in enumerate(shards, 1)
        for spec, stored, start in shard
    )


def _size(spec: TensorSpec, dtype: str) -> int:
    return math.prod(spec.shape) * ITEM_BYTES[dtype]


def _write_weights(folder: Path, slots: Sequence[Slot], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    files: dict[str, list[Slot]] = {}
    for slot in slots:
        files.setdefault(slot.file, []).append(slot)
    pending = {slot.name: slot for slot in slots}
    behind: Future[None] | None = None
    with ExitStack() as stack, ThreadPoolExecutor(1) as writer:
        streams = {name: stack.enter_context((folder / name).open("wb")) for name in files}
        origins = {name: streams[name].write(header_of(held)) for name, held in files.items()}
        for name, tensor in tensors:
            if name not in pending:
                raise MergeError(f"tensor {name}: expected each of the pool's tensors once; got another")
            slot = pending.pop(name)
            if slot.shape != tuple(tensor.shape):
                raise MergeError(f"tensor {name}: expected shape {[*slot.shape]}; got {[*tensor.shape]}")
            if behind is not None:
                behind.result()
            behind = writer.submit(_put, streams[slot.file], origins[slot.file] + slot.start, tensor, slot.dtype)
        if behind is not None:
            behind.result()
    if pending:
        raise MergeError(f"expected every tensor of the pool; {len(pending)} never came: {sorted(pending)[:5]}")


def _put(stream: BinaryIO, start: int, tensor: torch.Tensor, dtype: str) -> None:
    """Write a tensor at its place, and let the disk begin with it."""
    content = _bytes(tensor, dtype)
    stream.seek(start)
    stream.write(content)
    stream.flush()
    if hasattr(os, "posix_fadvise"):  # not on macOS; or else all of the model waits for the last flush
        os.posix_fadvise(stream.fileno(), start, len(content), os.POSIX_FADV_DONTNEED)


def _bytes(tensor: torch.Tensor, dtype: str) -> memoryview:
    import torch

    stored = tensor.detach().to(device="cpu", dtype=getattr(torch, dtype)).contiguous()
    return stored.reshape(-1).view(torch.uint8).numpy().data


def _index(slots: Iterable[Slot]) -> str:
    held = {slot.name: slot for slot in slots}
    total = sum(slot.stop - slot.start for slot in held.values())
    weight_map = {name: held[name].file for name in sorted(held)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def _config(config: Mapping[str, Any], dtype: OutputDtype) -> str:
    # Versions of transformers call it either; all read the older name.
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return json.dumps({**config, **dict.fromkeys(keys, dtype)}, indent=2) + "\n"


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
