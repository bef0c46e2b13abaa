"""What is known of a task's items: a multidimensional two-parameter bank, its file, and what it may be used for.

Knows neither how it was fitted (see `calibrate`) nor whose responses are read with it.

Legend: N items, D dimensions; `P(right) = sigma(a_i . theta - d_i)`, `theta ~ N(mu, Sigma)` over models.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.link import Link, link_mean, unit_variance

__all__ = ["ItemBank", "content_digest", "load_bank", "save_bank"]

_FORMAT = 2
_ARRAYS = ("slopes", "difficulties", "dispersion", "mean", "covariance")
_MISSING = 255
"""A missing right-or-wrong response in a file."""


def content_digest(task: str, prompts: Mapping[int, str]) -> str:
    """16 hexadecimal digits; equal digests mean equal items with equal prompts.

    Args:
        task: name of the task.
        prompts: for each item id, the prompt as a model sees it, or a hash of it.
    """
    text = json.dumps([task, sorted(prompts.items())], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemBank:
    """The items of one task under one metric, as calibration found them.

    Attributes:
        task: name of the task.
        metric: what was measured on each item.
        digest: `content_digest` of its items and prompts.
        items: item ids `[N]`, distinct.
        link: how scores follow from ability.
        slopes: discriminations `a` `[N, D]`.
        difficulties: `d` `[N]`.
        dispersion: `phi` `[N]`, above 0; 1 for right-or-wrong items.
        mean: `mu` `[D]`.
        covariance: `Sigma` `[D, D]`, positive definite.
        calibrators: models whose responses went in.
        responses: their scores `[M, N]`, NaN where one did not answer, for fitting again with others; or None.

    Raises:
        TaskError: shapes that do not fit together, values that are not finite, repeated items, no item.
    """

    task: str
    metric: str = "acc"
    digest: str
    items: tuple[int, ...]
    link: Link
    slopes: Floats
    difficulties: Floats
    dispersion: Floats
    mean: Floats
    covariance: Floats
    calibrators: int
    responses: Floats | None = None

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise TaskError(f"item bank of task {self.task!r}: {'; '.join(faults)}; fit the bank again")

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.slopes.shape[1])

    def linear(self, theta: Floats) -> Floats:
        """`eta` of every item, `[M, N]`, for abilities `[M, D]`."""
        return theta @ self.slopes.T - self.difficulties

    def columns(self, items: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Places of some items in the bank.

        Raises:
            TaskError: an item that the bank does not hold.
        """
        place = {item: column for column, item in enumerate(self.items)}
        unknown = [item for item in items if item not in place]
        if unknown:
            raise TaskError(
                f"item bank of task {self.task!r}: expected items it was fitted on; got {unknown[:5]}"
                f"{' and others' if len(unknown) > 5 else ''}; fit the bank again with them"
            )
        return np.array([place[item] for item in items], dtype=np.int64)

    def narrowed(self, items: Sequence[int]) -> Self:
        """The bank of some of its items, in this order.

        Raises:
            TaskError: an item that the bank does not hold.
        """
        at = self.columns(items)
        return replace(
            self,
            items=tuple(items),
            slopes=self.slopes[at],
            difficulties=self.difficulties[at],
            dispersion=self.dispersion[at],
            responses=None if self.responses is None else self.responses[:, at],
        )

    @property
    def information(self) -> Floats:
        """What one answer to each item tells of a random model's ability, `[N]`.

        `w_i a_i' Sigma a_i` at the population's mean: variance that ability explains over variance that it does not.
        """
        weight = unit_variance(self.link, link_mean(self.link, self.linear(self.mean[None])[0])) / self.dispersion
        return np.asarray(weight * np.einsum("nd,de,ne->n", self.slopes, self.covariance, self.slopes))

    def check(self, task: str, digest: str) -> None:
        """Refuse to score another task, or the same one asked in other words.

        Raises:
            TaskError: task or digest differ from the bank's.
        """
        if task != self.task:
            raise TaskError(f"expected an item bank of task {task!r}; got one of {self.task!r}; name that task's bank")
        if digest != self.digest:
            raise TaskError(
                f"item bank of task {task!r}: expected one fitted on the items and prompts at hand ({digest}); got one "
                f"fitted on others ({self.digest}); fit it again, or restore the prompts it was fitted on"
            )


def _faults(bank: ItemBank) -> list[str]:
    """What is wrong with a bank."""
    count, faults = len(bank.items), []
    if bank.slopes.ndim != 2 or 0 in bank.slopes.shape:
        return [f"expected slopes of shape (items, dimensions), at least 1 x 1; got {bank.slopes.shape}"]
    size = bank.slopes.shape[1]
    shapes = {"slopes": (count, size), "difficulties": (count,), "dispersion": (count,)}
    shapes |= {"mean": (size,), "covariance": (size, size)}
    for name, shape in shapes.items():
        array = getattr(bank, name)
        if array.shape != shape:
            faults.append(f"expected {name} of shape {shape}; got {array.shape}")
        elif not np.isfinite(array).all():
            faults.append(f"expected finite {name}; got {np.count_nonzero(~np.isfinite(array))} values that are not")
    if faults:
        return faults
    if len(set(bank.items)) < count:
        faults.append("expected distinct items; got repeated ones")
    if bank.link not in get_args(Link):
        faults.append(f"expected link {' or '.join(get_args(Link))}; got {bank.link!r}")
    if not (bank.dispersion > 0).all():
        faults.append("expected dispersions above 0")
    if bank.responses is not None and bank.responses.shape[1:] != (count,):
        faults.append(f"expected responses of shape (models, {count}); got {bank.responses.shape}")
    if not np.allclose(bank.covariance, bank.covariance.T) or np.linalg.eigvalsh(bank.covariance)[0] <= 0:
        faults.append("expected a covariance that is symmetric and positive definite")
    return faults


def save_bank(bank: ItemBank, path: Path) -> None:
    """Write a bank: one npz file of plain arrays and a JSON header.

    Raises:
        OSError: the disk refused.
    """
    header = {"format": _FORMAT, "task": bank.task, "metric": bank.metric, "digest": bank.digest, "link": bank.link}
    header |= {"calibrators": bank.calibrators, "items": list(bank.items)}
    arrays = {name: getattr(bank, name) for name in _ARRAYS}
    if bank.responses is not None:
        arrays["responses"] = _packed(bank.responses)
    with path.open("wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def _packed(responses: Floats) -> np.ndarray[Any, Any]:
    """Right-or-wrong answers in a byte each, graded ones in two; in four where two cannot hold them."""
    asked = ~np.isnan(responses)
    if np.isin(responses[asked], (0.0, 1.0)).all():
        return np.where(asked, responses, _MISSING).astype(np.uint8)
    large = bool((np.abs(responses[asked]) > np.finfo(np.float16).max).any())
    return responses.astype(np.float32 if large else np.float16)


def _unpacked(stored: np.ndarray[Any, Any]) -> Floats:
    """The inverse of `_packed`, up to rounding."""
    responses = stored.astype(np.float64)
    return np.where(stored == _MISSING, np.nan, responses) if stored.dtype == np.uint8 else responses


def load_bank(path: Path) -> ItemBank:
    """Read a bank and check everything in it; nothing is ever unpickled.

    Raises:
        TaskError: no such file, not an item bank, or one that is damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: np.array(file[name], dtype=np.float64) for name in _ARRAYS}
            responses = _unpacked(file["responses"]) if "responses" in file else None
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r}, expected {_FORMAT}")
        return ItemBank(
            task=str(header["task"]),
            metric=str(header["metric"]),
            digest=str(header["digest"]),
            items=tuple(int(item) for item in header["items"]),
            link=header["link"],
            calibrators=int(header["calibrators"]),
            responses=responses,
            **arrays,
        )
    except FileNotFoundError:
        raise TaskError(f"{path}: expected an item bank; there is no such file; fit one first") from None
    except IsADirectoryError:
        raise TaskError(f"{path}: expected an item bank; got a folder; name one .npz file in it") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path}: expected an item bank; got something else ({error}); fit one again") from error
