"""Families of configurations: kinds are registered once, read strictly from files, and built by their builders."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from evomerge.config import AlgorithmConfig, SpaceConfig
from evomerge.config.base import Strict
from evomerge.config.registry import Registered


class Shape(Registered):
    """A family of this test's own."""


@Shape.register(lambda config, scale: scale * config.radius)
class Circle(Shape):
    kind: Literal["circle"]
    radius: Annotated[int, Field(ge=1)] = 1


@Shape.register("math:hypot")
class Point(Shape):
    kind: Literal["point"]


class Drawing(Strict):
    shapes: tuple[Shape, ...]


def read(*shapes: dict[str, Any]) -> Drawing:
    return Drawing.model_validate_json(json.dumps({"shapes": shapes}), strict=True)


def test_a_field_of_the_family_takes_every_kind_and_keeps_it() -> None:
    drawing = read({"kind": "circle", "radius": 3}, {"kind": "point"})
    assert [type(shape) for shape in drawing.shapes] == [Circle, Point]
    assert Drawing.model_validate(drawing.model_dump()) == drawing
    assert drawing.model_dump()["shapes"][0] == {"kind": "circle", "radius": 3}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"kind": "circel"}, "circel"),
        ({"radius": 2}, "kind"),
        ({"kind": "circle", "radius": "2"}, "valid integer"),
        ({"kind": "circle", "radius": 0}, "greater than or equal to 1"),
        ({"kind": "point", "radius": 1}, "Extra inputs"),
        ({"kind": ["circle"]}, "circle"),
    ],
)
def test_what_fits_no_kind_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(shape)


def test_builders_get_the_configuration_first_and_may_be_named() -> None:
    circle, point = read({"kind": "circle", "radius": 3}, {"kind": "point"}).shapes
    assert circle.built(2) == 6
    with pytest.raises(TypeError):
        point.built()


def test_families_do_not_share_their_kinds() -> None:
    assert set(Shape.kinds) == {"circle", "point"}
    assert "cma" in AlgorithmConfig.kinds
    assert not set(AlgorithmConfig.kinds) & set(SpaceConfig.kinds)


def test_a_module_may_register_its_own_kind_again_and_no_other() -> None:
    Shape.register("math:hypot")(Point)
    with pytest.raises(ValueError, match=r"the kind 'cma' is taken by evomerge\.config\.algorithms\.CmaConfig"):

        @AlgorithmConfig.register("math:hypot")
        class Mine(AlgorithmConfig):
            kind: Literal["cma"]


def test_the_schema_lists_every_kind() -> None:
    schema = TypeAdapter(Shape).json_schema()
    assert "circle" in json.dumps(schema)
    assert "point" in json.dumps(schema)
