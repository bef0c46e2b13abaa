"""What models of a pool do on a calibration text: read here, measured by `evomerge.engines.calibration`.

Three kinds of statistics, each of one model: how strongly every input of every linear map is used (`importance`), the
second moments of those inputs (`grams`), and how much the loss depends on every weight (`fisher`). Each statistic of a
model has a folder in the cache, named by the content of the model and of its text: other pools find it too. Knows
nothing of how they are measured or used.

Legend: X `[tokens, in]` the inputs of a linear map `[out, in]`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from evomerge.errors import MergeError, PoolError
from evomerge.merging.cache import entry_of, touch
from evomerge.merging.layout import stores_inputs_first

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from evomerge.merging.pool import ModelPool
    from evomerge.merging.transforms.facts import Curvature

__all__ = [
    "CALIBRATION",
    "MOMENTS_FILE",
    "CalibratedFacts",
    "Calibration",
    "Statistic",
    "calibrated",
    "documents",
    "importance",
    "statistics_bytes",
    "statistics_folder",
]

Statistic = Literal["importance", "grams", "fisher"]

CALIBRATION = "calibration"
"""The folder of the cache."""

MOMENTS_FILE = "second_moments.safetensors"
"""Beside an expert's weights: Adam's `v` at the end of its training, by the names of its tensors; or, for a matrix, its
means over inputs as `NAME.row` `[out]` and over outputs as `NAME.column` `[in]`."""

_VERSION = 2
"""Raised whenever statistics would come out differently, or are laid out differently."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The texts that models are run over.

    Attributes:
        texts: files by pool name: `.txt`, or `.jsonl` with a key `text`; a model without a text is not run.
        tokens: how many of each text.
        contents: by pool name, 32 hexadecimal digits over the content of its text.
    """

    texts: Mapping[str, Path]
    tokens: int
    contents: Mapping[str, str]

    @classmethod
    def read(cls, texts: Mapping[str, Path], tokens: int) -> Calibration:
        """Take note of some texts.

        Raises:
            PoolError: a file that cannot be read, or that holds no text.
        """
        read = {file: _digest(tuple(documents(file))) for file in set(texts.values())}
        return cls(texts=texts, tokens=tokens, contents={model: read[file] for model, file in texts.items()})

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over the contents of the texts and the number of tokens."""
        return _digest((_VERSION, self.tokens, sorted(self.contents.items())))


def _digest(content: object) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


def documents(file: Path) -> Iterator[str]:
    """The texts in a file: one if it is `.txt`, one per line if it is `.jsonl`.

    Raises:
        PoolError: it cannot be read, or holds no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
        lines = [content] if file.suffix != ".jsonl" else [_text(line) for line in content.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PoolError(
            f"{file}: expected a calibration text: a .txt file, or a .jsonl file with a key 'text' in every line; "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not any(line.strip() for line in lines):
        raise PoolError(f"{file}: expected a calibration text; got none in this file; choose another")
    yield from lines


def _text(line: str) -> str:
    text = json.loads(line)["text"]
    if not isinstance(text, str):
        raise TypeError(f"a 'text' that is no text: {text!r:.60}")
    return text


def calibrated(pool: ModelPool, calibration: Calibration) -> ModelPool:
    """The pool with a calibration, which its digest then covers."""
    return replace(pool, calibration=calibration, digest=_digest((pool.digest, calibration.digest)))


def statistics_folder(pool: ModelPool, model: str, statistic: Statistic) -> Path:
    """Where statistics of one model are kept.

    Raises:
        MergeError: the pool has no calibration, or none for this model.
    """
    calibration = pool.calibration
    if calibration is None or model not in calibration.texts:
        raise MergeError(
            f"expected a calibration text that {model!r} can be run over; got none; "
            "give one as pool.calibration, for example {text: some.txt}, or with --calibration"
        )
    key = [_VERSION, statistic, pool.contents[model], calibration.contents[model], calibration.tokens]
    return entry_of(CALIBRATION, key, "")


def statistics_bytes(pool: ModelPool) -> int:
    """The most that the Gram matrices of all experts take in the cache; other statistics are small."""
    kind = str(pool.config.get("model_type"))
    maps = [spec for spec in pool.specs if len(spec.shape) == 2 and spec.layer is not None]
    inputs = (spec.shape[0 if stores_inputs_first(spec.name, 2, kind) else 1] for spec in maps)
    return len(pool.experts) * sum(4 * n * n for n in inputs)


def _has_text(pool: ModelPool, model: str) -> bool:
    return pool.calibration is not None and model in pool.calibration.texts


def importance(pool: ModelPool, tensor: str) -> npt.NDArray[np.float64] | None:
    """How strongly the base uses the inputs of a linear map: the sum of `|x_j|` over all tokens of the text, `[in]`.

    Divided by the number of tokens, so that it is their mean where every token passes. None for other tensors.

    Raises:
        MergeError: nothing was measured.
    """
    found = _opened(statistics_folder(pool, pool.base, "importance")).of_inputs(tensor)
    return None if found is None else np.asarray(found.numpy(), dtype=np.float64)


@final
@dataclass(frozen=True, slots=True)
class CalibratedFacts:
    """What transforms may ask about the experts of a pool; see `evomerge.merging.transforms.facts.Facts`."""

    pool: ModelPool

    def gram(self, model: str, tensor: str) -> torch.Tensor | None:
        """`X^T X / tokens` of a linear map, fp32 `[in, in]`: zero where no token of the text passed. None for others.

        Raises:
            MergeError: there is a text, and nothing was measured.
        """
        if not _has_text(self.pool, model):
            return None
        return _opened(statistics_folder(self.pool, model, "grams")).of_inputs(tensor)

    def fisher(self, model: str, tensor: str) -> Curvature | None:
        """Mean squared gradients of the loss of a sequence; of matrices, factored; None for constants.

        Raises:
            MergeError: there is a text, and nothing was measured.
        """
        if not _has_text(self.pool, model):
            return None
        return _opened(statistics_folder(self.pool, model, "fisher")).curvature(tensor)

    def second_moments(self, model: str, tensor: str) -> Curvature | None:
        """Adam's `v` of an expert that brings it; None where it does not.

        Raises:
            MergeError: the file cannot be read.
        """
        file = self.pool.folder(model) / MOMENTS_FILE
        return _opened(file).curvature(tensor) if file.is_file() else None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """Tensors of one or several safetensors files, mapped.

    Attributes:
        files: by name of a tensor, the file that holds it.
        inputs: by linear map, the name that its inputs are stored under; maps of the same inputs share it.
    """

    files: Mapping[str, Any]
    inputs: Mapping[str, str]

    def of_inputs(self, tensor: str) -> torch.Tensor | None:
        key = self.inputs.get(tensor)
        return None if key is None else self.files[key].get_tensor(key)

    def curvature(self, tensor: str) -> Curvature | None:
        """A tensor, or the means of rows times those of columns, over the mean of all (Shazeer and Stern 2018)."""
        if tensor in self.files:
            return self.files[tensor].get_tensor(tensor).float()  # type: ignore[no-any-return]
        if f"{tensor}.row" not in self.files:
            return None
        names = (f"{tensor}.{side}" for side in ("row", "column"))
        row, column = (self.files[name].get_tensor(name).float() for name in names)
        mean = row.mean(-1, keepdim=True)
        return row, column / mean.where(mean > 0, 1.0)


@lru_cache(maxsize=64)
def _opened(path: Path) -> _Kept:
    """A safetensors file, or a folder of them.

    Raises:
        MergeError: it is not there, or garbled.
    """
    from safetensors import SafetensorError, safe_open

    try:
        files: list[Any] = [safe_open(file, "pt") for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    except (OSError, SafetensorError) as error:
        raise MergeError(
            f"{path}: expected what was measured over a text; got {type(error).__name__}: {error}; "
            "remove it if it is there, and start again"
        ) from error
    if path.is_dir():
        touch(path)
    inputs = (json.loads((file.metadata() or {}).get("inputs", "{}")) for file in files)
    return _Kept(
        files={name: file for file in files for name in file.keys()},  # noqa: SIM118 (no mapping)
        inputs={name: key for found in inputs for name, key in found.items()},
    )
