"""Keys of experiment files, from the configuration's classes."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from reference_text import table

from evomerge import config
from evomerge.config.registry import Registered

__all__ = ["keys"]


def keys() -> Iterator[str]:
    """Lines of the page about keys."""
    yield "# Keys of experiment files\n"
    yield "`evomerge schema` prints the same as JSON Schema. A key without a default must be there; unknown keys are"
    yield "refused. `space`, `fitness` and `executor` also take the name or path of a file.\n"
    seen: list[type[BaseModel]] = [config.Experiment]
    for model in seen:  # grows while it is read: what a key takes is described after what it stands in
        yield from _section(model)
        for found in _models_of(model):
            if found not in seen:
                seen.append(found)


def _title(model: type[BaseModel]) -> str:
    name = model.__name__.removesuffix("Config")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    kind = _kind(model)
    return f"{name}: `kind: {kind}`" if kind else name


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else None


def _section(model: type[BaseModel]) -> Iterator[str]:
    if _is_family(model):
        kinds = ", ".join(f"[{kind}](#{_anchor(member)})" for kind, member in _own_kinds(model).items())
        yield f"## {_title(model)}\n"
        yield f"One of: {kinds}. Plugins add their own.\n"
        return
    yield f"## {_title(model)}\n"
    if model.__doc__:
        yield inspect.cleandoc(model.__doc__) + "\n"
    fields = [(name, field) for name, field in model.model_fields.items() if name != "kind" or _kind(model) is None]
    if fields:
        yield from table(
            ("key", "takes", "default", "what"),
            [(f"`{name}`", _takes(field), _default(field), field.description or "") for name, field in fields],
        )


def _anchor(model: type[BaseModel]) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", _title(model).lower()).replace(" ", "-")


def _is_family(model: type[BaseModel]) -> bool:
    return Registered in model.__bases__


def _own_kinds(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Kinds of a family, without those of plugins that happen to be loaded."""
    kinds: dict[str, type[BaseModel]] = getattr(model, "kinds", {})
    return {kind: member for kind, member in kinds.items() if member.__module__.startswith("evomerge.")}


def _models_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    if _is_family(model):
        yield from _own_kinds(model).values()
        return
    for field in model.model_fields.values():
        yield from _models_in(field.annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false"}


def _takes(field: FieldInfo) -> str:
    return _bounded(_words(field.annotation), field.metadata)


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(_words(parts[0]), _flat(parts[1:]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts if part is not type(None)))
    if origin is tuple:
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"mapping of names to {_words(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{_title(annotation).replace('`', '')}](#{_anchor(annotation)})"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    return _WORDS.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _flat(metadata: Iterable[Any]) -> list[Any]:
    return [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else (each,))]


def _bounded(words: str, metadata: Iterable[Any]) -> str:
    bounds = [
        f"{sign} {getattr(each, name):g}"
        for each in metadata
        for kind, name, sign in (
            (annotated_types.Ge, "ge", ">="),
            (annotated_types.Gt, "gt", ">"),
            (annotated_types.Le, "le", "<="),
            (annotated_types.Lt, "lt", "<"),
        )
        if isinstance(each, kind)
    ]
    return " ".join([words, *([", ".join(bounds)] if bounds else [])])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default()
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        return f"{len(value)} entries" if isinstance(value[0], BaseModel) else f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, BaseModel):
        return f"`kind: {value.kind}`" if hasattr(value, "kind") else "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
