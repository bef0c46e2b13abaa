"""A summary as plain data for JSON: what the page reads, and other tools may."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from evomerge.reports.course import Curve, History
from evomerge.reports.summary import Confirmation, Entry, Exchange, Gain, Measure, Scores, Summary
from evomerge.reports.words import means

__all__ = ["to_data"]

_RECIPES = 3_000_000
"""Characters of recipes that a page may hold, beside those of candidates that have a name or a place on the front."""

_DIGITS = 6


def to_data(summary: Summary) -> dict[str, Any]:
    """Plain data for JSON.

    A measure is `[mean, low, high, items]`, the mean of the objectives first. `coefficients` are means over the layers
    and modules, in the order of `axes`. Recipes are whole for candidates that have a name, anchors, finalists and the
    estimated front, then for the best others while they are not too large together.
    """
    means_of = {entry.id: means(entry.recipe) for entry in summary.entries.values() if entry.kind != "anchor"}
    axes = list(dict.fromkeys(name for each in means_of.values() for name in each))
    recipes = _recipes(summary)
    return {
        "name": summary.name,
        "folder": summary.folder,
        "state": summary.state,
        "created_at": summary.created_at,
        "seed": summary.seed,
        "level": summary.level,
        "objectives": [asdict(objective) for objective in summary.objectives],
        "picks": summary.picks,
        "estimated": {"front": summary.front, "knee": summary.knee, "best": dict(summary.best)},
        "confirmed": None if summary.confirmation is None else _confirmation(summary, summary.confirmation),
        "axes": axes,
        "candidates": [
            _entry(entry)
            | {"coefficients": [_short(m) for m in map(means_of.get(entry.id, {}).get, axes)]}
            | recipes.get(entry.id, {})
            for entry in summary.entries.values()
        ],
        "history": None if summary.history is None else _history(summary.history),
        "generations": [asdict(generation) for generation in summary.generations],
        "utilization": None if summary.utilization is None else asdict(summary.utilization),
        "tries": [asdict(attempt) for attempt in summary.tries],
        "warnings": summary.warnings,
        "failures": [asdict(failure) for failure in summary.failures],
        "cost": asdict(summary.cost),
        "versions": dict(summary.versions),
        "experiment": dict(summary.experiment),
    }


def _short(value: float | None) -> float | None:
    """Six digits: what is measured on items never has more."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _entry(entry: Entry) -> dict[str, Any]:
    names = ("id", "name", "kind", "generation", "description")
    scores = {"estimated": entry.estimated, "confirmed": entry.confirmed}
    return (
        {name: getattr(entry, name) for name in names}
        | {name: _scores(found) for name, found in scores.items() if found is not None}
        | {name: found for name in ("broken", "parents") if (found := getattr(entry, name))}
    )


def _scores(scores: Scores) -> list[list[float | None]]:
    return [_measure(measure) for measure in (scores.mean, *scores.each)]


def _measure(measure: Measure) -> list[float | None]:
    return [*map(_short, (measure.mean, measure.low, measure.high)), measure.items]


def _confirmation(summary: Summary, confirmation: Confirmation) -> dict[str, Any]:
    named = set(summary.picks.values())
    return {
        "front": confirmation.front,
        "probability": dict(confirmation.probability),
        "knee": confirmation.knee,
        "best": dict(confirmation.best),
        "gains": [_gain(gain) for gain in confirmation.gains],
        "exchanges": [_exchange(exchange, exchange.candidate in named) for exchange in confirmation.exchanges],
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return {"candidate": gain.candidate, "anchor": gain.anchor, "of": gain.of, "measure": _measure(gain.measure)}


def _exchange(exchange: Exchange, with_items: bool) -> dict[str, Any]:
    data = asdict(exchange)
    return data if with_items else data | {"gained": len(exchange.gained), "lost": len(exchange.lost)}


def _history(history: History) -> dict[str, Any]:
    random = history.random
    return {
        "reference": history.reference,
        "curve": _curve(history.curve),
        "random": None if random is None else _curve(random),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    spent = {name: [_short(value) for value in values] for name, values in curve.spent.items()}
    return {"hypervolume": [_short(value) for value in curve.hypervolume], "spent": spent}


def _recipes(summary: Summary) -> dict[int, dict[str, Any]]:
    needed = [*summary.picks.values(), *(entry.id for entry in (*summary.anchors, *summary.finalists)), *summary.front]
    must = dict.fromkeys(needed)
    room, found = _RECIPES, {}
    for entry in (*(summary.entries[i] for i in must), *_best_first(summary.entries.values(), must)):
        recipe = entry.recipe.to_data()
        transformed = {"variants": list(entry.recipe.variants)} if entry.recipe.variants != entry.recipe.sources else {}
        room -= len(json.dumps(recipe))
        if room < 0 and entry.id not in must:
            break
        found[entry.id] = {"digest": entry.recipe.digest, "recipe": recipe} | transformed
    return found


def _best_first(entries: Iterable[Entry], but: Iterable[int]) -> Iterator[Entry]:
    others = [entry for entry in entries if entry.id not in set(but) and entry.estimated is not None]
    yield from sorted(others, key=lambda entry: -entry.estimated.mean.mean if entry.estimated else 0.0)
