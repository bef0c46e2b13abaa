"""Plain words: numbers, recipes and audits as people read them. Knows nothing of where they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evomerge.config import Experiment
from evomerge.recipe import OPERATORS, Field, Recipe
from evomerge.recipe.route import runs_of
from evomerge.reports.summary import Entry, Measure, Objective, Summary

__all__ = [
    "audit_words",
    "describe",
    "difference",
    "duration",
    "mean_words",
    "means",
    "membership",
    "number",
    "objective_label",
    "one_line",
    "percent",
    "span",
    "unspent",
]


def one_line(text: str) -> str:
    """Text that cannot move a cursor or break a table: every run of blanks and control characters is one blank."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def number(value: float) -> str:
    """Three decimals for the usual 0..1 metrics, four digits for larger ones."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def span(measure: Measure) -> str:
    """`0.712 [0.660, 0.764]`; of a cost, which is exact, `24`."""
    if not measure.items:
        return f"{measure.mean:.6g}"
    return f"{number(measure.mean)} [{number(measure.low)}, {number(measure.high)}]"


def difference(measure: Measure) -> str:
    """`+0.120 [+0.050, +0.190]`; of a cost, which is exact, `+4`."""
    if not measure.items:
        return f"{measure.mean:+.6g}"

    def signed(value: float) -> str:
        return ("+" if value >= 0 else "") + number(value)

    return f"{signed(measure.mean)} [{signed(measure.low)}, {signed(measure.high)}]"


def duration(seconds: float) -> str:
    """`12.3 s`, `4.5 min`, `3.2 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(level: float) -> str:
    """`95 %`, `97.5 %`."""
    return f"{100 * level:g} %"


def objective_label(objective: Objective) -> str:
    """`rev (acc, higher is better)`."""
    return f"{objective.name} ({objective.metric}, {'higher' if objective.goal == 'max' else 'lower'} is better)"


def membership(summary: Summary, entry: Entry) -> Iterator[str]:
    """Constraints that are broken; `on the front: 87 %`, how probably on other items, where that was confirmed."""
    yield from (f"breaks {text}" for text in entry.broken)
    if summary.confirmation is not None and entry.id in summary.confirmation.probability:
        yield f"on the front: {_chance(summary.confirmation.probability[entry.id])}"


def _chance(probability: float) -> str:
    """No more than resampled items can tell: never 0 or 100 %."""
    return "< 1 %" if probability < 0.01 else "> 99 %" if probability > 0.99 else percent(round(probability, 2))


def describe(recipe: Recipe) -> str:
    """One line: the operator, options that differ from the publication's, and every parameter's mean, per source."""
    if recipe.path:
        runs = ", ".join(map(str, runs_of(recipe.path)))
        return f"layers {runs}; the rest: {describe(replace(recipe, path=()))}"
    if len(recipe.models) == 1:
        return f"{recipe.models[0]} as it is"
    parameters = [
        f"{name} {_per_source(field, recipe.sources)}" for name, field in recipe.parameters if _is_told(name, field)
    ]
    models = " + ".join(recipe.on_variants().models)
    return ", ".join([f"{recipe.operator} of {models}", *_options(recipe), *parameters])


def _options(recipe: Recipe) -> list[str]:
    paper = OPERATORS[recipe.operator].presets["paper"]
    return [f"{name} {str(value).lower()}" for name, value in recipe.options if value != paper[name]]


def _is_told(name: str, field: Field) -> bool:
    ones = all(value == 1.0 for _, rows in field.by_role() for row in rows for value in row)
    return name == "weight" or not ones


def _per_source(field: Field, sources: tuple[str, ...]) -> str:
    means = _means(field)
    if field.width == 1:
        return f"{means[0]:.2f}"
    return " ".join(f"{source}={mean:.2f}" for source, mean in zip(sources, means, strict=True))


def means(recipe: Recipe) -> dict[str, float]:
    """The mean of every parameter over layers and modules, by parameter and source: `weight math`."""
    return {
        f"{name} {source}" if field.width > 1 else name: mean
        for name, field in recipe.parameters
        for source, mean in zip(recipe.sources, _means(field), strict=False)
    }


def _means(field: Field) -> list[float]:
    columns = [*zip(*(row for role in field.rows for row in role), strict=True)]
    return [sum(column) / len(column) for column in columns]


def audit_words(audits: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What random items said in the latest generation, and how often they called for a remedy.

    Example:
        >>> audit_words({"0": {}, "1": {"math": {"z": 3.25, "remedy": "correct"}}})
        'math z +3.2 (correct) in generation 1; a remedy was called for in 1 of 2 generations'
    """
    if not any(audits.values()):
        return ""
    latest = max(audits, key=int)
    each = ", ".join(f"{one_line(name)} z {c['z']:+.1f} ({c['remedy']})" for name, c in audits[latest].items())
    called = sum(any(c["remedy"] != "none" for c in checks.values()) for checks in audits.values())
    told = f"{each or 'nothing'} in generation {latest}"
    return f"{told}; a remedy was called for in {called} of {len(audits)} generations"


def unspent(experiment: Experiment, recorded: int, failed: int, *, finished: bool) -> str:
    """What became of the budget's candidates that have no score, for example `2 failed`; empty if there are none.

    Args:
        experiment: the run's.
        recorded: candidates of the search so far, anchors included.
        failed: how many of them were given up.
        finished: whether the search has ended.
    """
    left = experiment.budget.evaluations - recorded
    told = [f"{failed} failed"] if failed else []
    if finished and left > 0:
        told.append(f"{left} were not asked for, because {_end(experiment, recorded - experiment.anchors, left)}")
    return "; ".join(told)


def _end(experiment: Experiment, asked: int, left: int) -> str:
    step = experiment.algorithm.step_at(asked)
    if step > left:
        return f"the next generation takes {step}"
    if experiment.budget.items is None and experiment.budget.tokens is None:
        return "the algorithm had nothing more to ask"
    return "the budget of items or tokens would not have held another generation"


def mean_words(summary: Summary) -> str:
    """What the mean is a mean of; with one objective, that."""
    return "the mean of the objectives" if len(summary.objectives) > 1 else summary.objectives[0].name
