from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, Preset, Recipe, Role, options_of, uniform
from evomerge.recipe.averaging import as_linear
from evomerge.recipe.mergekit_methods import METHOD_OF
from evomerge.recipe.mergekit_yaml import inexpressible, to_mergekit

LAYERS = 12
PATHS = {"base": "/models/base", "one": "org/one", "two": "/models/two: odd name"}


DETERMINISTIC = ("breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ram_plus", "nearswap")


@dataclass(frozen=True)
class Tensor:
    name: str
    role: Role
    layer: int | None


def llama() -> list[Tensor]:
    inside: list[tuple[str, Role]] = [
        ("self_attn.q_proj.weight", "attention"),
        ("self_attn.q_norm.weight", "attention"),
        ("mlp.up_proj.weight", "mlp"),
        ("input_layernorm.weight", "norm"),
        ("post_attention_layernorm.weight", "norm"),
    ]
    return [
        Tensor("model.embed_tokens.weight", "embed", None),
        *(Tensor(f"model.layers.{i}.{name}", role, i) for i in range(LAYERS) for name, role in inside),
        Tensor("model.norm.weight", "head", None),
        Tensor("lm_head.weight", "head", None),
    ]


def gpt2() -> list[Tensor]:
    inside: list[tuple[str, Role]] = [
        ("attn.c_attn.bias", "attention"),
        ("mlp.c_fc.weight", "mlp"),
        ("ln_1.bias", "norm"),
    ]
    return [
        Tensor("wte.weight", "embed", None),
        Tensor("wpe.weight", "embed", None),
        *(Tensor(f"h.{i}.{name}", role, i) for i in range(LAYERS) for name, role in inside),
        Tensor("ln_f.weight", "head", None),
    ]


def mixed() -> list[Tensor]:
    """One module that holds tensors of two roles, as DBRX has."""
    inside: list[tuple[str, Role]] = [
        ("norm_attn_norm.attn.Wqkv.weight", "attention"),
        ("norm_attn_norm.norm_1.weight", "norm"),
        ("ffn.w1", "mlp"),
    ]
    return [Tensor(f"transformer.blocks.{i}.{name}", role, i) for i in range(LAYERS) for name, role in inside]


FAMILIES = {"llama": llama(), "gpt2": gpt2(), "mixed": mixed()}


def arriving(setting: Any, name: str) -> float:
    """The value that mergekit gives a tensor: that of the first filter that is part of its name."""
    if isinstance(setting, float):
        return setting
    return float(next(entry["value"] for entry in setting if entry.get("filter", "") in name))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    operator = OPERATORS[draw(st.sampled_from(sorted(OPERATORS)))]
    sources = ("one", "two")[: operator.max_sources]
    random = draw(st.randoms(use_true_random=False))
    grid = draw(st.sampled_from([1, 2, 1000]))  # few distinct values give fields that are partly constant
    parameters = []
    for name, parameter in sorted(operator.parameters.items()):
        width = len(sources) if parameter.scope == "source" else 1
        by_role: dict[Role, list[list[float]]] = {
            role: [
                [parameter.low + random.randrange(grid) / grid * (parameter.high - parameter.low) for _ in range(width)]
                for _ in range(LAYERS if role in DEPTH_ROLES else 1)
            ]
            for role in ROLES
        }
        parameters.append((name, Field.of(by_role)))
    return Recipe(
        operator=operator.name,
        options=options_of(operator, draw(st.sampled_from(["paper", "mergekit"]))),
        base="base" if operator.needs_base else None,
        sources=sources,
        parameters=tuple(parameters),
        dtype="bfloat16",
    )


@settings(max_examples=40)
@given(recipe=recipes(), family=st.sampled_from(sorted(FAMILIES)))
def test_every_value_arrives_at_its_tensor(recipe: Recipe, family: str) -> None:
    config = yaml.safe_load(to_mergekit(recipe, PATHS, FAMILIES[family]))
    recipe = as_linear(recipe)
    operator = OPERATORS[recipe.operator]
    absent = METHOD_OF[recipe.operator].absent if recipe.operator in METHOD_OF else {}
    assert [model["model"] for model in config["models"]] == [PATHS[source] for source in recipe.sources]
    for tensor in FAMILIES[family]:
        for name, parameter in operator.parameters.items():
            if name in absent:
                assert name not in config["parameters"]
                continue
            row = recipe.parameter(name).at(tensor.role, tensor.layer)
            if parameter.scope == "shared":
                assert arriving(config["parameters"][name], tensor.name) == row[0]
            else:
                got = [arriving(model["parameters"][name], tensor.name) for model in config["models"]]
                assert got == list(row)


@settings(max_examples=40)
@given(recipe=recipes())
def test_the_file_says_what_it_cannot_reproduce(recipe: Recipe) -> None:
    text = to_mergekit(recipe, PATHS, llama())
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [f"# not reproducible with mergekit: {reason}" for reason in inexpressible(recipe)]


def test_constant_values_stay_numbers() -> None:
    text = to_mergekit(uniform(["one", "two"], layers=LAYERS, dtype="bfloat16"), PATHS, llama())
    assert yaml.safe_load(text) == {
        "merge_method": "linear",
        "models": [{"model": PATHS[name], "parameters": {"weight": 1.0}} for name in ("one", "two")],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def recipe_of(operator: str, preset: Preset, density: float = 0.5, scale: float = 0.9) -> Recipe:
    table = OPERATORS[operator]
    sources = ("one", "two")[: table.max_sources]
    values = {"density": density, "weight": 0.7, "lambda": scale, "t": 0.3, "metric": 0.5, "power": 2.0}
    return Recipe(
        operator=operator,
        options=options_of(table, preset),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple(
            (
                name,
                Field.constant(
                    [values.get(name, parameter.default or 0.0)] * (len(sources) if parameter.scope == "source" else 1),
                    LAYERS,
                ),
            )
            for name, parameter in sorted(table.parameters.items())
        ),
        dtype="float32",
    )


@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "ties", "slerp", *DETERMINISTIC])
def test_mergekits_own_presets_are_reproducible(operator: str) -> None:
    assert inexpressible(recipe_of(operator, "mergekit")) == []


@pytest.mark.parametrize(
    ("operator", "method"),
    [*((name, name) for name in DETERMINISTIC if name != "ram_plus"), ("ram_plus", "ramplus_tl"), ("della", "della")],
)
def test_methods_have_mergekits_names(operator: str, method: str) -> None:
    config = yaml.safe_load(to_mergekit(recipe_of(operator, "mergekit"), PATHS, llama()))
    assert config["merge_method"] == method


@pytest.mark.parametrize("operator", ["nuslerp", "multislerp", "karcher", "metric_average", "decay_average"])
def test_operators_on_weights_are_reproducible(operator: str) -> None:
    assert inexpressible(recipe_of(operator, "mergekit")) == []
    assert "base_model" not in yaml.safe_load(to_mergekit(recipe_of(operator, "mergekit"), PATHS, llama()))


@pytest.mark.parametrize(
    ("operator", "method"),
    [("nuslerp_delta", "nuslerp"), ("multislerp_delta", "multislerp"), ("model_stock", "model_stock")],
)
def test_a_scale_is_reproducible_only_where_there_is_one(operator: str, method: str) -> None:
    recipe = recipe_of(operator, "mergekit", scale=1.0)
    config = yaml.safe_load(to_mergekit(recipe, PATHS, llama()))
    assert inexpressible(recipe) == []
    assert (config["merge_method"], config["base_model"]) == (method, PATHS["base"])
    assert "lambda" not in config["parameters"]
    assert inexpressible(recipe_of(operator, "mergekit", scale=0.9)) == ["lambda: it has none"]


@pytest.mark.parametrize("operator", ["metagpt", "consensus", "magmax", "exclusive", "fusion", "iso_c"])
def test_operators_that_mergekit_lacks_are_named(operator: str) -> None:
    assert inexpressible(recipe_of(operator, "mergekit")) == [f"{operator}: it has no such method"]


def test_the_papers_della_and_sce_are_not_reproducible() -> None:
    reasons = inexpressible(recipe_of("della", "paper"))
    assert [reason.split(":")[0] for reason in reasons] == [
        "vote=unweighted",
        "aggregate=mean",
        "rescale=inverse",
        "masks",
    ]
    by_tensor = replace(
        recipe_of("della", "mergekit"), options=options_of(OPERATORS["della"], "mergekit", rank="tensor")
    )
    assert [reason.split(":")[0] for reason in inexpressible(by_tensor)] == ["rank=tensor", "masks"]
    assert [reason.split(":")[0] for reason in inexpressible(recipe_of("sce", "paper"))] == ["floor=False"]


def test_core_space_is_not_reproducible_where_it_matters() -> None:
    reason = "space=core: it merges weights"
    assert inexpressible(replace(recipe_of("ties", "mergekit"), space="core")) == [reason]
    assert inexpressible(replace(recipe_of("task_arithmetic", "mergekit"), space="core")) == []


@pytest.mark.parametrize("operator", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_masks_are_its_own(operator: str) -> None:
    assert inexpressible(recipe_of(operator, "mergekit")) == ["masks: it draws its own at random"]
    assert inexpressible(recipe_of(operator, "mergekit", density=1.0)) == []


def test_the_papers_ties_is_not_reproducible() -> None:
    reasons = inexpressible(recipe_of("ties", "paper"))
    assert [reason.split(":")[0] for reason in reasons] == ["trim=model", "vote=unweighted", "aggregate=mean"]


@pytest.mark.parametrize(
    ("operator", "switches"),
    [
        ("task_arithmetic", {"normalize": False}),
        ("ties", {"normalize": True, "rescale": False}),
        ("dare_linear", {"normalize": False, "rescale": True}),
        ("dare_ties", {"normalize": False, "rescale": True}),
        ("breadcrumbs", {"normalize": False, "rescale": False}),
        ("breadcrumbs_ties", {"normalize": False, "rescale": False}),
        ("della", {"normalize": True, "rescale": True}),
        ("della_linear", {"normalize": False, "rescale": True}),
        ("slerp", {}),
        ("nuslerp_delta", {"nuslerp_row_wise": False, "nuslerp_flatten": True}),
        ("multislerp_delta", {"normalize_weights": True}),
        ("model_stock", {"filter_wise": False}),
    ],
)
def test_no_switch_is_left_to_a_default(operator: str, switches: dict[str, bool]) -> None:
    config = yaml.safe_load(to_mergekit(recipe_of(operator, "mergekit"), PATHS, llama()))
    assert {key: value for key, value in config["parameters"].items() if isinstance(value, bool)} == switches
    assert config["base_model"] == PATHS["base"]


def test_a_model_without_a_path_is_an_error() -> None:
    with pytest.raises(KeyError, match="two"):
        to_mergekit(recipe_of("linear", "paper"), {"one": "somewhere"}, llama())
