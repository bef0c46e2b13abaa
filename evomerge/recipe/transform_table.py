"""The table of delta transforms: what may be done to an expert's task vector once, before any merge.

A recipe spells a transform `name`, or `name:number` where it has a number, always written out: `star:40`. What a
transform makes of an expert is its *variant*, with a name of its own: `math~star:40`. Data and spelling only; the
arithmetic lives in `evomerge.merging`.

Legend: `tau_k = theta_k - theta_0` the task vector of expert k of K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "NONE",
    "TRANSFORMS",
    "VARIANT_MARK",
    "Need",
    "Number",
    "Transform",
    "needed_by",
    "transform_of",
    "variant_name",
]

NONE = "none"
"""The transform that leaves an expert as it is."""

VARIANT_MARK = "~"
"""Between an expert and its transform in the name of a variant; no expert's own name may hold it."""

Need = Literal["nothing", "importance", "grams", "fisher", "moments"]
"""What a merge must know beside the weights: nothing; how strongly the base uses each input of a linear map; of the
experts, the Gram matrices of those inputs, the diagonal Fisher information, or an optimizer's second moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """The number that a transform takes.

    Attributes:
        meaning: in plain words, after "the".
        minimum, maximum: legal values, inclusive.
    """

    meaning: str
    default: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """What one transform takes."""

    name: str
    number: Number | None = None
    needs: Need = "nothing"

    def spelled(self, text: str) -> str:
        """The one spelling of this transform with a number as the user wrote it; empty for the default.

        Raises:
            ValueError: a number where none is taken, no number, or one out of range.
        """
        if self.number is None:
            if text:
                raise ValueError(f"{self.name} takes no number; got {text!r}")
            return self.name
        taken = f"{self.name} takes the {self.number.meaning}, in [{self.number.minimum:g}, {self.number.maximum:g}]"
        try:
            value = float(f"{float(text or self.number.default):g}")  # as it is spelled, so that spelling is stable
        except ValueError:
            raise ValueError(f"{taken}; got {text!r}") from None
        if not math.isfinite(value) or not self.number.minimum <= value <= self.number.maximum:
            raise ValueError(f"{taken}; got {text}")
        return f"{self.name}:{value:g}"


def _share(meaning: str, default: float, minimum: float = 0.01) -> Number:
    return Number(meaning=meaning, default=default, minimum=minimum, maximum=1.0)


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        transform.name: transform
        for transform in (
            Transform(name=NONE),
            Transform(
                name="star",
                number=Number(meaning="percentage of the nuclear norm kept", default=40, minimum=1, maximum=100),
            ),
            Transform(name="tsv_m", number=_share("share of the full rank that all experts together keep", 1.0)),
            Transform(name="lore", number=_share("threshold as a share of the largest singular value", 0.1, 0.0)),
            Transform(name="pcb", number=_share("share of weights kept", 0.1)),
            Transform(name="regmean", number=_share("factor on what two inputs share", 0.1, 0.0), needs="grams"),
            Transform(name="wudi", number=_share("ridge as a share of the mean diagonal", 1e-3, 1e-8)),
            Transform(name="fisher", needs="fisher"),
            Transform(name="ota", number=_share("share of weights kept", 0.4), needs="moments"),
        )
    }
)


def transform_of(text: str) -> tuple[Transform, str]:
    """A transform by what the user wrote, and its one spelling.

    Example:
        >>> transform_of("star")[1], transform_of("star:25.0")[1]
        ('star:40', 'star:25')

    Raises:
        ValueError: no such transform, or a number that it does not take.
    """
    name, colon, number = text.partition(":")
    if name not in TRANSFORMS:
        raise ValueError(f"expected a transform, one of {', '.join(TRANSFORMS)}; got {text!r}")
    if colon and not number:
        raise ValueError(f"expected a number behind the colon; got {text!r}")
    return TRANSFORMS[name], TRANSFORMS[name].spelled(number)


def needed_by(transforms: Iterable[str], *, damps: bool) -> frozenset[Need]:
    """What must be known of the models, beside their weights.

    Args:
        transforms: in their one spelling.
        damps: whether `omega` is not 1 everywhere.
    """
    needs = {TRANSFORMS[transform.partition(":")[0]].needs for transform in transforms} - {"nothing"}
    return frozenset(needs | ({"importance"} if damps else set()))


def variant_name(expert: str, transform: str) -> str:
    """The pool name of an expert's variant; the expert's own where the transform is `none`."""
    return expert if transform == NONE else f"{expert}{VARIANT_MARK}{transform}"
