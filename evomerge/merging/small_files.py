"""The small files of a model folder: read whole, with errors that name them.

Knows nothing of what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError

__all__ = ["NESTED", "read_bytes", "read_config", "read_json", "read_text", "unreadable"]

NESTED = frozenset({"text_config", "vision_config", "audio_config", "rope_parameters", "rope_scaling"})
"""Settings of a configuration that are mappings themselves."""


def read_bytes(file: Path) -> bytes:
    """A small file of a model.

    Raises:
        PoolError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


def read_text(file: Path) -> str:
    """A text file of a model.

    Raises:
        PoolError: it cannot be read, or is no UTF-8.
    """
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PoolError(f"{file}: expected text in UTF-8; got {error}; download or copy the file again") from error


def unreadable(file: Path, error: OSError) -> PoolError:
    """What to raise when the operating system refuses a read."""
    return PoolError(f"{file}: cannot be read ({error.strerror or error}); check the path and its permissions")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        PoolError: it cannot be read, or holds no JSON object.
    """
    try:
        data = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{file}: expected JSON; got {error}; download or copy the file again") from error
    if not isinstance(data, dict):
        raise PoolError(f"{file}: expected a JSON object; got {type(data).__name__}; download or copy the file again")
    return data


def read_config(file: Path) -> dict[str, Any]:
    """A model's configuration; settings that are null where others read a mapping, list or number are left out.

    Raises:
        PoolError: it cannot be read, or a setting is of another kind than in any configuration.
    """
    return _checked(file, "", read_json(file))


def _checked(file: Path, prefix: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    checked = {key: value for key, value in settings.items() if key not in _KINDS or value is not None}
    for key in checked.keys() & _KINDS.keys():
        expected, is_kind = _KINDS[key]
        if not is_kind(checked[key]):
            raise PoolError(
                f"{file}: {prefix}{key}: expected {expected}; got {checked[key]!r:.60}; download or copy the file again"
            )
        if key in NESTED:
            checked[key] = _checked(file, f"{prefix}{key}.", checked[key])
    return checked


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(NESTED, ("a mapping", lambda value: isinstance(value, dict))),
    "architectures": ("a list of names", _is_list_of_names),
    "rope_theta": ("a number", _is_number),
}
"""What is looked into, and what it must be."""
