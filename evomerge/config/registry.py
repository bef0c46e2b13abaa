"""Families of configurations: what has a `kind`, and what is built from each kind.

A family is a class like `AlgorithmConfig`; each of its kinds is a subclass, registered once, with its builder. Where a
model has a field of the family's type, a mapping is read as the class of its `kind`. Knows nothing of what is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from evomerge.config.base import Strict

__all__ = ["Builder", "Registered"]

Builder = Callable[..., Any]
Member = TypeVar("Member", bound="Registered")


class Registered(Strict):
    """Base of families. A direct subclass is a family, and its own `kinds` and `builders` start empty.

    Example:
        ::

            @AlgorithmConfig.register("evomerge.population.random_search:build")
            class RandomConfig(AlgorithmConfig):
                kind: Literal["random"]
    """

    kinds: ClassVar[dict[str, type[Registered]]] = {}
    builders: ClassVar[dict[str, Builder | str]] = {}

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls._is_family():
            cls.kinds, cls.builders = {}, {}

    @classmethod
    def _is_family(cls) -> bool:
        """Whether this is a family, not one of its kinds."""
        return cls.__mro__[2] is Strict

    @classmethod
    def register(cls, builder: Builder | str) -> Callable[[type[Member]], type[Member]]:
        """A decorator that adds a kind to the family.

        Args:
            builder: what is called with the configuration, and what the family passes beside it; or
                `"module:name"` of it, which is imported only when something is built.

        Raises:
            ValueError: the class has no `kind: Literal["..."]`, or that kind is taken by another module's class.
        """

        def add(member: type[Member]) -> type[Member]:
            kind = _kind_of(member)
            taken = cls.kinds.get(kind)
            if taken is not None and taken.__module__ != member.__module__:
                raise ValueError(f"the kind {kind!r} is taken by {taken.__module__}.{taken.__name__}; choose another")
            cls.kinds[kind], cls.builders[kind] = member, builder
            return member

        return add

    def built(self, *arguments: Any, **named: Any) -> Any:
        """What this kind's builder makes of the configuration and the arguments."""
        builder = self.builders[self.kind]
        if isinstance(builder, str):
            module, _, name = builder.partition(":")
            builder = getattr(import_module(module), name)
        return builder(self, *arguments, **named)

    @classmethod
    def class_of(cls, data: Any) -> type[Registered]:
        """The class that describes a mapping: that of its kind; the family if it names none that is known."""
        kind = data.get("kind") if isinstance(data, dict) else None
        return cls.kinds.get(kind, cls) if isinstance(kind, str) else cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A family reads a mapping as one of its kinds; a kind reads itself."""
        if not cls._is_family():
            return handler(source)
        return core_schema.with_info_plain_validator_function(cls._of_kind)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """One of the kinds that are known now."""
        if not cls._is_family():
            return handler(schema)
        return {"oneOf": list(_schemas(cls, handler))}

    @classmethod
    def _of_kind(cls, data: Any, info: ValidationInfo) -> Registered:
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise PydanticKnownError("model_attributes_type")
        if "kind" not in data:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        member = cls.class_of(data)
        if member is cls:
            expected = ", ".join(f"'{kind}'" for kind in cls.kinds)
            context = {"discriminator": "'kind'", "tag": str(data["kind"]), "expected_tags": expected}
            raise PydanticKnownError("union_tag_invalid", context)
        if info.mode == "json":  # a file, which is read strictly: see `evomerge.config.loader`
            return member.model_validate_json(json.dumps(data), strict=True)
        return member.model_validate(data)


def _kind_of(member: type[Registered]) -> str:
    values = get_args(member.model_fields["kind"].annotation)
    if len(values) != 1 or not isinstance(values[0], str):
        raise ValueError(f"{member.__name__} needs a key kind: Literal['...'], the name that a user writes")
    return values[0]


def _schemas(family: type[Registered], handler: GetJsonSchemaHandler) -> Iterator[JsonSchemaValue]:
    for member in family.kinds.values():
        yield handler(member.__pydantic_core_schema__)
