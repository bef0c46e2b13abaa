"""The card of an exported model: Markdown with the front matter that model hubs read.

Only numbers from unseen items stand as results; everything else is marked as an estimate. Writes nothing and knows no
model files: names, licences and the recipe's text come from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from evomerge.fitness import MEAN
from evomerge.reports.summary import Entry, Measure, Summary
from evomerge.reports.words import difference, membership, number, objective_label, one_line, percent, span

__all__ = ["model_card"]


def model_card(
    summary: Summary, candidate: int, *, base_models: Mapping[str, str], licences: Mapping[str, str], mergekit_yaml: str
) -> str:
    """The card of one candidate.

    Args:
        summary: the run.
        candidate: its number, see `Summary.pick`.
        base_models: for every pool name that the recipe reads, what the world calls it: a hub id or a folder.
        licences: licence identifiers by pool name; names that are missing have no known licence.
        mergekit_yaml: the recipe as text, shown as it is.

    Raises:
        KeyError: a candidate that the run does not have, or a model without a name.
    """
    entry = summary.entries[candidate]
    parents = {name: base_models[name] for name in entry.recipe.models}
    inherited = {name: licences.get(name) for name in parents}
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(parents, inherited), sort_keys=False, allow_unicode=True)}---",
        f"# {_text(summary.name)}: {'anchor' if entry.kind == 'anchor' else 'candidate'} {_text(entry.name)}",
        _origin(entry, parents),
        *_licence_note(inherited, parents),
        *_results(summary, entry),
        *_gains(summary, entry),
        f"## Recipe\n\n{_fenced(mergekit_yaml)}",
        _reproduction(summary, entry),
    ]
    return "\n\n".join(sections) + "\n"


def _origin(entry: Entry, parents: Mapping[str, str]) -> str:
    merged = _listed(parents.values())
    if len(parents) == 1 and not entry.recipe.path:
        return f"{merged} as it is: a model of the pool, which evomerge measured its merges against."
    if entry.kind == "anchor":
        return (
            f"The {_text(entry.name)} average of {merged}, which needed no search: evomerge measured the "
            "merges that it found against it."
        )
    return f"A merge of {merged}, found by evomerge without training: {_text(entry.description)}."


def _front_matter(parents: Mapping[str, str], licences: Mapping[str, str | None]) -> dict[str, Any]:
    matter: dict[str, Any] = {
        "base_model": list(dict.fromkeys(parents.values())),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
    }
    distinct = set(licences.values())
    if len(distinct) == 1 and None not in distinct:
        return matter | {"license": distinct.pop()}
    if distinct == {None}:
        return matter | {"license": "unknown"}
    return matter | {"license": "other", "license_name": "inherited-from-several-parents"}


def _licence_note(licences: Mapping[str, str | None], parents: Mapping[str, str]) -> Iterator[str]:
    if len(set(licences.values())) == 1 and None not in licences.values():
        return
    lines = [f"- {_text(parents[name])}: {_text(licence or 'not known')}" for name, licence in licences.items()]
    yield "## Licence\n\nA merge inherits the terms of every parent, and these differ or are not known:"
    yield "\n".join(lines)


def _results(summary: Summary, entry: Entry) -> Iterator[str]:
    scores, status = entry.confirmed, "on items that the search never saw"
    if scores is None:
        scores, status = entry.estimated, "**estimated, not confirmed**: on items that steered the search"
    if scores is None:
        yield "## Results\n\nThis candidate was not scored."
        return
    rows = [_row(objective_label(o), m) for o, m in zip(summary.objectives, scores.each, strict=True)]
    if len(rows) > 1:
        rows.insert(0, _row("weighted mean of the objectives", scores.mean))
    head = f"| objective | value | {percent(summary.level)} interval | items |\n|---|---:|---:|---:|"
    caution = "" if entry.confirmed else " An estimate that was chosen among many is too high; do not quote it."
    yield f"## Results\n\nMeasured {status}.{caution}"
    yield "\n".join([head, *rows])
    for line in membership(summary, entry):
        yield f"{_text(line[:1].upper() + line[1:])}."
    if summary.confirmation is not None and entry.id in summary.confirmation.front:
        yield "No other confirmed candidate dominates it; how probable that is was told by resampling the items."
    yield from (f"Warning: {_text(warning)}." for warning in summary.warnings)


def _row(name: str, measure: Measure) -> str:
    if not measure.items:
        return f"| {_text(name)} | {span(measure)} | exact | |"
    interval = f"{number(measure.low)} to {number(measure.high)}"
    return f"| {_text(name)} | {number(measure.mean)} | {interval} | {measure.items} |"


def _gains(summary: Summary, entry: Entry) -> Iterator[str]:
    gains = summary.confirmation.gains if summary.confirmation is not None else ()
    rows = [
        f"| {_text(summary.entries[gain.anchor].name)} | {difference(gain.measure)} | {gain.measure.items} |"
        for gain in gains
        if gain.candidate == entry.id and gain.of == MEAN
    ]
    if rows:
        level = f"{percent(summary.level)} intervals that hold together"
        yield f"Gain in the mean of the objectives over the models it was measured against ({level}):"
        yield "\n".join(["| over | gain | items |\n|---|---:|---:|", *rows])


def _reproduction(summary: Summary, entry: Entry) -> str:
    versions = ", ".join(f"{_text(name)} {_text(str(version))}" for name, version in sorted(summary.versions.items()))
    return "\n\n".join(
        [
            "## How to reproduce",
            f"Seed {summary.seed}; recipe digest `{entry.recipe.digest}`; versions: {versions}.",
            _fenced(summary.export_command(entry.id)),
        ]
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_text(name) for name in dict.fromkeys(names))


def _text(value: str) -> str:
    """Text that Markdown shows as it is: no tags, links, emphasis or table cells."""
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", one_line(value))


def _fenced(text: str) -> str:
    """A code block that its own content cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.strip()}\n{fence}"
