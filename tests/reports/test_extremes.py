from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from evomerge.reports import Summary, extreme_warnings, verdict
from evomerge.reports.extremes import extremes
from evomerge.reports.summary import Scores

Make = Callable[..., Summary]


def scoring(found: Summary, values: dict[str, float], *, but: int | None = None) -> Summary:
    """The summary with other means, equal for all models but one, in some objectives."""

    def changed(scores: Scores | None) -> Scores | None:
        if scores is None:
            return None
        pairs = zip(found.objectives, scores.each, strict=True)
        return replace(scores, each=tuple(replace(m, mean=values.get(o.name, m.mean)) for o, m in pairs))

    return replace(
        found,
        entries={
            number: entry
            if number == but
            else replace(entry, estimated=changed(entry.estimated), confirmed=changed(entry.confirmed))
            for number, entry in found.entries.items()
        },
    )


@pytest.mark.parametrize(("value", "said"), [(0.0, "no model answers any"), (1.0, "every model answers every")])
def test_where_all_score_alike_nothing_is_compared(summary: Make, value: float, said: str) -> None:
    told = verdict(scoring(summary(), {"a": value, "b": value}))
    assert told.kind == "none"
    assert told.candidate is told.take is None
    assert told.headline == f"Nothing to compare: {said} item."
    assert "safer choice" not in told.detail


def test_one_objective_that_tells_models_apart_is_compared(summary: Make) -> None:
    found = scoring(summary(), {"a": 0.0})
    assert extremes(found.entries.values(), found.objectives) == {"a": "floor"}
    assert verdict(found).kind != "none"
    (warning,) = extreme_warnings(found.entries.values(), found.objectives)
    assert "any item of 'a'" in warning
    assert "chat template" in warning


def test_both_ends(summary: Make) -> None:
    found = scoring(summary(), {"a": 0.0, "b": 1.0})
    assert extremes(found.entries.values(), found.objectives) == {"a": "floor", "b": "ceiling"}
    assert "no model answers any item or every model answers every item" in verdict(found).headline
    assert any("harder questions" in text for text in extreme_warnings(found.entries.values(), found.objectives))


def test_one_model_with_another_score_is_enough(summary: Make) -> None:
    found = summary()
    assert found.confirmation is not None
    other = scoring(found, {"a": 0.0, "b": 0.0}, but=found.confirmation.knee)
    assert not extremes(other.entries.values(), other.objectives)


def test_less_is_better_has_no_floor(summary: Make) -> None:
    found = scoring(summary(goals=("max", "min")), {"a": 0.0, "b": 0.0})
    assert extremes(found.entries.values(), found.objectives) == {"a": "floor"}


def test_a_single_model_is_told_from_nobody(summary: Make) -> None:
    found = scoring(summary(), {"a": 0.0, "b": 0.0})
    assert not extremes([*found.entries.values()][:1], found.objectives)
