"""`ModelPool`: the base and its experts, proven fit to be merged, read tensor by tensor through memory maps.

Knows nothing of recipes. A pool pickles as its headers and reopens its files on the other side.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

from evomerge.errors import PoolError
from evomerge.merging.checkpoint import Checkpoint, TensorInfo
from evomerge.merging.content import Content, scan
from evomerge.merging.homology import buffers_of, faults_between, faults_within, ties_head, weights_of
from evomerge.merging.layout import classify
from evomerge.merging.tokenizer import TOKENIZER_FILES
from evomerge.recipe import OutputDtype, Role

if TYPE_CHECKING:
    import torch

__all__ = ["BASE", "ModelPool", "TensorSpec"]

BASE = "base"
"""The pool name of the base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor of the architecture that a pool shares.

    Attributes:
        shape: row-major, the same in every model.
        dtype: torch's name of the dtype that the base stores; an expert may store another.
        role, layer: where it lives (see `layout.classify`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    layer: int | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPool:
    """A base model and experts that were fine-tuned from it.

    Attributes:
        checkpoints: the models by pool name, base first.
        specs: every weight, sorted by name. A tied output head is not among them: it is its embedding.
        buffers: constants that the base's files hold beside the weights (masks, position ids); never merged.
        layers: number of layers.
        dtype: of the base's weights; the one that takes most bytes, if they differ.
        digest: 32 hexadecimal digits over names, configurations, tokenizers and every byte of the weights.
    """

    checkpoints: Mapping[str, Checkpoint]
    specs: tuple[TensorSpec, ...]
    buffers: tuple[TensorSpec, ...]
    layers: int
    dtype: OutputDtype
    digest: str
    base: str = BASE

    @classmethod
    def open(cls, base: Path, experts: Mapping[str, Path]) -> ModelPool:
        """Open models and prove that they can be merged with each other.

        Reads headers, configurations and tokenizers; then every byte once, for the digest and for NaN weights (kept in
        a cache, so that the next opening is quick).

        Example:
            >>> pool = ModelPool.open(Path("llama"), {"math": Path("llama-math"), "code": Path("llama-code")})
            ... # doctest: +SKIP

        Args:
            base: folder of the base model.
            experts: folders of the experts, by pool name.

        Raises:
            PoolError: every fault of every model, each with the tensor or file and both values.
        """
        checkpoints, faults = _open_all(base, experts)
        if BASE in checkpoints:
            faults += _inhomogeneities(checkpoints)
        contents = _scan_all(checkpoints.values(), faults)
        faults += _nonfinite(checkpoints, contents)
        if faults:
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            raise PoolError("\n  ".join([f"these models cannot be merged: {count}", *faults]))
        return cls._of(checkpoints, contents)

    @classmethod
    def _of(cls, checkpoints: Mapping[str, Checkpoint], contents: Mapping[Path, Content]) -> ModelPool:
        base = checkpoints[BASE]
        weights = _specs(weights_of(base, tied=ties_head(checkpoints)).values())
        layers = [spec.layer for spec in weights if spec.layer is not None]
        if not layers:
            raise PoolError(
                f"{base.folder}: expected tensors in layers, like 'model.layers.0.mlp.up_proj.weight'; "
                f"got {[*base.tensors][:5]}; this architecture is not known"
            )
        return cls(
            checkpoints=checkpoints,
            specs=weights,
            buffers=_specs(buffers_of(base).values()),
            layers=1 + max(layers),
            dtype=_majority(weights_of(base, tied=False).values()),
            digest=_digest(checkpoints, contents),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Every pool name: the base, then the experts in the order they were given."""
        return tuple(self.checkpoints)

    @property
    def experts(self) -> tuple[str, ...]:
        """The pool names of the experts, in the order they were given."""
        return tuple(name for name in self.checkpoints if name != self.base)

    def tensor(self, model: str, name: str) -> torch.Tensor:
        """One tensor of one model, memory-mapped, in the dtype that this model stores; do not write to it.

        Args:
            model: a pool name.
            name: the name of a spec or a buffer.

        Raises:
            KeyError: no such model or tensor.
        """
        return self.checkpoints[model].tensor(name)

    def folder(self, model: str) -> Path:
        """Where a model lives.

        Raises:
            KeyError: no such model.
        """
        return self.checkpoints[model].folder


def _open_all(base: Path, experts: Mapping[str, Path]) -> tuple[dict[str, Checkpoint], list[str]]:
    checkpoints, faults = {}, []
    if BASE in experts:
        faults.append(f"an expert cannot be named {BASE!r}, the name of the base model; rename it")
    for name, folder in {**experts, BASE: base}.items():
        try:
            checkpoints[name] = Checkpoint.open(folder)
        except PoolError as error:
            faults.append(f"{name}: {error}")
    order = [name for name in (BASE, *experts) if name in checkpoints]
    return {name: checkpoints[name] for name in order}, faults


def _inhomogeneities(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    tied = ties_head(checkpoints)
    faults = [fault for name, model in checkpoints.items() for fault in faults_within(name, model, tied=tied)]
    for name, model in checkpoints.items():
        if name != BASE:
            faults += faults_between(checkpoints[BASE], name, model, tied=tied)
    return faults


def _scan_all(checkpoints: Iterable[Checkpoint], faults: list[str]) -> dict[Path, Content]:
    files = sorted({file for model in checkpoints for file in model.files})
    with ThreadPoolExecutor() as threads:
        running = {file: threads.submit(scan, file) for file in files}
    contents = {}
    for file, future in running.items():
        try:
            contents[file] = future.result()
        except PoolError as error:
            faults.append(str(error))
    return contents


def _nonfinite(checkpoints: Mapping[str, Checkpoint], contents: Mapping[Path, Content]) -> list[str]:
    return [
        f"{name}: tensor {tensor}: expected finite weights; got {count} NaN or infinite; train or download it again"
        for name, model in checkpoints.items()
        for file in model.files
        for tensor, count in (contents[file].nonfinite if file in contents else {}).items()
        if tensor not in buffers_of(model)
    ]


def _specs(tensors: Iterable[TensorInfo]) -> tuple[TensorSpec, ...]:
    keyed = ((tensor, classify(tensor.name)) for tensor in sorted(tensors, key=lambda tensor: tensor.name))
    return tuple(
        TensorSpec(name=tensor.name, shape=tensor.shape, dtype=tensor.dtype, role=key.role, layer=key.layer)
        for tensor, key in keyed
    )


def _majority(tensors: Iterable[TensorInfo]) -> OutputDtype:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.stop - tensor.start
    return cast("OutputDtype", sizes.most_common(1)[0][0])


def _digest(checkpoints: Mapping[str, Checkpoint], contents: Mapping[Path, Content]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name, model in checkpoints.items():
        small = [model.folder / file for file in ("config.json", *TOKENIZER_FILES)]
        texts = [file.read_bytes() for file in small if file.is_file()]
        parts = [name, *(contents[file].digest for file in model.files), *map(_hash, texts)]
        hasher.update("\x1f".join(parts).encode() + b"\x1e")
    return hasher.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
