"""Pydantic's error lists as `Fault`s: the user's path, the line, expected, got, and a near miss where there is one."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evomerge.config.registry import Registered
from evomerge.errors import Fault
from evomerge.yaml_lines import Document, KeyPath

__all__ = ["faults_of", "near"]

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
}

_NAMED = re.compile(r"([a-z_]+(?:\.[a-z_]+)*): ")
"""How a fault of several values together begins: with the one to change, as seen from where they meet."""


def near(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of some words, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type: unions and `Annotated` unpacked."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _members(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _tag(model: Any) -> str | None:
    """The `kind` of a member of a tagged union."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or "kind" not in model.model_fields:
        return None
    return str(next(iter(get_args(model.model_fields["kind"].annotation)), None))


def _step(annotation: Any, part: str | int) -> tuple[Any, bool]:
    """The type one step down, and whether the step stands in the user's file (tags of unions do not)."""
    if isinstance(part, str) and part.startswith("["):
        return annotation, False
    for member in _members(annotation):
        if _tag(member) == part and len(_members(annotation)) > 1:
            return member, False
        if isinstance(member, type) and issubclass(member, BaseModel) and part in member.model_fields:
            return member.model_fields[str(part)].annotation, True
        arguments = get_args(member)
        if get_origin(member) is dict:
            return arguments[1], True
        if get_origin(member) in (tuple, list) and isinstance(part, int):
            return arguments[0], True
    return Any, True


def _known(annotation: Any, data: Any) -> Any:
    """A family of configurations as the one of its kinds that the data is of."""
    family = next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, Registered)), None)
    return annotation if family is None else family.class_of(data)


def _walk(root: Any, location: KeyPath, data: Any) -> tuple[KeyPath, Any]:
    """User path of a pydantic location in the data, and the type that holds its last part."""
    path: list[str | int] = []
    holder = annotation = _known(root, data)
    for part in location:
        holder = annotation
        annotation, shown = _step(annotation, part)
        if shown:
            path.append(part)
            data = _below(data, part)
        annotation = _known(annotation, data)
    return tuple(path), holder


def _below(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (LookupError, TypeError):
        return None


def _message(error: ErrorDetails, holder: Any) -> str:
    kind, got, context = error["type"], error.get("input"), error.get("ctx", {})
    name = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        known = [
            field for member in _members(holder) if hasattr(member, "model_fields") for field in member.model_fields
        ]
        return f"unknown key{near(name, known) or f'; expected one of {sorted(known)}'}"
    if kind == "missing":
        return "required, but missing"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context.get("expected_tags")
        value = context.get("tag", got)
        words = str(expected).replace("'", "").replace(" or ", ", ").split(", ")
        return f"expected {'one of ' if len(words) > 1 else ''}{expected}; got {value!r}{near(str(value), words)}"
    if kind == "union_tag_not_found":
        return "the key 'kind' is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        return f"expected at least {context['min_length']}; got {context['actual_length']}"
    if kind == "string_pattern_mismatch" and "A-Za-z0-9" in str(context["pattern"]):
        return f"expected letters, digits, '_', '.' or '-', a letter or digit first; got {got!r}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}; got {got!r}"
    text = error["msg"][0].lower() + error["msg"][1:]
    return f"{text.replace('input should', 'should')}; got {got!r}"


def _pointed(path: KeyPath, message: str, document: Document) -> Fault:
    """A fault of several values together stands at the one that its message begins with: `budget.evaluations: ...`."""
    value = document.data
    for part in path:
        value = _below(value, part)
    named = _NAMED.match(message)
    keys = tuple(named[1].split(".")) if named else ()
    if named and isinstance(value, dict) and keys[0] in value:
        return document.fault((*path, *keys), message[named.end() :])
    return document.fault(path, message)


def faults_of(error: ValidationError, root: type[BaseModel], document: Document) -> list[Fault]:
    """All faults of one document, in the order of its lines.

    Args:
        error: what pydantic found.
        root: the model that was validated.
        document: the file, for lines.
    """
    faults = []
    for detail in error.errors():
        path, holder = _walk(root, detail["loc"], document.data)
        faults.append(_pointed(path, _message(detail, holder), document))
    return sorted(set(faults), key=lambda fault: (fault.file or "", fault.line or 0, fault.path))
