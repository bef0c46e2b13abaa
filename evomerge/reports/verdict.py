"""The verdict: what was found and whether to believe it, in plain words. Knows nothing of where it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from evomerge.fitness import MEAN
from evomerge.reports.extremes import Extreme, extremes
from evomerge.reports.summary import Confirmation, Entry, Gain, Summary
from evomerge.reports.words import difference, mean_words, percent, span

__all__ = ["Verdict", "notable", "verdict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found, and whether to believe it.

    Attributes:
        kind: `better`: a candidate beats every anchor (the parents and their uniform average) in the mean of the
            objectives; `partial`: only in some objectives; `same`: none does, and one is not measurably worse than any
            of them; `worse`: each is worse than one of them; `none`: there is nobody, or nothing, to compare;
            `unconfirmed`: nothing may be claimed yet; `empty`: nothing was scored.
        candidate: the merged candidate that it speaks of, if any.
        of: in what that candidate is compared, an objective's name or `MEAN`.
        take: what to export by it: that candidate, or an average that is as good; None where a parent is.
    """

    kind: Literal["better", "partial", "same", "worse", "none", "unconfirmed", "empty"]
    headline: str
    detail: str
    candidate: int | None = None
    of: str = MEAN
    take: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Match:
    """A merged candidate against the anchors, in one objective or in the mean.

    Attributes:
        gains: over each anchor, the one that decides first: the closest if all are beaten; else, of those that are not
            (of those that win, if any do), the strongest, one that keeps all constraints before others.
    """

    entry: Entry
    outcome: Literal["better", "same", "worse"]
    gains: list[Gain]

    @property
    def closest(self) -> Gain:
        """Over the anchor that decides."""
        return self.gains[0]


def verdict(summary: Summary) -> Verdict:
    """The verdict in a few sentences, and warnings. Claims only differences whose interval leaves 0 out."""
    found = _found(summary)
    return replace(found, detail=" ".join([found.detail, *(f"Warning: {text}." for text in summary.warnings)]))


def notable(summary: Summary) -> Iterator[tuple[Entry, list[str]]]:
    """The candidates worth a look, each once and with its roles: the verdict's, those with a name, the anchors."""
    claimed = verdict(summary).candidate
    named = [] if claimed is None else [claimed]
    for candidate in dict.fromkeys([*named, *summary.picks.values(), *(anchor.id for anchor in summary.anchors)]):
        roles = [name for name, pick in summary.picks.items() if pick == candidate]
        yield summary.entries[candidate], roles or ["verdict"] * (candidate == claimed)


def _found(summary: Summary) -> Verdict:
    if summary.knee is None:
        return _empty(summary)
    if summary.confirmation is None:
        return _unconfirmed(summary)
    ends = extremes(summary.entries.values(), summary.objectives)
    if ends and all(o.name in ends for o in summary.objectives if o.task):  # a cost has no task
        return _alike({*ends.values()})
    matches = _matches(summary, summary.confirmation, MEAN)
    if not matches:
        return _nobody(summary, summary.confirmation)
    if matches[0].outcome == "better":
        return _better(summary, matches[0])
    each = {o.name: _matches(summary, summary.confirmation, o.name) for o in summary.objectives}
    wins = {name: found[0] for name, found in each.items() if found and found[0].outcome == "better"}
    return _partial(summary, wins, matches[0]) if wins else _not_better(summary, matches[0])


def _matches(summary: Summary, confirmation: Confirmation, of: str) -> list[_Match]:
    """Merged candidates that keep all constraints and were compared with every anchor: the best outcome first.

    A lower cost is no finding, so nobody is compared in one.
    """
    found = []
    for entry in summary.finalists:
        gains = [gain for gain in confirmation.gains if gain.candidate == entry.id and gain.of == of]
        if not entry.broken and len(gains) == len(summary.anchors) and all(gain.measure.items for gain in gains):
            found.append(_match(summary, entry, gains))
    order = ("better", "same", "worse")
    found.sort(key=lambda match: (match.entry.id != confirmation.knee, -match.closest.measure.low, match.entry.id))
    return sorted(found, key=lambda match: order.index(match.outcome))


def _match(summary: Summary, entry: Entry, gains: list[Gain]) -> _Match:
    gains = sorted(gains, key=lambda gain: gain.measure.low)
    if gains[0].measure.low > 0:
        return _Match(entry=entry, outcome="better", gains=gains)
    losses = [gain for gain in gains if gain.measure.high < 0]
    undecided = losses or [gain for gain in gains if gain.measure.low <= 0]
    # All answered the same items, so the anchor with the least gain over it is the one that scores most.
    strongest = min(undecided, key=lambda gain: (bool(summary.entries[gain.anchor].broken), gain.measure.mean))
    return _Match(
        entry=entry,
        outcome="worse" if losses else "same",
        gains=[strongest, *(gain for gain in gains if gain is not strongest)],
    )


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


def _alike(ends: set[Extreme]) -> Verdict:
    """All models answer nothing, or everything; what may be the reason, the warnings say."""
    told = {"floor": "no model answers any item", "ceiling": "every model answers every item"}
    return Verdict(
        kind="none",
        headline=f"Nothing to compare: {' or '.join(told[end] for end in sorted(ends, reverse=True))}.",
        detail="Neither a larger budget nor another search space changes that.",
    )


def _nobody(summary: Summary, confirmation: Confirmation) -> Verdict:
    """No merged candidate is there that could be compared with every anchor."""
    if missing := [anchor.name for anchor in summary.anchors if anchor.confirmed is None]:
        return Verdict(
            kind="none",
            headline=f"Cannot tell: {', '.join(missing)} failed on the confirmation items, so there is no comparison.",
            detail="See the failures and their reasons; a gain is claimed only over every anchor.",
        )
    knee = summary.entries[confirmation.knee]
    broken = f", which breaks {knee.broken[0]}" if knee.broken else ""
    why = "keeps all constraints" if any(entry.broken for entry in summary.finalists) else "was confirmed"
    return Verdict(
        kind="none",
        headline=f"Nothing to compare: no merged candidate {why}; the balanced choice is {_called(knee)}{broken}.",
        detail="What was there before is the safer choice; see what failed, and which constraints were broken.",
    )


def _better(summary: Summary, match: _Match) -> Verdict:
    return Verdict(
        kind="better",
        candidate=match.entry.id,
        take=match.entry.id,
        headline=(
            f"Better: {_with_role(summary, match)} beats every parent and the uniform average in "
            f"{mean_words(summary)}: {_over_closest(summary, match.closest)}."
        ),
        detail=_trust(summary, match),
    )


def _partial(summary: Summary, wins: Mapping[str, _Match], on_the_whole: _Match) -> Verdict:
    objective, match = next(iter(wins.items()))
    place = "there" if len(wins) == 1 else f"in {objective}"
    whole, anchor = on_the_whole.closest, summary.entries[on_the_whole.closest.anchor]
    told = "no measurable difference" if on_the_whole.outcome == "same" else "worse"
    return Verdict(
        kind="partial",
        candidate=match.entry.id,
        take=match.entry.id,
        of=objective,
        headline=(
            f"Better in {', '.join(wins)} only: {_with_role(summary, match)} beats every parent and the uniform "
            f"average {place}: {_over_closest(summary, match.closest)}."
        ),
        detail=(
            f"{_trust(summary, match)} In {mean_words(summary)}, of {_called(on_the_whole.entry)} against "
            f"{_anchor(summary, anchor)}: {told}, {difference(whole.measure)}."
        ),
    )


def _not_better(summary: Summary, match: _Match) -> Verdict:
    """The same as, or worse than, the anchor that is hardest to beat."""
    anchor = summary.entries[match.closest.anchor]
    who, against = _with_role(summary, match), _anchor(summary, anchor)
    measured = f"in {mean_words(summary)}: {difference(match.closest.measure)}"
    same = match.outcome == "same"
    headline = f"No measurable difference between {who} and {against}, {measured}."
    return Verdict(
        kind="same" if same else "worse",
        candidate=match.entry.id,
        take=_safest(summary, match, anchor),
        headline=headline if same else f"Worse: {who} scores less than {against}, {measured}.",
        detail=" ".join([_trust(summary, match), *_against_parents(summary, match), _advice(anchor, same=same)]),
    )


def _safest(summary: Summary, match: _Match, anchor: Entry) -> int | None:
    if anchor.broken:
        return match.entry.id
    return None if anchor in summary.parents else anchor.id


def _called(entry: Entry) -> str:
    return f"candidate {entry.name}" if entry.kind != "anchor" else f"the anchor {entry.name}"


def _with_role(summary: Summary, match: _Match) -> str:
    role = "the knee" if match.entry.id == summary.picks["knee"] else "not the knee"
    return f"{_called(match.entry)} ({role})"


def _anchor(summary: Summary, anchor: Entry) -> str:
    name = anchor.name if anchor in summary.parents else f"the {anchor.name} average, which needs no search"
    return f"{name} (which breaks {anchor.broken[0]})" if anchor.broken else name


def _over_closest(summary: Summary, gain: Gain) -> str:
    return f"{difference(gain.measure)} over {summary.entries[gain.anchor].name}, the closest"


def _trust(summary: Summary, match: _Match) -> str:
    return (
        f"Measured on {match.closest.measure.items} items that the search never saw; "
        f"the intervals of all comparisons hold together at {percent(summary.level)}."
    )


def _against_parents(summary: Summary, match: _Match) -> Iterator[str]:
    """What is left of a gain where only an average was not beaten."""
    parents = {parent.id for parent in summary.parents}
    over = min((g for g in match.gains if g.anchor in parents), key=lambda gain: gain.measure.low)
    if over.measure.low > 0:
        yield f"It beats every parent: {_over_closest(summary, over)}."


def _advice(anchor: Entry, *, same: bool) -> str:
    safer = "" if anchor.broken else f"The safer choice is {anchor.name}, unless another trade-off suits you better. "
    if same:
        return (
            f"{safer}The difference may also be too small for so few items: more of them, or a larger budget, may tell."
        )
    return f"{safer}A larger budget or another search space may do better."
