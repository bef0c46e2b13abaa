"""Paths as slices of another tool, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from evomerge.errors import ConfigError
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, Role, options_of, uniform
from evomerge.recipe.mergekit_read import read_mergekit
from evomerge.recipe.mergekit_yaml import inexpressible, to_mergekit
from evomerge.recipe.route import runs_of

PATHS = {"base": "hub/base", "math": "hub/math"}


def hops(*steps: tuple[str | None, int]) -> tuple[Hop, ...]:
    return tuple(Hop(source=source, layer=layer) for source, layer in steps)


def slices(recipe: Recipe) -> list[tuple[str, int, int]]:
    document: Any = yaml.safe_load(to_mergekit(recipe, PATHS, ()))
    assert (document["merge_method"], document["out_dtype"]) == ("passthrough", "bfloat16")
    assert "models" not in document
    sources = [source for entry in document["slices"] for source in entry["sources"]]
    return [(source["model"], *source["layer_range"]) for source in sources]


def base(path: Sequence[Hop]) -> Recipe:
    return replace(uniform(("base",), layers=4, dtype="bfloat16"), path=tuple(path))


def test_runs_of_layers_become_slices() -> None:
    path = hops(("base", 0), ("base", 1), ("math", 1), ("math", 2), ("math", 2), (None, 3))
    wanted = [("hub/base", 0, 2), ("hub/math", 1, 3), ("hub/math", 2, 3), ("hub/base", 3, 4)]
    assert slices(base(path)) == wanted
    assert inexpressible(base(path)) == []


def test_empty_slices_say_whose_embeddings_and_head_they_are() -> None:
    found = slices(base(hops(("math", 1), ("math", 2))))
    assert found == [("hub/base", 0, 0), ("hub/math", 1, 3), ("hub/base", 0, 0)]
    assert slices(base(hops((None, 2), ("math", 0)))) == [("hub/base", 2, 3), ("hub/math", 0, 1), ("hub/base", 0, 0)]


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_weight_that_is_not_one_is_no_copy(weight: float) -> None:
    plain = replace(
        base(hops(("base", 1))),
        options=options_of(OPERATORS["linear"], "paper", normalize=False),
        parameters=(("weight", Field.constant((weight,), 4)),),
    )
    assert inexpressible(plain)[0].startswith("path through layers of a merge")


def test_what_slices_cannot_say_is_told() -> None:
    scaled = base((Hop(source="math", layer=0, scale=2.0), Hop(layer=1)))
    assert inexpressible(scaled)[0] == "scales of the residual stream: it has none"
    merged = replace(uniform(("base", "math"), layers=4, dtype="bfloat16"), path=hops(("math", 0)))
    reason = "path through layers of a merge: it routes layers or merges them"
    assert inexpressible(merged) == [reason]
    text = to_mergekit(merged, PATHS, ())
    assert text.startswith(f"# not reproducible with mergekit: {reason}\n")
    assert yaml.safe_load(text)["merge_method"] == "linear"


def test_averages_keep_their_path() -> None:
    average = Recipe(
        operator="decay_average",
        options=options_of(OPERATORS["decay_average"], "paper"),
        base=None,
        sources=("base", "math"),
        parameters=(("power", Field.constant((1.0,), 4)),),
        path=hops(("math", 0)),
        dtype="bfloat16",
    )
    assert inexpressible(average)[0].startswith("path through layers of a merge")


def test_runs_end_where_anything_changes() -> None:
    path = (*hops(("math", 1), ("math", 2)), Hop(source="math", layer=3, scale=0.5), Hop(layer=0), Hop(layer=0))
    assert [str(run) for run in runs_of(path)] == ["math 1-2", "math 3 (x0.5)", "merge 0", "merge 0"]
    assert runs_of(()) == []


@dataclass(frozen=True)
class Layer:
    """A tensor of a layer: all that reading a path asks of the models is their depth."""

    layer: int
    name: str = "model.layers.0.mlp.up_proj.weight"
    role: Role = "mlp"


def read(text: str) -> Recipe:
    return read_mergekit(text, "mergekit.yml").recipe([Layer(at) for at in range(4)], dtype="bfloat16")


def passthrough(*slices: tuple[str, int, int]) -> str:
    sources = [[{"model": model, "layer_range": [start, stop]}] for model, start, stop in slices]
    return yaml.safe_dump({"merge_method": "passthrough", "slices": [{"sources": source} for source in sources]})


@pytest.mark.parametrize(
    "path",
    [
        hops((None, 0), (None, 1), ("math", 1), ("math", 2), ("math", 2), (None, 3)),
        hops(("math", 1), ("math", 2)),
        hops((None, 2), ("math", 0)),
    ],
    ids=str,
)
def test_out_and_in_again_is_the_same_path(path: tuple[Hop, ...]) -> None:
    assert read(to_mergekit(base(path), PATHS, ())) == base(path)


def test_embeddings_are_the_first_slices_and_the_head_is_the_last_ones() -> None:
    text = passthrough(("hub/base", 0, 3), ("hub/math", 1, 4))
    recipe = read(text)
    assert recipe.sources == ("base", "math")
    weight = recipe.parameter("weight")
    assert (weight.at("embed", None), weight.at("head", None)) == ((1.0, 0.0), (0.0, 1.0))
    assert [str(run) for run in runs_of(recipe.path)] == ["base 0-2", "math 1-3"]
    assert inexpressible(recipe) == []
    assert slices(recipe) == [("hub/base", 0, 3), ("hub/math", 1, 4)]


def test_a_model_as_it_is() -> None:
    whole = uniform(("base",), layers=4, dtype="bfloat16")
    assert read("{merge_method: passthrough, models: [{model: hub/base}]}") == whole
    assert read(passthrough(("hub/base", 0, 2), ("hub/base", 2, 4))) == whole
    other = "{merge_method: passthrough, base_model: hub/base, models: [{model: hub/math}]}"
    assert read(other) == replace(whole, sources=("math",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (passthrough(("a", 0, 5)), "takes layers 0 to 3; got 4"),
        (passthrough(("a", 0, 0), ("b", 2, 2)), "expected at least one layer; got none"),
        (passthrough(("a", 2, 1)), r"layer_range: \[START, END\]; got \[\[2, 1\]\]"),
        (passthrough(("a", -1, 2)), r"layer_range: \[START, END\]; got \[\[-1, 2\]\]"),
        (
            "{merge_method: passthrough, slices: [{sources: [{model: a}]}]}",
            r"layer_range: \[START, END\]; got \[None\]",
        ),
        (
            "{merge_method: passthrough, models: [{model: a}, {model: b}]}",
            "passthrough takes one model, or slices; got 2",
        ),
        (
            "{merge_method: passthrough, models: [{model: a}], parameters: {scale: 0.5}}",
            "takes no parameters; .*'scale'",
        ),
    ],
)
def test_what_is_no_path_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read(text)
