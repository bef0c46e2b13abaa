"""evomerge: evolutionary search over model-merge recipes.

Importing the package is cheap: nothing here loads torch, transformers, ray or lm-eval. What a notebook needs (`run`,
`open_run`, `load_experiment`) is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import Run, open_run, run
    from evomerge.config import load_experiment

__version__ = "0.1.0"

__all__ = ["Run", "__version__", "load_experiment", "open_run", "run"]

_PLACES = {
    "Run": "evomerge.api",
    "open_run": "evomerge.api",
    "run": "evomerge.api",
    "load_experiment": "evomerge.config",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
