from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, Hop, Operator, Recipe, options_of, uniform
from evomerge.recipe.mergekit_yaml import inexpressible


@st.composite
def fields(draw: st.DrawFn, *, layers: int, width: int, low: float = -10.0, high: float = 10.0) -> Field:
    value = st.floats(low, high)
    row = st.lists(value, min_size=width, max_size=width)
    return Field.of(
        {
            role: draw(st.lists(row, min_size=depth, max_size=depth))
            for role in ROLES
            for depth in [layers if role in DEPTH_ROLES else 1]
        }
    )


@st.composite
def recipes(draw: st.DrawFn, operators: tuple[str, ...] = tuple(OPERATORS)) -> Recipe:
    operator = OPERATORS[draw(st.sampled_from(operators))]
    layers = draw(st.integers(1, 3))
    width = draw(st.integers(1, operator.max_sources or 3))
    options = {name: draw(st.sampled_from(values)) for name, values in operator.options.items()}
    return Recipe(
        operator=operator.name,
        options=tuple(sorted(options.items())),
        base="base" if operator.needs_base else None,
        sources=tuple(f"expert{k}" for k in range(width)),
        parameters=tuple(
            (
                name,
                draw(fields(layers=layers, width=width if p.scope == "source" else 1, low=p.minimum, high=p.maximum)),
            )
            for name, p in sorted(operator.parameters.items())
        ),
        mask_seed=draw(st.integers(0, 2**62)),
        dtype=draw(st.sampled_from(("bfloat16", "float16", "float32"))),
    )


def ties(**changes: Any) -> dict[str, Any]:
    """Arguments of a valid TIES recipe over two experts and two layers."""
    return {
        "operator": "ties",
        "options": options_of(OPERATORS["ties"], "paper"),
        "base": "base",
        "sources": ("one", "two"),
        "parameters": (
            ("density", Field.constant([0.2, 0.5], 2)),
            ("lambda", Field.constant([1.0], 2)),
            ("weight", Field.constant([1.0, 1.0], 2)),
        ),
        "dtype": "bfloat16",
        **changes,
    }


@given(recipes())
def test_the_canonical_text_gives_the_recipe_back(recipe: Recipe) -> None:
    again = Recipe.from_data(json.loads(recipe.canonical()))
    assert again == recipe
    assert again.canonical() == recipe.canonical()
    assert again.digest == recipe.digest


@given(recipes(), recipes())
def test_digests_are_equal_exactly_when_recipes_are(one: Recipe, other: Recipe) -> None:
    assert (one.digest == other.digest) == (one == other)


@given(recipes(), st.data())
def test_every_coefficient_reaches_the_digest(recipe: Recipe, data: st.DataObject) -> None:
    name, field = data.draw(st.sampled_from(recipe.parameters))
    role = data.draw(st.sampled_from(ROLES))
    by_role = {key: [list(row) for row in rows] for key, rows in field.by_role()}
    row = data.draw(st.sampled_from(by_role[role]))
    source = data.draw(st.integers(0, len(row) - 1))
    parameter = OPERATORS[recipe.operator].parameters[name]
    row[source] = parameter.minimum if row[source] > parameter.minimum else parameter.maximum
    changed = {**dict(recipe.parameters), name: Field.of(by_role)}
    assert dataclasses.replace(recipe, parameters=tuple(sorted(changed.items()))).digest != recipe.digest


@given(fields(layers=2, width=2))
def test_fields_have_no_negative_zero(field: Field) -> None:
    assert Field(field.rows) == field
    assert all(math.copysign(1.0, v) > 0 or v < 0 for rows in field.rows for row in rows for v in row), "no -0.0"


@given(st.floats(-10, 10), st.floats(-1e-8, 1e-8))
def test_what_weights_cannot_tell_apart_is_one_recipe(value: float, noise: float) -> None:
    coarse = round(value, 3)
    others = dict(ties()["parameters"])
    one, other = (
        Recipe(**ties(parameters=tuple((others | {"weight": Field.constant([w, 1.0], 2)}).items())))
        for w in (coarse, coarse + noise)
    )
    assert one == other
    assert one.digest == other.digest


@pytest.mark.parametrize(("operator", "name"), [("nearswap", "t"), ("ram", "epsilon"), ("ram_plus", "epsilon")])
def test_what_is_compared_with_changes_of_weights_keeps_more_places(operator: str, name: str) -> None:
    table = OPERATORS[operator]
    values = {key: Field.constant([p.default or 0.0], 2) for key, p in sorted(table.parameters.items())}
    recipe = Recipe(
        operator=operator,
        options=options_of(table, "mergekit"),
        base="base",
        sources=("one",),
        parameters=tuple((values | {name: Field.constant([4.123456e-7], 2)}).items()),
        dtype="bfloat16",
    )
    assert recipe.parameter(name).at("mlp", 1) == (4.12346e-7,)
    assert Recipe.from_data(json.loads(recipe.canonical())) == recipe


def test_the_seventh_place_of_ordinary_parameters_changes_no_digest() -> None:
    noisy = ((name, [v + 4e-7 for v in field.at("mlp", 0)]) for name, field in ties()["parameters"])
    recipe = Recipe(**ties(parameters=tuple((name, Field.constant(row, 2)) for name, row in noisy)))
    assert recipe.digest == Recipe(**ties()).digest == "4c75b765c3e488bfd0b71014832f4ae2"


@given(fields(layers=3, width=2))
def test_at_gives_the_row_of_role_and_layer(field: Field) -> None:
    for role, rows in field.by_role():
        layers = range(3) if role in DEPTH_ROLES else [None]
        assert [field.at(role, layer) for layer in layers] == list(rows)


@given(st.integers(1, 5), st.lists(st.floats(-10, 10), min_size=1, max_size=4))
def test_a_constant_field_is_constant(layers: int, values: list[float]) -> None:
    field = Field.constant(values, layers)
    assert (field.layers, field.width) == (layers, len(values))
    assert len({row for _, rows in field.by_role() for row in rows}) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_field_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Field.constant([value], 2)


_ROWS = ((1.0,), (2.0,))


@pytest.mark.parametrize(
    "rows",
    [
        (_ROWS, _ROWS, _ROWS, _ROWS[:1]),  # a role short
        (_ROWS, _ROWS, _ROWS[:1], _ROWS[:1], _ROWS[:1]),  # depths differ
        (_ROWS, _ROWS, ((1.0,), (1.0, 2.0)), _ROWS[:1], _ROWS[:1]),  # widths differ
        (_ROWS, _ROWS, _ROWS, _ROWS, _ROWS[:1]),  # an edge with depth
        ((), (), (), _ROWS[:1], _ROWS[:1]),
        (((),), ((),), ((),), ((),), ((),)),
    ],
)
def test_a_ragged_field_is_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"field|roles"):
        Field(rows)


def test_a_field_needs_every_role() -> None:
    with pytest.raises(ValueError, match=r"missing \['head'\]"):
        Field.of({role: [[1.0]] for role in ROLES if role != "head"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "alchemy"}, "operator must be one of"),
        ({"sources": ()}, "at least one"),
        ({"sources": ("one", "one")}, "distinct"),
        ({"sources": ("one", 2)}, "models are called by names"),
        ({"base": 5}, "models are called by names"),
        ({"path": (Hop(source="", layer=0),)}, "models are called by names"),
        ({"mask_seed": "1"}, "mask_seed must be a whole number from 0 on; got '1'"),
        ({"mask_seed": -1}, "mask_seed must be a whole number from 0 on; got -1"),
        ({"base": None}, "needs a base"),
        ({"base": "one"}, "needs a base that is not a source"),
        ({"options": ()}, "options must be exactly"),
        ({"options": (("aggregate", "mean"), ("trim", "model"), ("vote", "loudest"))}, "vote must be one of"),
        ({"parameters": ()}, "parameters must be"),
        (
            {"parameters": tuple((name, Field.constant([1.0], 2)) for name in ("density", "lambda", "weight"))},
            r"density needs 2 value\(s\)",
        ),
        (
            {
                "parameters": (
                    ("density", Field.constant([0.2, 1.5], 2)),
                    ("lambda", Field.constant([1.0], 2)),
                    ("weight", Field.constant([1.0, 1.0], 2)),
                )
            },
            r"density must lie in \[0\.0, 1\.0\]; got \[0\.2, 1\.5\]",
        ),
        (
            {
                "parameters": (
                    ("density", Field.constant([0.2, 0.5], 2)),
                    ("lambda", Field.constant([1.0], 3)),
                    ("weight", Field.constant([1.0, 1.0], 2)),
                )
            },
            "same number of layers",
        ),
    ],
)
def test_what_does_not_fit_the_operator_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**ties(**changes))


def test_slerp_takes_one_other_model() -> None:
    with pytest.raises(ValueError, match="slerp merges the base with 1 other model"):
        Recipe(**ties(operator="slerp", options=(), parameters=(("t", Field.constant([0.5], 2)),)))


def test_linear_takes_no_base() -> None:
    with pytest.raises(ValueError, match="linear takes no base"):
        dataclasses.replace(uniform(["one"], layers=2, dtype="bfloat16"), base="base")


def test_the_mask_seed_matters_only_where_masks_are_drawn() -> None:
    assert Recipe(**ties(mask_seed=5)) == Recipe(**ties())
    options = options_of(OPERATORS["dare_ties"], "paper")
    seeded = [Recipe(**ties(operator="dare_ties", options=options, mask_seed=seed)) for seed in (0, 5)]
    assert seeded[0].digest != seeded[1].digest


def test_a_recipe_names_its_space_only_where_it_is_another() -> None:
    in_weights, in_core = Recipe(**ties()), Recipe(**ties(space="core"))
    assert "space" not in in_weights.to_data()
    assert Recipe.from_data(in_core.to_data()) == in_core
    assert in_core.digest != in_weights.digest


def test_core_space_takes_task_vectors_as_they_are() -> None:
    with pytest.raises(ValueError, match="space must be one of"):
        Recipe(**ties(space="cellar"))
    with pytest.raises(ValueError, match="linear reads weights; core space has task vectors only"):
        dataclasses.replace(uniform(["one"], layers=2, dtype="bfloat16"), space="core")
    with pytest.raises(ValueError, match="core space takes adapters as they are"):
        Recipe(**ties(space="core", transforms=("star", "none")))


def test_models_are_base_then_sources() -> None:
    assert Recipe(**ties()).models == ("base", "one", "two")
    assert uniform(["two", "one"], layers=2, dtype="float32").models == ("two", "one")


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_every_preset_spells_out_every_option(operator: Operator) -> None:
    for preset in operator.presets:
        options = options_of(operator, preset)
        assert list(options) == sorted(options)
        assert dict(options).keys() == operator.options.keys()
        assert all(value in operator.options[name] for name, value in options)


def test_options_can_be_changed_one_by_one() -> None:
    changed = dict(options_of(OPERATORS["ties"], "paper", vote="weighted"))
    assert changed == {**OPERATORS["ties"].presets["paper"], "vote": "weighted"}
    with pytest.raises(ValueError, match=r"takes the options .*; got vote='loudest'"):
        options_of(OPERATORS["ties"], "paper", vote="loudest")
    with pytest.raises(ValueError, match="got rescale='l1'"):
        options_of(OPERATORS["ties"], "paper", rescale="l1")


def test_modifiers_at_their_defaults_are_left_out() -> None:
    parameters = dict(ties()["parameters"])
    plain = Recipe(**ties())
    idle = Recipe(**ties(parameters=tuple(sorted((parameters | {"omega": Field.constant([1.0], 2)}).items()))))
    damped = Recipe(**ties(parameters=tuple(sorted((parameters | {"omega": Field.constant([0.25], 2)}).items()))))
    assert idle == plain
    assert idle.digest == plain.digest
    assert damped.digest != plain.digest
    assert Recipe.from_data(json.loads(damped.canonical())) == damped
    assert "omega: it damps nothing" in inexpressible(damped)
    assert "omega: it damps nothing" not in inexpressible(plain)


def test_modifiers_need_a_base_and_a_legal_value() -> None:
    parameters = dict(ties()["parameters"])
    with pytest.raises(ValueError, match=r"omega must lie in \[0\.0, 1\.0\]; got \[1\.5, 1\.5\]"):
        Recipe(**ties(parameters=tuple(sorted((parameters | {"omega": Field.constant([1.5], 2)}).items()))))
    average = uniform(("one", "two"), layers=2, dtype="float32")
    with pytest.raises(ValueError, match="parameters must be"):
        dataclasses.replace(average, parameters=(("omega", Field.constant([0.5], 2)), *average.parameters))


@st.composite
def hops(draw: st.DrawFn) -> Hop:
    return Hop(
        source=draw(st.sampled_from([None, "expert0", "elsewhere"])),
        layer=draw(st.integers(0, 1)),
        scale=draw(st.floats(0.1, 3.0)),
    )


class TestPath:
    @given(st.lists(hops(), max_size=5))
    def test_survives_json(self, path: list[Hop]) -> None:
        recipe = dataclasses.replace(uniform(["a", "b"], layers=2, dtype="float32"), path=tuple(path))
        assert Recipe.from_data(json.loads(recipe.canonical())) == recipe
        assert recipe.depth == (len(path) or 2)

    def test_the_merges_own_layers_in_order_are_no_path(self) -> None:
        plain = uniform(["a", "b"], layers=2, dtype="float32")
        own = dataclasses.replace(plain, path=(Hop(layer=0), Hop(layer=1)))
        assert own == plain
        assert own.digest == plain.digest

    def test_names_what_it_visits(self) -> None:
        recipe = dataclasses.replace(uniform(["a"], layers=2, dtype="float32"), path=(Hop(source="b", layer=1),))
        assert recipe.merged == ("a",)
        assert recipe.models == ("a", "b")
        assert (recipe.layers, recipe.depth) == (2, 1)

    def test_a_layer_beyond_the_models_is_refused(self) -> None:
        with pytest.raises(ValueError, match="layers 0 to 1; got 2"):
            dataclasses.replace(uniform(["a"], layers=2, dtype="float32"), path=(Hop(layer=2),))

    @pytest.mark.parametrize(("layer", "scale"), [(-1, 1.0), (0, 0.0), (0, -1.0), (0, math.nan), (0, math.inf)])
    def test_a_hop_has_a_layer_and_a_positive_scale(self, layer: int, scale: float) -> None:
        with pytest.raises(ValueError, match="hop"):
            Hop(layer=layer, scale=scale)
