"""What models of a pool do on a calibration text: read here, measured by `evomerge.engines.calibration`.

Three kinds of statistics, each of one model: how strongly every input of every linear map is used (`importance`), the
second moments of those inputs (`grams`), and how much the loss depends on every weight (`fisher`). They lie in a folder
of the cache that is named by the pool's digest, which covers the text. Knows nothing of how they are measured or used.

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
from evomerge.merging.cache import folder_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from evomerge.merging.pool import ModelPool
    from evomerge.merging.transforms.facts import Curvature

__all__ = [
    "MOMENTS_FILE",
    "CalibratedFacts",
    "Calibration",
    "Statistic",
    "calibrated",
    "documents",
    "importance",
    "statistics_file",
]

Statistic = Literal["importance", "grams", "fisher"]

MOMENTS_FILE = "second_moments.safetensors"
"""Beside an expert's weights: Adam's `v` at the end of its training, by the names of its tensors; or, for a matrix, its
means over inputs as `NAME.row` `[out]` and over outputs as `NAME.column` `[in]`."""

_VERSION = 1
"""Raised whenever statistics would come out differently, or are laid out differently."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The texts that models are run over.

    Attributes:
        texts: files by pool name: `.txt`, or `.jsonl` with a key `text`; a model without a text is not run.
        tokens: how many of each text.
        digest: 32 hexadecimal digits over the contents of the texts and the number of tokens.
    """

    texts: Mapping[str, Path]
    tokens: int
    digest: str

    @classmethod
    def read(cls, texts: Mapping[str, Path], tokens: int) -> Calibration:
        """Take note of some texts.

        Raises:
            PoolError: a file that cannot be read, or that holds no text.
        """
        hasher = hashlib.blake2b(repr([_VERSION, tokens]).encode(), digest_size=16)
        for model, file in sorted(texts.items()):
            content = "\x1f".join(documents(file))
            hasher.update(repr((model, hashlib.blake2b(content.encode()).hexdigest())).encode())
        return cls(texts=texts, tokens=tokens, digest=hasher.hexdigest())


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
    digest = hashlib.blake2b(f"{pool.digest} {calibration.digest}".encode(), digest_size=16).hexdigest()
    return replace(pool, calibration=calibration, digest=digest)


def statistics_file(pool: ModelPool, model: str, statistic: Statistic) -> Path:
    """Where statistics of one model are kept.

    Raises:
        MergeError: the pool has no calibration, or none for this model.
    """
    if not _has_text(pool, model):
        raise MergeError(
            f"expected a calibration text that {model!r} can be run over; got none; "
            "give one as pool.calibration, for example {text: some.txt}"
        )
    return folder_of("calibration") / pool.digest / f"{model}.{statistic}.safetensors"


def _has_text(pool: ModelPool, model: str) -> bool:
    return pool.calibration is not None and model in pool.calibration.texts


def importance(pool: ModelPool, tensor: str) -> npt.NDArray[np.float64] | None:
    """How strongly the base uses the inputs of a linear map: `mean |x_j|` over tokens, `[in]`.

    None for other tensors, and for maps that saw no token.

    Raises:
        MergeError: nothing was measured.
    """
    content = _opened(statistics_file(pool, pool.base, "importance"))
    key = _inputs(content).get(tensor)
    return None if key is None else np.asarray(content.get_tensor(key).numpy(), dtype=np.float64)


@final
@dataclass(frozen=True, slots=True)
class CalibratedFacts:
    """What transforms may ask about the experts of a pool; see `evomerge.merging.transforms.facts.Facts`."""

    pool: ModelPool

    def gram(self, model: str, tensor: str) -> torch.Tensor | None:
        """`X^T X / tokens` of a linear map, fp32 `[in, in]`; None for other tensors, and maps that saw no token.

        Raises:
            MergeError: there is a text, and nothing was measured.
        """
        if not _has_text(self.pool, model):
            return None
        content = _opened(statistics_file(self.pool, model, "grams"))
        key = _inputs(content).get(tensor)
        return None if key is None else content.get_tensor(key)

    def fisher(self, model: str, tensor: str) -> Curvature | None:
        """Mean squared gradients of the loss of a sequence; of matrices, factored; None for constants.

        Raises:
            MergeError: there is a text, and nothing was measured.
        """
        if not _has_text(self.pool, model):
            return None
        return _curvature(_opened(statistics_file(self.pool, model, "fisher")), tensor)

    def second_moments(self, model: str, tensor: str) -> Curvature | None:
        """Adam's `v` of an expert that brings it; None where it does not.

        Raises:
            MergeError: the file cannot be read.
        """
        file = self.pool.folder(model) / MOMENTS_FILE
        return _curvature(_opened(file), tensor) if file.is_file() else None


def _curvature(content: Any, tensor: str) -> Curvature | None:
    """A tensor, or the means of its rows times those of its columns, over the mean of all (Shazeer and Stern 2018)."""
    names = set(content.keys())
    if tensor in names:
        return content.get_tensor(tensor).float()  # type: ignore[no-any-return]
    if f"{tensor}.row" not in names:
        return None
    row, column = (content.get_tensor(f"{tensor}.{side}").float() for side in ("row", "column"))
    mean = row.mean()
    return row, column / mean if mean > 0 else column


@lru_cache(maxsize=16)
def _opened(file: Path) -> Any:
    """A safetensors file, mapped.

    Raises:
        MergeError: it is not there, or garbled.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise MergeError(
            f"{file}: expected what was measured over a text; got {type(error).__name__}: {error}; "
            "remove the file if it is there, and start again"
        ) from error


def _inputs(content: Any) -> dict[str, str]:
    """By linear map, the name that its inputs are stored under; maps of the same inputs share it."""
    found: dict[str, str] = json.loads(content.metadata()["inputs"])
    return found
