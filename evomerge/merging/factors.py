"""Numbers per row or column of a tensor, small enough to stand in a plan. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Factors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """Numbers that vary within a tensor: element i of the flattened tensor has number `i // run` modulo their count.

    Attributes:
        values: fp32, in the machine's byte order; bytes, because there may be one number per row of every matrix.
        run: elements in a row that share a number: the width of a matrix for numbers per row, 1 for numbers per column.
    """

    values: bytes
    run: int

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], run: int) -> Factors:
        """From numbers `[count]`."""
        return cls(values=values.astype(np.float32).tobytes(), run=run)

    def within(self, start: int, count: int) -> npt.NDArray[np.float32]:
        """The numbers of the elements `start .. start + count - 1`."""
        values = np.frombuffer(self.values, dtype=np.float32)
        first, last = start // self.run, (start + count - 1) // self.run
        wanted = np.resize(np.roll(values, -first), last + 1 - first)
        everywhere = wanted if self.run == 1 else np.repeat(wanted, self.run)
        return everywhere[start - first * self.run :][:count]
