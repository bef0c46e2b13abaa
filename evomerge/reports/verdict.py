"""The verdict: what was found and whether to believe it, in plain words. Knows nothing of where it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from evomerge.fitness import MEAN
from evomerge.reports.summary import Confirmation, Entry, Gain, Summary
from evomerge.reports.words import difference, mean_words, percent, span

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found, and whether to believe it.

    Attributes:
        candidate: the merged candidate that it recommends, if any.
        of: what that candidate gains in, an objective's name or `MEAN`.
        kind: `gain`: a candidate beats every parent in the mean of the objectives; `partial`: only in one objective;
            `none`: not at all; `unconfirmed`: nothing may be claimed yet; `empty`: nothing was scored.
    """

    kind: Literal["gain", "partial", "none", "unconfirmed", "empty"]
    headline: str
    detail: str
    candidate: int | None = None
    of: str = MEAN


def verdict(summary: Summary) -> Verdict:
    """The verdict in two sentences, and warnings. Claims only gains whose interval lies above 0 for every parent."""
    found = _found(summary)
    return replace(found, detail=" ".join([found.detail, *(f"Warning: {text}." for text in summary.warnings)]))


def _found(summary: Summary) -> Verdict:
    if summary.knee is None:
        return _empty(summary)
    if summary.confirmation is None:
        return _unconfirmed(summary)
    whole = _winners(summary, summary.confirmation, MEAN)
    if whole:
        return _gain(summary, summary.confirmation, whole)
    for objective in summary.objectives:
        if part := _winners(summary, summary.confirmation, objective.name):
            return _partial(summary, summary.confirmation, objective.name, part[0])
    return _none(summary, summary.confirmation)


def _gains(summary: Summary, confirmation: Confirmation, candidate: int, of: str) -> list[Gain]:
    """Over each parent, the closest parent first."""
    parents = {parent.id for parent in summary.parents}
    gains = [g for g in confirmation.gains if g.candidate == candidate and g.of == of and g.anchor in parents]
    return sorted(gains, key=lambda gain: gain.measure.low)


def _winners(summary: Summary, confirmation: Confirmation, of: str) -> list[int]:
    """Merged candidates that keep all constraints and beat every parent: the knee first, then by how surely.

    A lower cost is no finding, so nobody wins by it.
    """
    worst = {
        entry.id: gains[0].measure.low
        for entry in summary.finalists
        if not entry.broken
        and (gains := _gains(summary, confirmation, entry.id, of))
        and len(gains) == len(summary.parents)
        and gains[0].measure.items
    }
    winners = [candidate for candidate, low in worst.items() if low > 0]
    return sorted(winners, key=lambda candidate: (candidate != confirmation.knee, -worst[candidate], candidate))


def _empty(summary: Summary) -> Verdict:
    failed = f"; {len(summary.failures)} failed, see the reasons" if summary.failures else ""
    return Verdict(
        kind="empty",
        headline=f"Nothing was scored yet: 0 of {summary.cost.budget} evaluations{failed}.",
        detail=f"To go on: {summary.commands()['resume']}",
    )


def _unconfirmed(summary: Summary) -> Verdict:
    knee = summary.entries[summary.knee or 0]
    then = f"The run confirms its front on unseen items when it ends; to go on: {summary.commands()['resume']}"
    if summary.state == "finished":
        then = "Every candidate failed on the confirmation items; see the failures and their reasons."
    mean = "" if knee.estimated is None else f" with {span(knee.estimated.mean)} in {mean_words(summary)}"
    return Verdict(
        kind="unconfirmed",
        headline=(
            f"Unconfirmed: {summary.cost.evaluations} of {summary.cost.budget} evaluations are done; "
            f"the knee of the estimated front is {_called(knee)}{mean}."
        ),
        detail=f"Do not quote this: the best of many estimates is too high by selection. {then}",
    )


def _gain(summary: Summary, confirmation: Confirmation, winners: list[int]) -> Verdict:
    winner = summary.entries[winners[0]]
    closest = _gains(summary, confirmation, winner.id, MEAN)[0]
    role = "the knee" if winner.id == confirmation.knee else "not the knee"
    return Verdict(
        kind="gain",
        candidate=winner.id,
        headline=(
            f"Gain: {_called(winner)} ({role}) beats every parent in {mean_words(summary)}: "
            f"{difference(closest.measure)} over {summary.entries[closest.anchor].name}, the closest"
            f"{_as_good_for_free(summary, confirmation, winner.id)}."
        ),
        detail=f"{_trust(summary, closest)} {_against_averages(summary, confirmation, winner.id)}".strip(),
    )


def _partial(summary: Summary, confirmation: Confirmation, objective: str, candidate: int) -> Verdict:
    closest = _gains(summary, confirmation, candidate, objective)[0]
    return Verdict(
        kind="partial",
        candidate=candidate,
        of=objective,
        headline=(
            f"No candidate beats every parent in {mean_words(summary)}, but {_called(summary.entries[candidate])} "
            f"does in {objective}: {difference(closest.measure)} over {summary.entries[closest.anchor].name}."
        ),
        detail=_trust(summary, closest),
    )


def _none(summary: Summary, confirmation: Confirmation) -> Verdict:
    missing = [parent.name for parent in summary.parents if parent.confirmed is None]
    if missing:
        return Verdict(
            kind="none",
            headline=f"Cannot tell: {', '.join(missing)} failed on the confirmation items, so there is no comparison.",
            detail="See the failures and their reasons; a gain is claimed only over every parent.",
        )
    knee = summary.entries[confirmation.knee]
    keeps = "keeps all constraints and " if any(entry.broken for entry in summary.finalists) else ""
    broken = f", and breaks {knee.broken[0]}" if knee.broken else ""
    gains = _gains(summary, confirmation, knee.id, MEAN)
    if knee.kind == "anchor" or not gains:
        told = f"the balanced choice is {_called(knee)}"
    else:
        closest = f"{summary.entries[gains[0].anchor].name}: {difference(gains[0].measure)}"
        told = f"the knee {_called(knee)} against {closest} in {mean_words(summary)}"
    return Verdict(
        kind="none",
        headline=f"No gain: no candidate {keeps}beats every parent; {told}{broken}.",
        detail=(
            "What was there before is the safer choice. An interval that holds 0 may also mean too few items: "
            "a larger budget or more items for search and confirmation may tell."
        ),
    )


def _called(entry: Entry) -> str:
    return f"candidate {entry.name}" if entry.kind != "anchor" else f"the anchor {entry.name}"


def _trust(summary: Summary, gain: Gain) -> str:
    return (
        f"Measured on {gain.measure.items} items that the search never saw; "
        f"the intervals of all comparisons hold together at {percent(summary.level)}."
    )


def _as_good_for_free(summary: Summary, confirmation: Confirmation, candidate: int) -> str:
    """Says so where a merge that needs no search was not beaten."""
    parents = {parent.id for parent in summary.parents}
    unbeaten = [
        summary.entries[gain.anchor].name
        for gain in confirmation.gains
        if gain.candidate == candidate and gain.of == MEAN and gain.anchor not in parents and gain.measure.low <= 0
    ]
    return f", but not the {unbeaten[0]} average, which needs no search" if unbeaten else ""


def _against_averages(summary: Summary, confirmation: Confirmation, candidate: int) -> str:
    """The gain over merges that need no search: what the search itself was worth."""
    parents = {parent.id for parent in summary.parents}
    gains: Iterable[Gain] = (g for g in confirmation.gains if g.candidate == candidate and g.of == MEAN)
    told = [
        f"Over the {summary.entries[gain.anchor].name} average: {difference(gain.measure)}."
        for gain in gains
        if gain.anchor not in parents
    ]
    return " ".join(told)
