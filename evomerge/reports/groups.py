"""What stands on the front plot, and how it is marked: hollow marks are estimates, filled ones were confirmed.

Colours are close to Okabe and Ito's: told apart by colour-blind readers, on light and on dark ground.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from evomerge.reports.summary import Confirmation, Entry, Scores, Summary

__all__ = ["COLORS", "Color", "Group", "Shape", "groups"]

Color = Literal["searched", "front", "finalist", "anchor"]

COLORS: dict[Color, str] = {"searched": "#8c96a3", "front": "#d55e00", "finalist": "#4c8fcc", "anchor": "#009e73"}

Shape = Literal["circle", "diamond", "star"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Candidates that are drawn alike.

    Attributes:
        members: candidates with the scores that are drawn.
        confirmed: whether those scores were confirmed.
        size: diameter in pixels.
        intervals: draw them.
        labels: write the names beside the marks.
    """

    name: str
    members: tuple[tuple[Entry, Scores], ...]
    confirmed: bool
    shape: Shape
    color: Color
    size: int
    intervals: bool = True
    labels: bool = False


def groups(summary: Summary) -> list[Group]:
    """Everything on the front plot, back to front; empty groups are left out."""
    if summary.confirmation is None:
        found = [_searched(summary), *_estimated_groups(summary)]
    else:
        found = [_searched(summary), *_confirmed_groups(summary, summary.confirmation)]
    return [group for group in found if group.members]


def _estimates(entries: Iterable[Entry]) -> tuple[tuple[Entry, Scores], ...]:
    return tuple((entry, entry.estimated) for entry in entries if entry.estimated is not None)


def _confirmations(entries: Iterable[Entry]) -> tuple[tuple[Entry, Scores], ...]:
    return tuple((entry, entry.confirmed) for entry in entries if entry.confirmed is not None)


def _searched(summary: Summary) -> Group:
    drawn_again = set() if summary.confirmation is not None else {entry.id for entry in summary.finalists}
    merged = (e for e in summary.entries.values() if e.kind != "anchor" and e.id not in drawn_again)
    return Group(
        name="searched, estimated",
        members=_estimates(merged),
        confirmed=False,
        shape="circle",
        color="searched",
        size=6,
        intervals=False,
    )


def _estimated_groups(summary: Summary) -> Iterator[Group]:
    front, anchors = _estimates(summary.finalists), _estimates(summary.anchors)
    yield Group(name="front, estimated", members=front, confirmed=False, shape="circle", color="front", size=10)
    yield Group(
        name="anchors, estimated",
        members=anchors,
        confirmed=False,
        shape="diamond",
        color="anchor",
        size=11,
        labels=True,
    )


def _confirmed_groups(summary: Summary, confirmation: Confirmation) -> Iterator[Group]:
    anchors = _confirmations(summary.anchors)
    knee = _confirmations(e for e in summary.finalists if e.id == confirmation.knee)
    others = [e for e in summary.finalists if e.id != confirmation.knee]
    front = _confirmations(e for e in others if e.id in confirmation.front)
    behind = _confirmations(e for e in others if e.id not in confirmation.front)
    yield Group(name="finalists, confirmed", members=behind, confirmed=True, shape="circle", color="finalist", size=9)
    yield Group(name="front, confirmed", members=front, confirmed=True, shape="circle", color="front", size=11)
    yield Group(
        name="anchors, confirmed",
        members=anchors,
        confirmed=True,
        shape="diamond",
        color="anchor",
        size=12,
        labels=True,
    )
    yield Group(name="knee, confirmed", members=knee, confirmed=True, shape="star", color="front", size=17, labels=True)
