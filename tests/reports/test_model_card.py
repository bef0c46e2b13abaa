from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from evomerge.reports import Summary, model_card

Make = Callable[..., Summary]
NAMES = {"base": "org/base", "rev": "org/rev", "sort": "org/sort"}


def card(found: Summary, candidate: int, **changed: Any) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    given: dict[str, Any] = {
        "base_models": NAMES,
        "licences": dict.fromkeys(NAMES, "apache-2.0"),
        "mergekit_yaml": "merge_method: task_arithmetic\n",
    }
    text = model_card(found, candidate, **(given | changed))
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), body


def test_confirmed_candidate(summary: Make) -> None:
    found = summary()
    knee = found.entries[found.picks["knee"]]
    front, body = card(found, knee.id)
    assert front == {
        "base_model": ["org/base", "org/rev", "org/sort"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "license": "apache-2.0",
    }
    assert knee.confirmed is not None
    assert "items that the search never saw" in body
    for measure in knee.confirmed.each:
        assert f"| {measure.mean:.3f} | {measure.low:.3f} to {measure.high:.3f} | 400 |" in body
    for part in ("merge_method: task_arithmetic", f"Seed {found.seed}", "evomerge 0.1.0", knee.recipe.digest):
        assert part in body
    assert found.commands()["export"] in body
    assert "| sort | +" in body
    assert "Licence" not in body


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rev", "rev as it is: a model of the pool"),
        ("uniform", "The uniform average of org/rev, org/sort, which needed no search"),
    ],
)
def test_an_anchor_was_not_found_by_a_search(summary: Make, name: str, told: str) -> None:
    found = summary()
    anchor = next(entry for entry in found.anchors if entry.name == name)
    _, body = card(found, anchor.id)
    assert f"# made-up: anchor {name}" in body
    assert told in body
    assert "found by evomerge" not in body


def test_estimates_are_no_claims(summary: Make) -> None:
    found = summary(finished=False)
    _, body = card(found, found.picks["knee"])
    assert "**estimated, not confirmed**" in body
    assert "never saw" not in body
    assert "Gain" not in body


def test_candidate_without_scores(summary: Make) -> None:
    found = summary(failures=("NaN",))
    _, body = card(found, found.failures[0].candidate)
    assert "was not scored" in body


def test_differing_licences_are_listed(summary: Make) -> None:
    found = summary()
    front, body = card(found, found.picks["knee"], licences={"base": "apache-2.0", "rev": "mit"})
    assert front["license"] == "other"
    for line in ("- org/base: apache-2.0", "- org/rev: mit", "- org/sort: not known"):
        assert line in body


def test_unknown_licences_are_not_invented(summary: Make) -> None:
    found = summary()
    front, body = card(found, found.picks["knee"], licences={})
    assert front["license"] == "unknown"
    assert "- org/base: not known" in body


@pytest.mark.parametrize("name", ["a: b\n---\nlicense: mit", "</x>|`*[y](z)", "'\"#"])
def test_hostile_names_stay_names(summary: Make, name: str) -> None:
    found = summary()
    front, body = card(found, found.picks["knee"], base_models=NAMES | {"rev": name}, licences={})
    assert front["base_model"] == ["org/base", name, "org/sort"]
    assert front["license"] == "unknown"
    assert "</x>" not in body
    assert "[y](z)" not in body


def test_recipe_text_cannot_leave_its_block(summary: Make) -> None:
    found = summary()
    _, body = card(found, found.picks["knee"], mergekit_yaml="a\n```\n# not a heading\n")
    assert "````\na\n```\n# not a heading\n````" in body
