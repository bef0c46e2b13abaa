"""mergekit configurations as recipes: the round trip, how values reach tensors, and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, OptionValue, Recipe, Role, options_of
from evomerge.recipe.mergekit_methods import METHOD_OF, METHODS
from evomerge.recipe.mergekit_read import read_mergekit
from evomerge.recipe.mergekit_yaml import inexpressible, to_mergekit

PATHS = {"base": "/models/base", "one": "org/one", "two": "/models/two"}


@dataclass(frozen=True)
class Tensor:
    name: str
    role: Role
    layer: int | None


def llama(layers: int) -> list[Tensor]:
    inside: list[tuple[str, Role]] = [
        ("self_attn.q_proj.weight", "attention"),
        ("self_attn.k_proj.weight", "attention"),
        ("mlp.up_proj.weight", "mlp"),
        ("input_layernorm.weight", "norm"),
    ]
    return [
        Tensor("model.embed_tokens.weight", "embed", None),
        *(Tensor(f"model.layers.{i}.{name}", role, i) for i in range(layers) for name, role in inside),
        Tensor("model.norm.weight", "head", None),
        Tensor("lm_head.weight", "head", None),
    ]


def read(config: Any, layers: int = 5) -> Recipe:
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
    return read_mergekit(text, "mergekit.yml").recipe(llama(layers), dtype="float16")


def faults_of(config: Any, layers: int = 5) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(config, layers)
    return [str(fault) for fault in caught.value.faults]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes whose every number and option mergekit has, over 1 to 12 layers."""
    operator = OPERATORS[draw(st.sampled_from(sorted(METHOD_OF)))]
    names = ("one", "two") if operator.needs_base else ("base", "two", "one")
    sources = names[: operator.max_sources]
    switchable: dict[str, tuple[OptionValue, ...]] = {
        "normalize": (False, True),
        "aggregate": ("weighted_mean", "sum"),
        "rescale": ("l1", "none"),
        "per": operator.options.get("per", ()),
    }
    changed = {name: draw(st.sampled_from(values)) for name, values in switchable.items() if name in operator.options}
    layers, numbers = draw(st.integers(1, 12)), draw(st.randoms(use_true_random=False))
    grid = draw(st.sampled_from([1, 2, 1000]))  # few distinct values give fields that are partly constant
    fields = {}
    for name, parameter in operator.parameters.items():
        width = len(sources) if parameter.scope == "source" else 1
        by_role: dict[Role, list[list[float]]] = {
            role: [
                [
                    parameter.low + numbers.randrange(grid) / grid * (parameter.high - parameter.low)
                    for _ in range(width)
                ]
                for _ in range(layers if role in DEPTH_ROLES else 1)
            ]
            for role in ROLES
        }
        absent = METHOD_OF[operator.name].absent.get(name)
        fields[name] = Field.of(by_role) if absent is None else Field.constant([absent] * width, layers)
    return Recipe(
        operator=operator.name,
        options=options_of(operator, "mergekit", **changed),
        base="base" if operator.needs_base else None,
        sources=sources,
        parameters=tuple(sorted(fields.items())),
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
    )


@settings(max_examples=60, deadline=None)
@given(recipe=recipes())
def test_out_and_in_again_is_the_same_recipe(recipe: Recipe) -> None:
    assert [reason for reason in inexpressible(recipe) if not reason.startswith("masks")] == []
    tensors = llama(recipe.layers)
    config = read_mergekit(to_mergekit(recipe, PATHS, tensors), "mergekit.yml")
    assert {name: config.models[name] for name in recipe.models} == {name: PATHS[name] for name in recipe.models}
    assert config.recipe(tensors, dtype="float16").digest == recipe.digest


def ties(**changes: Any) -> dict[str, Any]:
    models = [{"model": "b", "parameters": {"weight": 0.5}}, {"model": "c", "parameters": {"weight": 0.25}}]
    return {"merge_method": "ties", "base_model": "a", "models": models, **changes}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, None),
        ({"tokenizer_source": "base"}, "base"),
        ({"tokenizer_source": "a"}, "base"),
        ({"tokenizer_source": "c"}, "c"),
        ({"tokenizer": {"source": "b", "tokens": None}, "chat_template": "auto"}, "b"),
    ],
)
def test_whose_tokenizer_the_merged_model_takes(said: dict[str, Any], expected: str | None) -> None:
    assert read_mergekit(yaml.safe_dump(ties(**said)), "mergekit.yml").tokenizer == expected
    soup = {"merge_method": "linear", "models": [{"model": m} for m in ("b", "c")], "parameters": {"weight": 1}}
    if expected != "base" or "a" not in said.values():
        chosen = read_mergekit(yaml.safe_dump(soup | said), "mergekit.yml").tokenizer
        assert chosen == {"b": "base"}.get(str(expected), expected)


def test_defaults_are_mergekits() -> None:
    recipe = read(ties())
    assert recipe.models == ("base", "b", "c")
    assert dict(recipe.options) == {"trim": "tensor", "vote": "weighted", "aggregate": "weighted_mean"}
    assert recipe.parameter("density") == Field.constant([1.0, 1.0], 5)
    assert recipe.parameter("lambda") == Field.constant([1.0], 5)
    assert recipe.parameter("weight") == Field.constant([0.5, 0.25], 5)
    assert recipe.dtype == "float16"
    assert read(ties(dtype="bfloat16")).dtype == "bfloat16"
    assert read(ties(dtype="bfloat16", out_dtype="float32", parameters={"int8_mask": True})).dtype == "float32"


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        ("breadcrumbs", {"density": 1.0, "gamma": 0.01, "lambda": 1.0}),
        ("della", {"density": 1.0, "epsilon": 0.15, "lambda": 1.0}),
        ("ram", {"epsilon": 1e-5}),
        ("ramplus_tl", {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}),
        ("sce", {"select_topk": 1.0}),
    ],
)
def test_defaults_of_other_methods(method: str, defaults: dict[str, float]) -> None:
    weighted = "weight" in OPERATORS[METHODS[method].operator].parameters
    models = [{"model": "b", "parameters": {"weight": 0.5} if weighted else {}}]
    recipe = read(ties(merge_method=method, models=models))
    assert {name: recipe.parameter(name) for name in defaults} == {
        name: Field.constant([value], 5) for name, value in defaults.items()
    }


@pytest.mark.parametrize(
    ("method", "normalize", "options"),
    [
        ("ties", False, {"aggregate": "sum"}),
        ("dare_ties", None, {"aggregate": "sum", "rescale": "l1"}),
        ("dare_ties", True, {"aggregate": "weighted_mean"}),
        ("task_arithmetic", None, {"normalize": False}),
        ("task_arithmetic", True, {"normalize": True}),
    ],
)
def test_switches(method: str, normalize: bool | None, options: dict[str, Any]) -> None:
    parameters = {} if normalize is None else {"normalize": normalize}
    found = dict(read(ties(merge_method=method, parameters=parameters)).options)
    assert {name: found[name] for name in options} == options


def test_gradients_run_over_depth_and_edges_take_their_first_value() -> None:
    recipe = read(ties(parameters={"lambda": [0.0, 1.0, 0.5]}))
    field = recipe.parameter("lambda")
    assert [field.at("mlp", layer)[0] for layer in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert field.at("embed", None) == field.at("head", None) == (0.0,)


def test_a_gradient_over_one_layer_takes_its_last_value() -> None:
    field = read(ties(parameters={"lambda": [0.0, 1.0]}), layers=1).parameter("lambda")
    assert (field.at("mlp", 0), field.at("embed", None)) == ((1.0,), (0.0,))


def test_the_first_filter_that_is_part_of_the_name_wins_and_no_match_falls_through() -> None:
    filters = [{"filter": "mlp", "value": 0.1}, {"filter": "layers.1.", "value": [0.2, 0.6]}]
    config = ties(parameters={"weight": {"filter": "*", "value": 0.9}})
    config["models"][0]["parameters"]["weight"] = filters
    field = read(config).parameter("weight")
    assert [field.at("mlp", 1)[0], field.at("attention", 1)[0], field.at("attention", 2)[0]] == [0.1, 0.3, 0.9]
    assert [field.at("embed", None)[0], field.at("head", None)[0]] == [0.9, 0.9]
    assert field.at("mlp", 1)[1] == 0.25


def test_slices_have_gradients_and_settings_of_their_own() -> None:
    def part(start: int, stop: int, weight: Any, **own: Any) -> dict[str, Any]:
        sources: list[dict[str, Any]] = [{"model": model, "layer_range": [start, stop]} for model in ("b", "c")]
        sources[0]["parameters"] = {"weight": weight}
        return {"sources": sources, **own}

    slices = [
        part(0, 3, [0.0, 1.0]),
        part(3, 5, [0.4, 0.6], parameters={"weight": 0.7, "lambda": 2.0}),
    ]
    config = {"merge_method": "ties", "base_model": "a", "slices": slices, "parameters": {"weight": 0.1}}
    recipe = read(config)
    weights = [recipe.parameter("weight").at("norm", layer) for layer in range(5)]
    assert weights == [(0.0, 0.1), (0.5, 0.1), (1.0, 0.1), (0.4, 0.7), (0.6, 0.7)]
    assert [recipe.parameter("weight").at(edge, None) for edge in ("embed", "head")] == [(0.0, 0.1), (0.4, 0.7)]
    assert [recipe.parameter("lambda").at("mlp", layer)[0] for layer in range(5)] == [1, 1, 1, 2, 2]


def test_the_base_is_left_out_or_averaged_as_in_mergekit() -> None:
    models = [{"model": "a"}, {"model": "b", "parameters": {"weight": 1}}]
    assert read(ties(models=models)).sources == ("b",)
    recipe = read({"merge_method": "linear", "base_model": "a", "models": models, "parameters": {"weight": 2}})
    assert (recipe.base, recipe.sources) == (None, ("base", "b"))
    recipe = read({"merge_method": "linear", "models": models[1:], "base_model": "a", "parameters": {"weight": 2}})
    assert (recipe.sources, recipe.parameter("weight").at("mlp", 0)) == (("b", "base"), (1, 2))
    for pair in (["a", "b"], ["b", "a"], ["b"]):
        spherical = {"merge_method": "slerp", "base_model": "a", "models": [{"model": name} for name in pair]}
        assert read({**spherical, "parameters": {"t": 0.3}}).models == ("base", "b")


def test_pool_names_come_from_paths() -> None:
    paths = ["/x/one", "y/one", "/models/two: odd name/", "../base", "__"]
    config = {"merge_method": "linear", "models": [{"model": path} for path in ["first", *paths]]}
    models = read_mergekit(yaml.safe_dump(config), "mergekit.yml").models
    assert dict(models) == {
        "base": "first", "one": paths[0], "one-2": paths[1], "two-odd-name": paths[2], "base-2": paths[3],
        "model": paths[4],
    }  # fmt: skip


def test_adapters_stand_behind_their_base() -> None:
    config = ties(models=[{"model": "a+x/lora"}, {"model": "c"}], tokenizer_source="a+x/lora")
    read = read_mergekit(yaml.safe_dump(config), "mergekit.yml")
    assert dict(read.models) == {"base": "a", "lora": "x/lora", "c": "c"}
    assert read.tokenizer == "lora"


def test_adapters_bring_the_base_that_a_file_does_not_name() -> None:
    config = {"merge_method": "linear", "models": [{"model": "/m/a+x"}, {"model": "/m/a+y"}, {"model": "/m/a"}]}
    assert dict(read_mergekit(yaml.safe_dump(config), "mergekit.yml").models) == {"base": "/m/a", "x": "x", "y": "y"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("[1, 2]", "expected a mapping"),
        ("{merge_method: linear", "not valid YAML"),
        (ties(merge_method="arcee_fusion"), "$.merge_method (line 1): expected one of linear"),
        (ties(modules={}), "$.modules (line 10): cannot be expressed here"),
        (ties(slices=[]), "either 'models' or 'slices'"),
        (ties(models=[]), "$.models (line 3): expected a list of mappings; got []"),
        (ties(base_model=None), "$.base_model (line 2): ties needs a base model"),
        (ties(models=[{"model": "a"}]), "ties merges at least 1 model; got none"),
        (ties(merge_method="slerp", parameters={"t": 0.5}), "slerp merges exactly 1 model beside the base; got b, c"),
        (ties(base_model="a+b"), "$.base_model (line 2): '+' names an adapter; expected a full model here"),
        (ties(models=[{"model": "a+b+c"}]), "'+' names an adapter; expected a full model here"),
        (ties(models=[{"model": "a+"}]), "expected the path of a model; got ''"),
        (ties(models=[{"model": "b+c"}]), "expected an adapter on the base of this merge, 'a'; got 'b+c'; merge it"),
        (
            {"merge_method": "linear", "models": [{"model": "b"}, {"model": "c+x"}], "parameters": {"weight": 1}},
            "expected an adapter on the base of this merge, 'b'; got 'c+x'",
        ),
        (ties(models=[{"model": "b"}, {"model": "b"}]), "'b' stands twice"),
        (ties(models=[{"model": "b", "weight": 1}]), "$.models[0].weight (line 5): cannot be expressed here"),
        (
            ties(tokenizer_source="union"),
            "$.tokenizer_source (line 10): expected 'base' or one of the models (a, b, c)",
        ),
        (ties(tokenizer_source="d"), "got 'd'"),
        (ties(tokenizer={}), "$.tokenizer (line 10): expected 'base' or one of the models (a, b, c); got 'union'"),
        (ties(tokenizer={"source": "b", "tokens": {"x": {"source": "c"}}}), "$.tokenizer.tokens (line 12): cannot be"),
        (ties(tokenizer={"source": "b", "pad_to_multiple_of": 8}), "$.tokenizer.pad_to_multiple_of (line 12)"),
        (ties(tokenizer="b"), "$.tokenizer (line 10): expected either 'tokenizer_source' or a mapping"),
        (ties(tokenizer_source="b", tokenizer={"source": "b"}), "$.tokenizer (line 11): expected either"),
        (ties(chat_template="chatml"), "expected 'auto'"),
        (ties(dtype="float64"), "expected one of bfloat16, float16, float32; got 'float64'"),
        (ties(parameters={"rescale": True}), "ties with rescale: true cannot be expressed here"),
        (ties(parameters={"normalize": 1}), "expected true or false; got 1"),
        (ties(parameters={"epsilon": 1}), "mergekit ignores 'epsilon', or it cannot be expressed here"),
        (ties(parameters={"density": 1.5}), "$.parameters.density (line 11): expected a number in [0, 1]; got 1.5"),
        (ties(parameters={"density": [1, True]}), "$.parameters.density[1] (line 13)"),
        (ties(parameters={"density": []}), "expected a number in [0, 1]; got []"),
        (ties(parameters={"density": [{"filter": 3, "value": 1}]}), "expected a part of tensor names; got 3"),
        (ties(parameters={"density": [{"valeu": 1}]}), "expected 'value' and perhaps 'filter'"),
        (ties(models=[{"model": "b", "parameters": {"lambda": 1}}]), "lambda is shared by all models"),
        (ties(models=[{"model": "b", "parameters": {"normalize": True}}]), "only be set for the whole merge"),
        (ties(models=[{"model": "b"}]), "b: weight is required, and nothing gives one to model.embed_tokens.weight"),
    ],
)
def test_refusals(config: Any, expected: str) -> None:
    assert any(expected in fault for fault in faults_of(config)), faults_of(config)


def sliced(*ranges: list[int]) -> dict[str, Any]:
    sources = [[{"model": "b", "layer_range": layers}] for layers in ranges]
    config = ties(slices=[{"sources": source} for source in sources], parameters={"weight": 1.0})
    del config["models"]
    return config


@pytest.mark.parametrize("ranges", [[[0, 3], [2, 5]], [[2, 5], [0, 2]], [[0, 2], [3, 5]], [[1, 5]]], ids=str)
def test_moved_repeated_and_missing_layers_are_refused(ranges: list[list[int]]) -> None:
    config = sliced(*ranges)
    assert any("layers that are left out, repeated, moved" in fault for fault in faults_of(config))


def test_slices_must_be_the_whole_of_one_set_of_models() -> None:
    config = sliced([0, 3])
    assert faults_of(config) == ["$.slices (line 3): expected all 5 layers of the models; got 3"]
    slices = [{"sources": [{"model": model, "layer_range": [at, at + 1]}]} for at, model in enumerate("bc")]
    assert any("same models in the same order" in fault for fault in faults_of({**config, "slices": slices}))


@pytest.mark.parametrize(("part", "pair"), [("q_proj", ("q_proj", "k_proj")), ("lm_head", ("norm", "lm_head"))])
def test_values_finer_than_a_module_are_refused_by_name(part: str, pair: tuple[str, str]) -> None:
    settings_of = [{"filter": part, "value": 0.5}, {"value": 0.2}]
    (fault,) = faults_of(ties(parameters={"lambda": settings_of}))
    assert all(f"{name}.weight gets" in fault or f"{name}.weight 0." in fault for name in pair), fault
    assert fault.startswith("$.parameters.lambda (line 11)")


def test_all_faults_come_at_once() -> None:
    broken = [{"model": "b", "parameters": {"weight": "much", "density": 2}}, {"model": "c", "wieght": 1}]
    found = faults_of(ties(models=broken, dtype="int8", parameters={"lamda": 1}))
    paths = ["models[0].parameters.weight", "models[0].parameters.density", "models[1].wieght", "dtype"]
    assert {fault.split(" ")[0] for fault in found} == {f"$.{path}" for path in [*paths, "parameters.lamda"]}


def test_every_operator_and_option_of_the_table_exists() -> None:
    for method in METHOD_OF.values():
        operator = OPERATORS[method.operator]
        for values in product(*(switch.options.values() for switch in method.switches.values())):
            for chosen in values:
                options_of(operator, "mergekit", **chosen)
