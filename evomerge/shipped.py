"""Where the shipped YAML files lie, and their names. Imports nothing heavy; knows nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_folder", "shipped_names"]


def shipped_folder(kind: str) -> Path:
    """Folder of the shipped files of one kind: `experiments`, `search_spaces`, `fitness` or `cluster`.

    In an installed wheel they lie inside the package; in a checkout they are its top-level folders.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped_names(kind: str) -> list[str]:
    """Names of the shipped YAML files of one kind."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))
