"""Plugins: files of the user's that register algorithms, spaces and operators, run before an experiment is read.

A plugin is code: a run, and a look at a run, execute it. Knows nothing of what it registers.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from evomerge.errors import ConfigError, Fault

__all__ = ["load_plugins", "plugin_digests"]

_PREFIX = "evomerge_plugin_"
"""What the names of their modules begin with."""

_loaded: dict[str, str] = {}
"""Digest of what each module was made of."""


def plugin_digests(files: Sequence[Path]) -> dict[str, str]:
    """Content digest of each plugin, by file name.

    Raises:
        ConfigError: a file that cannot be read, or two of one name.
    """
    return {path.name: _digest(source) for path, source in _sources(files).items()}


def load_plugins(files: Sequence[Path], recorded: Mapping[str, str] | None = None) -> None:
    """Run plugins that were not run yet in this process, so that what they register is known.

    Args:
        files: in the order in which they are run.
        recorded: the digest that each must have, by file name; None takes what is there.

    Raises:
        ConfigError: a file that cannot be read, is no longer what was recorded, or fails; all such faults at once.
    """
    faults = []
    for number, (path, source) in enumerate(_sources(files).items()):
        digest = _digest(source)
        if recorded is not None and recorded.get(path.name) != digest:
            message = f"{path} is not what the run began with; put that file back, or start a new run"
            faults.append(Fault(path=f"$.plugins[{number}]", message=message))
        elif _loaded.get(path.name) != digest:
            try:
                _run(path, source)
                _loaded[path.name] = digest
            except (Exception, SystemExit) as error:  # whatever the user's code may raise
                faults.append(Fault(path=f"$.plugins[{number}]", message=_reason(path, error)))
    if faults:
        raise ConfigError("plugins", faults)


def _sources(files: Sequence[Path]) -> dict[Path, bytes]:
    sources, faults = {}, []
    for number, path in enumerate(files):
        try:
            sources[path] = path.read_bytes()
        except OSError as error:
            message = f"expected a Python file; {path} cannot be read: {error.strerror}"
            faults.append(Fault(path=f"$.plugins[{number}]", message=message))
    names = [path.name for path in files]
    faults += [
        Fault(path="$.plugins", message=f"expected each file name once; got {name} twice; rename one")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if faults:
        raise ConfigError("plugins", faults)
    return sources


def _digest(source: bytes) -> str:
    return hashlib.blake2b(source, digest_size=16).hexdigest()


def _run(path: Path, source: bytes) -> None:
    """Run a plugin as a module of its own, which takes the place of an earlier version."""
    module = ModuleType(_PREFIX + path.stem)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # types and pickles look their module up by name
    exec(compile(source, str(path), "exec"), vars(module))


def _reason(path: Path, error: BaseException) -> str:
    """What went wrong, and at which line of the plugin."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f"{path}{f' (line {line})' if line else ''} fails: {type(error).__name__}: {error}"
