"""YAML as plain data plus the line of every value. Safe: no tags, no objects, no duplicate keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from evomerge.errors import ConfigError, Fault

__all__ = ["Document", "KeyPath", "Place", "dotted", "parse"]

KeyPath = tuple[str | int, ...]
"""Keys and indices from the root of a document."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads `1e-3` as a number (YAML 1.1 alone wants `1.0e-3`)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line (from 1) and, if it is not the document's own, the file or option."""

    line: int | None
    source: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Parsed data that remembers where each value was written.

    Attributes:
        source: what to call it in messages.
        data: mappings, lists and scalars; changed by `put` and `graft` only.
        places: where each value stands, by path.
    """

    source: str
    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def fault(self, path: KeyPath, message: str) -> Fault:
        """A fault at a value, or at the nearest thing around it that was written."""
        known = path
        while known and known not in self.places:
            known = known[:-1]
        place = self.places.get(known, Place(None))
        return Fault(path=dotted(path), message=message, line=place.line, file=place.source)

    def put(self, path: KeyPath, value: Any, place: Place) -> bool:
        """Write a value under keys of nested mappings, making them as needed; False if a key leads into no mapping."""
        target = self.data
        for key in path[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return False
        target[path[-1]] = value
        self.places[path] = place
        return True

    def graft(self, path: KeyPath, other: Document) -> None:
        """Put another document's data under a key; faults inside it name that document."""
        self.put(path, other.data, Place(1, other.source))
        for inner, place in other.places.items():
            self.places[(*path, *inner)] = Place(place.line, place.source or other.source)


def dotted(path: KeyPath) -> str:
    """`("a", 0, "b")` as `$.a[0].b`."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


class _Reader:
    """Walks the node graph once, building data, lines and faults."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._open: set[int] = set()
        self.places: dict[KeyPath, Place] = {}
        self.faults: list[Fault] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places.setdefault(path, Place(node.start_mark.line + 1))
        if id(node) in self._open:
            self._fault(path, node, "an alias that contains itself; write the value out")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        seen = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for name in sorted({name for name in seen if seen.count(name) > 1}):
            self._fault((*path, name), node, "the key stands twice; keep one")
        self._loader.flatten_mapping(node)
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a collection"
                self._fault(path, key_node, f"keys must be text; got {shown!r}; put it in quotes")
                continue
            self.places[(*path, key)] = Place(key_node.start_mark.line + 1)
            data[key] = self.read(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            detail = getattr(error, "problem", None) or error
            self._fault(path, node, f"cannot be read as {node.tag.rsplit(':', 1)[-1]}: {detail}")
            return None
        if value is None or isinstance(value, str | int | float):
            return value
        return node.value  # dates and the like stay the text that was written

    def _fault(self, path: KeyPath, node: yaml.Node, message: str) -> None:
        self.faults.append(Fault(path=dotted(path), message=message, line=node.start_mark.line + 1))


def parse(text: str, source: str) -> Document:
    """Parse one YAML document.

    Args:
        text: the file's content.
        source: its name in messages.

    Raises:
        ConfigError: text that is no YAML, several documents, duplicate keys, keys that are not text, unsafe tags.
    """
    loader = None
    try:
        loader = _Loader(text)
        reader = _Reader(loader)
        node = loader.get_single_node()
        data = None if node is None else reader.read(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = None if mark is None else mark.line + 1
        raise ConfigError(source, [Fault(path="$", message=f"not valid YAML: {problem}", line=line)]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if reader.faults:
        raise ConfigError(source, reader.faults)
    return Document(source=source, data=data, places=reader.places)
