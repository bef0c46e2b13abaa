"""Tasks that lm-eval does not know: functions of the user, and texts. Each gives numbers per item of the live model.

Knows nothing of lm-eval, recipes or directions of objectives.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, final

from evomerge.config import FunctionConfig, LossConfig
from evomerge.config.faults import near
from evomerge.config.scorers import module_file
from evomerge.engines.task_files import Faults
from evomerge.engines.texts import KlScorer, LossScorer
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.errors import EvomergeError, TaskError
from evomerge.fitness import duplicates_of
from evomerge.outcome import Responses

if TYPE_CHECKING:
    from evomerge.config import FitnessConfig, ScorerConfig
    from evomerge.engines.base import Engine

__all__ = ["FunctionScorer", "TaskScorer", "load_scorers", "responses_of"]


class TaskScorer(Protocol):
    """One task, scored without lm-eval."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it measures."""

    @property
    def size(self) -> int:
        """Number of its items."""

    @property
    def duplicates(self) -> tuple[int, ...]:
        """Ids of the items that hold what an item before them holds."""

    @property
    def block(self) -> int:
        """Tokens of an item; 0 where nobody knows."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change with its items and with how they are scored."""

    def score(self, items: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """By metric, one number of the live model for each item.

        Args:
            items: ids, from 0.

        Raises:
            TaskError: it cannot be scored.
        """


def load_scorers(engine: Engine, fitness: FitnessConfig) -> dict[str, TaskScorer]:
    """Make every scorer that is measured.

    Args:
        engine: holds the live model, whose weights may be another model's afterwards.
        fitness: scorers, objectives and constraints.

    Returns:
        Scorers by name, sorted.

    Raises:
        EvomergeError: every `TaskError` of every scorer together; or the first of another kind.
    """
    names = sorted({measured.task for measured in fitness.metrics} & fitness.scorers.keys())
    if not names:
        return {}
    faults, found = Faults(), {}
    for name in names:
        found[name] = faults.attempt(_make, name, fitness.scorers[name], engine)
    faults.check()
    return {name: scorer for name, scorer in found.items() if scorer is not None}


def _make(name: str, config: ScorerConfig, engine: Engine) -> TaskScorer:
    if isinstance(config, FunctionConfig):
        return FunctionScorer(name, config, engine)
    if isinstance(config, LossConfig):
        return LossScorer(name, config, engine)
    if not isinstance(engine, TransformersEngine):
        raise TaskError(f"scorer {name!r}: kl needs all of a distribution; expected engine.kind: transformers")
    return KlScorer(name, config, engine)


@final
class FunctionScorer:
    """A function of the user's, with its items.

    Args:
        name: of the scorer.
        config: function, items and metrics.
        engine: what the function gets.

    Raises:
        TaskError: the module cannot be imported, holds no such function, or the items cannot be read.
    """

    def __init__(self, name: str, config: FunctionConfig, engine: Engine) -> None:
        self._engine = engine
        self._where = f"scorer {name!r} ({config.function})"
        self.metrics, self.block = config.metrics, 0
        self._items = _items(name, config.items)
        self.size = len(self._items)
        self.duplicates = duplicates_of(json.dumps(json.loads(item), sort_keys=True) for item in self._items)
        self._function, source = _function(self._where, config)
        content = repr([config.function, source, self._items]).encode()
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()

    def score(self, items: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """What the function makes of these items; it gets them anew each time, so it may change them.

        Raises:
            TaskError: the function fails, or gives one list for several metrics.
        """
        import torch

        asked = [json.loads(self._items[item]) for item in items]
        try:
            with torch.inference_mode():
                answer = self._function(self._engine, asked)
        except (EvomergeError, MemoryError):
            raise
        except AttributeError as error:
            raise TaskError(f"{self._where}: {self._missing(error)}") from error
        except Exception as error:  # it is the user's code
            raise TaskError(f"{self._where}: {type(error).__name__}: {error}") from error
        if isinstance(answer, Mapping):
            return answer
        if len(self.metrics) > 1:
            raise TaskError(f"{self._where}: expected a mapping of {list(self.metrics)}; got {type(answer).__name__}")
        return {self.metrics[0]: answer}

    def _missing(self, error: AttributeError) -> str:
        """Why something is not there."""
        if error.obj is not self._engine or isinstance(self._engine, TransformersEngine):
            return f"AttributeError: {error}"
        return (
            f"expected what this engine has; got engine.{error.name}; ask engine.backend(chat_template=False), which "
            "every engine has, or take engine.kind: transformers"
        )


def _items(name: str, source: Path | int) -> tuple[str, ...]:
    """Items as JSON texts.

    Raises:
        TaskError: a file that cannot be read, or a line that is no JSON.
    """
    if isinstance(source, int):
        return tuple(map(str, range(source)))
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"scorer {name!r}: expected items in {source}; got {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line.strip() or "null")
        except ValueError as error:
            raise TaskError(f"scorer {name!r}: {source}, line {number}: expected JSON; got {error}") from error
    return tuple(line for line in lines if line.strip())


def _function(where: str, config: FunctionConfig) -> tuple[Callable[..., Any], bytes]:
    """The function, and the file that it stands in.

    Raises:
        TaskError: no such module, a module that cannot be imported, or nothing in it that can be called.
    """
    name = config.function.partition(":")[2]
    try:
        module = _module(config)
    except Exception as error:  # importing runs the user's code
        raise TaskError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        got = "no such name" + near(name, vars(module)) if function is None else f"a {type(function).__name__}"
        raise TaskError(f"{where}: expected a function {name!r} in {module.__file__}; got {got}")
    file = getattr(module, "__file__", None)
    return function, Path(file).read_bytes() if file else b""


def _module(config: FunctionConfig) -> ModuleType:
    """The user's file, under a name of its own so that it hides no other module; or an installed module."""
    file = module_file(config)
    if file is None:
        return import_module(config.function.partition(":")[0])
    name = f"evomerge_scorer_{hashlib.blake2b(str(file).encode(), digest_size=8).hexdigest()}"
    spec = spec_from_file_location(name, file)
    assert spec is not None, "the file ends in .py"
    assert spec.loader is not None, "likewise"
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def responses_of(
    name: str, scorer: TaskScorer, items: Sequence[int], answers: Mapping[str, Any]
) -> Iterator[Responses]:
    """A scorer's answers as records, sorted by metric.

    Raises:
        TaskError: a metric without answers, another number of them than of items, or one that is no finite number.
    """
    for metric in sorted(scorer.metrics):
        if metric not in answers:
            raise TaskError(f"scorer {name!r}: expected the metric {metric!r}; got {sorted(map(str, answers))}")
        values = answers[metric]
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TaskError(f"scorer {name!r}: expected a list of numbers for {metric!r}; got {type(values).__name__}")
        if len(values) != len(items):
            raise TaskError(f"scorer {name!r}: expected {len(items)} numbers, one per item; got {len(values)}")
        numbers = tuple(_number(name, metric, item, value) for item, value in zip(items, values, strict=True))
        yield Responses(task=name, metric=metric, items=tuple(items), values=numbers)


def _number(name: str, metric: str, item: int, value: Any) -> float:
    with suppress(AttributeError, RuntimeError, ValueError):
        value = value.item()  # of a tensor or an array
    if not isinstance(value, Real) or not math.isfinite(value):
        raise TaskError(f"scorer {name!r}, item {item}: expected {metric!r} to be a finite number; got {value!r:.80}")
    return float(value)
