"""Transforms in recipes: spelling, digests, names of variants, and what mergekit is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import OPERATORS, Field, Recipe, options_of
from evomerge.recipe.mergekit_yaml import inexpressible, to_mergekit
from evomerge.recipe.transform_table import TRANSFORMS, transform_of, variant_name


def recipe_of(*transforms: str, operator: str = "task_arithmetic", **changes: Any) -> Recipe:
    table = OPERATORS[operator]
    parameters = {
        name: Field.constant([0.5] * (2 if p.scope == "source" else 1), 2) for name, p in table.parameters.items()
    }
    fields: dict[str, Any] = {
        "operator": operator,
        "options": options_of(table, "paper"),
        "base": "base" if table.needs_base else None,
        "sources": ("one", "two"),
        "transforms": transforms,
        "parameters": tuple(sorted(parameters.items())),
        "dtype": "bfloat16",
    }
    return Recipe(**{**fields, **changes})


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("none", "none"),
        ("star", "star:40"),
        ("star:40", "star:40"),
        ("star:2.5e1", "star:25"),
        ("star:100", "star:100"),
        ("wudi:0.00010000001", "wudi:0.0001"),
        ("fisher", "fisher"),
        ("lore:0", "lore:0"),
    ],
)
def test_a_transform_has_one_spelling(text: str, spelled: str) -> None:
    assert transform_of(text)[1] == spelled == transform_of(spelled)[1]
    assert recipe_of(text, "none").digest == recipe_of(spelled, "none").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sart", "expected a transform, one of none, star, tsv_m, .*; got 'sart'"),
        ("", "expected a transform"),
        ("star:", "expected a number behind the colon; got 'star:'"),
        ("star:many", r"star takes the percentage of the nuclear norm kept, in \[1, 100\]; got 'many'"),
        ("star:0.5", r"in \[1, 100\]; got 0.5"),
        ("star:nan", "got nan"),
        ("star:inf", "got inf"),
        ("pcb:1.01", r"pcb takes the share of weights kept, in \[0.01, 1\]; got 1.01"),
        ("none:1", "none takes no number; got '1'"),
    ],
)
def test_what_is_no_transform_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform_of(text)
    with pytest.raises(ValueError, match=message):
        recipe_of(text, "none")


@given(st.sampled_from([t for t in TRANSFORMS.values() if t.number]), st.floats(0, 1))
def test_every_legal_number_is_spelled_and_read_back(transform: Any, share: float) -> None:
    number = transform.number
    value = number.minimum + share * (number.maximum - number.minimum)
    spelled = transform.spelled(repr(value))
    assert transform_of(spelled)[1] == spelled
    assert float(spelled.partition(":")[2]) == pytest.approx(value, rel=1e-5)


def test_defaults_lie_in_their_ranges() -> None:
    for transform in TRANSFORMS.values():
        if transform.number:
            assert transform.spelled("") == f"{transform.name}:{transform.number.default:g}"


def test_recipes_without_transforms_are_what_they_were() -> None:
    plain = recipe_of()
    assert plain.transforms == ("none", "none")
    assert "transforms" not in plain.to_data()
    assert recipe_of("none", "none") == plain
    assert Recipe.from_data(json.loads(plain.canonical())) == plain
    assert plain.digest == "5d19022bbb8f05db1442179c0afea1a8"  # as in runs that knew no transforms
    assert plain.on_variants() is plain


def test_transforms_are_part_of_a_recipe() -> None:
    recipe = recipe_of("none", "star")
    assert recipe.to_data()["transforms"] == ["none", "star:40"]
    assert Recipe.from_data(json.loads(recipe.canonical())) == recipe
    digests = {recipe_of(*t).digest for t in ((), ("none", "star"), ("star", "none"), ("none", "star:41"))}
    assert len(digests) == 4
    assert recipe.models == ("base", "one", "two")
    assert recipe.variants == ("one", "two~star:40") == recipe.on_variants().sources
    assert recipe.on_variants().transforms == ("none", "none")
    assert variant_name("one", "none") == "one"


def test_one_for_each_source_of_an_operator_on_task_vectors() -> None:
    with pytest.raises(ValueError, match=r"expected one transform for each of \('one', 'two'\); got \('star',\)"):
        recipe_of("star")
    for operator in ("linear", "decay_average", "karcher"):
        assert recipe_of(operator=operator).transforms == ("none", "none")
        with pytest.raises(ValueError, match=f"{operator} merges weights; transforms work on task vectors"):
            recipe_of("none", "star", operator=operator)


def test_mergekit_is_told_that_it_cannot() -> None:
    recipe = recipe_of("none", "star")
    assert inexpressible(recipe_of()) == []
    assert inexpressible(recipe) == ["two~star:40: it has no transforms"]
    assert inexpressible(recipe_of("star", "none", operator="consensus"))[0] == "one~star:40: it has no transforms"
    text = to_mergekit(recipe, {"base": "b", "one": "org/one", "two": "org/two"}, [])
    assert text.startswith("# not reproducible with mergekit: two~star:40: it has no transforms\n")
    assert "model: org/one\n" in text
    assert "model: org/two~star:40\n" in text


def test_the_docs_list_every_transform() -> None:
    text = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
    for transform in TRANSFORMS.values():
        number = transform.number
        if number:
            limits = f"{number.default:g}, {number.minimum:g} to {number.maximum:g}"
            assert f"| `{transform.name}` | {number.meaning}, {limits} |" in text
        elif transform.name != "none":
            assert f"| `{transform.name}` | none |" in text
