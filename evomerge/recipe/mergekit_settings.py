"""Parameter settings of mergekit configurations: numbers, gradients over depth, and filters on tensor names.

Knows nothing of methods, models or recipes.

Legend: `t` depth inside a slice, 0 at its first layer and 1 at its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evomerge.yaml_lines import KeyPath

__all__ = ["Settings", "faults_in", "value_at"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One `parameters` mapping and where it stands in the document."""

    path: KeyPath
    values: dict[str, Any]


def value_at(setting: Any, tensor: str, t: float) -> float | None:
    """What a setting gives one tensor; None if none of its filters is part of the name.

    A list of numbers is a gradient, interpolated linearly from its first number at t = 0 to its last at t = 1. In a
    list of filters the first that is part of the name wins; no filter, or `*`, takes every tensor.

    Args:
        setting: as it stands in the file, without faults.
        tensor: the tensor's name.
        t: depth inside the slice, 0 to 1.
    """
    if isinstance(setting, dict):
        return _filtered([setting], tensor, t)
    if not isinstance(setting, list):
        return float(setting)
    if setting and isinstance(setting[0], dict):
        return _filtered(setting, tensor, t)
    return _interpolated(setting, t)


def _filtered(entries: list[dict[str, Any]], tensor: str, t: float) -> float | None:
    for entry in entries:
        part = entry.get("filter")
        if part is None or part == "*" or part in tensor:
            return value_at(entry["value"], tensor, t)
    return None


def _interpolated(values: list[float], t: float) -> float:
    place = t * (len(values) - 1)
    before = int(place)
    share = place - before
    return (1 - share) * values[before] + share * values[min(before + 1, len(values) - 1)]


def faults_in(setting: Any, path: KeyPath, low: float, high: float) -> Iterator[tuple[KeyPath, str]]:
    """Everything wrong with a setting, as pairs of place and message.

    Args:
        setting: as it stands in the file.
        path: where.
        low: smallest legal value.
        high: largest legal value.
    """
    if isinstance(setting, list) and setting and not isinstance(setting[0], dict):
        for index, value in enumerate(setting):
            yield from _number_faults(value, (*path, index), low, high)
    elif isinstance(setting, list) and setting:
        for index, entry in enumerate(setting):
            yield from _entry_faults(entry, (*path, index), low, high)
    elif isinstance(setting, dict):
        yield from _entry_faults(setting, path, low, high)
    else:
        yield from _number_faults(setting, path, low, high)


def _number_faults(value: Any, path: KeyPath, low: float, high: float) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        yield path, f"expected a number in [{low:g}, {high:g}]; got {value!r}"


def _entry_faults(entry: Any, path: KeyPath, low: float, high: float) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(entry, dict) or "value" not in entry or not entry.keys() <= {"filter", "value"}:
        yield path, f"expected 'value' and perhaps 'filter'; got {entry!r}"
        return
    if not isinstance(entry.get("filter"), str | None):
        yield (*path, "filter"), f"expected a part of tensor names; got {entry['filter']!r}"
    if isinstance(entry["value"], dict):
        yield (*path, "value"), f"expected a number or a list of numbers; got {entry['value']!r}"
    else:
        yield from faults_in(entry["value"], (*path, "value"), low, high)
