"""Runs models of a pool over a text and keeps what merging asks of their activations and gradients.

Statistics of one model are one file in the cache, measured once by whoever needs them first; others wait. Models run in
fp32 whatever dtype they store, so that a statistic belongs to the model and the text alone. See
`evomerge.merging.calibrated` for what they are. Knows nothing of recipes.

Legend: X `[tokens, in]` the inputs of a linear map; g the gradient of a weight.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from evomerge.engines.texts import token_ids
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.errors import DiskError, PoolError, require_installed
from evomerge.merging.calibrated import Statistic, statistics_file
from evomerge.merging.layout import stores_inputs_first
from evomerge.recipe import uniform

if TYPE_CHECKING:
    import torch

    from evomerge.config import EngineConfig
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe.transform_table import Need

    Measured = tuple[dict[str, torch.Tensor], dict[str, str]]
    """Tensors by name, and a header."""

__all__ = ["calibrate"]

_BLOCK = 512
"""Tokens of a sequence; fewer where a model takes no more."""


def calibrate(pool: ModelPool, needs: Iterable[Need], config: EngineConfig) -> None:
    """Measure what is needed and not in the cache yet.

    Args:
        pool: with a calibration, if anything is to be measured.
        needs: what merges will ask for: `importance` of the base, `grams` and `fisher` of every expert.
        config: device and threads.

    Raises:
        MergeError: a model has no calibration text.
        MissingExtraError: transformers is not installed.
        PoolError: transformers cannot run a model, or its text is too short.
        DiskError: the cache cannot be written to.
    """
    wanted = [
        (model, cast("Statistic", need))
        for need in sorted(set(needs) & set(get_args(Statistic)))
        for model in ((pool.base,) if need == "importance" else pool.experts)
    ]
    files = {job: statistics_file(pool, *job) for job in wanted}
    if all(file.is_file() for file in files.values()):
        return
    require_installed("transformers", "merge")
    folder = next(iter(files.values())).parent
    try:
        with _alone(folder.with_suffix(".lock")):
            missing = {job: file for job, file in files.items() if not file.is_file()}
            if missing:
                _measure_all(pool, missing, config)
    except OSError as error:
        raise DiskError(
            f"{folder}: expected to keep what was measured over the calibration text; got {error.strerror or error}; "
            "free space there, or set EVOMERGE_CACHE to a folder on a larger disk"
        ) from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process measures the same; where a file system has no locks, the last to finish wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _measure_all(pool: ModelPool, missing: Mapping[tuple[str, Statistic], Path], config: EngineConfig) -> None:
    engine = TransformersEngine(pool, config.model_copy(update={"dtype": "float32"}))
    for (model, statistic), file in missing.items():
        engine.load(uniform((model,), layers=pool.layers, dtype="float32"))
        _save(file, *_MEASURE[statistic](engine, pool, _sequences(engine, pool, model)))


def _save(file: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write a file that appears whole or not at all."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{secrets.token_hex(4)}.tmp")
    try:
        save_file(dict(tensors), draft, metadata=dict(header))
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _sequences(engine: TransformersEngine, pool: ModelPool, model: str) -> list[torch.Tensor]:
    """The text as sequences `[1, tokens]` of one length; the rest is left out. A short text is one shorter sequence."""
    import torch

    assert pool.calibration is not None, "statistics_file has refused this"
    file, tokens = pool.calibration.texts[model], pool.calibration.tokens
    ids = token_ids(engine.tokenizer, file, tokens)
    if len(ids) < 2:
        raise PoolError(f"{file}: expected at least 2 tokens of calibration text; got {len(ids)}; choose another text")
    length = min(_BLOCK, getattr(engine.model.config, "max_position_embeddings", None) or _BLOCK, len(ids))
    whole = torch.tensor(ids[: len(ids) // length * length], device=engine.device)
    return list(whole.view(-1, 1, length))


def _importance(engine: TransformersEngine, pool: ModelPool, sequences: Iterable[torch.Tensor]) -> Measured:
    """`mean |x_j|` of the inputs of every linear map, fp64."""
    return _of_inputs(engine, pool, sequences, lambda x: x.double().abs().sum(0))


def _grams(engine: TransformersEngine, pool: ModelPool, sequences: Iterable[torch.Tensor]) -> Measured:
    """`X^T X / tokens` of the inputs of every linear map, fp32; all of them are in memory at once."""
    return _of_inputs(engine, pool, sequences, lambda x: x.float().T @ x.float())


def _of_inputs(
    engine: TransformersEngine,
    pool: ModelPool,
    sequences: Iterable[torch.Tensor],
    measure: Callable[[torch.Tensor], torch.Tensor],
) -> Measured:
    import torch

    watch = _InputWatch(measure)
    hooks = [module.register_forward_pre_hook(watch.of(name)) for name, module in _linear_maps(engine, pool)]
    try:
        with torch.inference_mode():
            for ids in sequences:
                engine.model(ids, use_cache=False)
                watch.forget()
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: (total / watch.counts[name]).cpu().contiguous() for name, total in watch.totals.items()}
    return means, {"inputs": json.dumps(watch.keys)}


def _linear_maps(engine: TransformersEngine, pool: ModelPool) -> Iterator[tuple[str, Any]]:
    """Names of weights and their modules; not those that share a weight with an embedding."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    names = {spec.name for spec in pool.specs}
    for path, module in engine.model.named_modules():
        if isinstance(module, Linear | Conv1D) and f"{path}.weight" in names:
            yield f"{path}.weight", module


class _InputWatch:
    """Adds up a measure of what flows into linear maps; what flows into several in a row is measured once.

    Args:
        measure: of inputs `[tokens, in]`.

    Attributes:
        keys: by linear map, the one that its inputs were measured at.
        totals, counts: sums of the measure, and of tokens, by such keys.
    """

    def __init__(self, measure: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._measure = measure
        self.keys: dict[str, str] = {}
        self.totals: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Let go of the last inputs."""
        self._last: Any = None
        self._key = ""

    def of(self, name: str) -> Callable[[Any, Any], None]:
        """The hook of one linear map."""

        def hook(_module: Any, inputs: Any) -> None:
            if inputs[0] is self._last and self.keys.get(name, self._key) == self._key:
                self.keys[name] = self._key
                return
            self._last, self._key = inputs[0], name
            self.keys[name] = name
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            found = self._measure(x)
            self.totals[name] = self.totals[name].add_(found) if name in self.totals else found
            self.counts[name] = self.counts.get(name, 0) + len(x)

        return hook


def _fisher(engine: TransformersEngine, pool: ModelPool, sequences: Iterable[torch.Tensor]) -> Measured:
    """`mean g^2` over sequences, g the gradient of a sequence's mean loss; of matrices, its means along both axes.

    A diagonal empirical Fisher information (Matena and Raffel 2022), by sequences instead of tokens, which takes one
    pass back for each. Gradients are used up as they come: memory holds about one tensor's.
    """
    totals: dict[str, torch.Tensor] = {}
    model_type, count = str(pool.config.get("model_type")), 0
    parameters = dict(engine.model.named_parameters(remove_duplicate=False))

    def use_up(name: str, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            for key, part in _factored(name, gradient.float().square(), model_type):
                totals[key] = totals[key].add_(part) if key in totals else part

    watched = {spec.name: parameters[spec.name] for spec in pool.specs if parameters[spec.name].is_floating_point()}
    hooks = [
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(partial(use_up, name))
        for name, parameter in watched.items()
    ]
    try:
        for ids in sequences:
            engine.model(ids, labels=ids, use_cache=False).loss.backward()
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
        engine.model.requires_grad_(False)
    return {name: (total / count).cpu().contiguous() for name, total in totals.items()}, {}


def _factored(name: str, squares: torch.Tensor, model_type: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A matrix as its means over inputs `[out]` and over outputs `[in]`; others as they are."""
    if squares.ndim != 2:
        yield name, squares
        return
    first = stores_inputs_first(name, 2, model_type)
    yield f"{name}.row", squares.mean(0 if first else 1)
    yield f"{name}.column", squares.mean(1 if first else 0)


_MEASURE: Mapping[Statistic, Callable[[TransformersEngine, ModelPool, Iterable[torch.Tensor]], Measured]] = {
    "importance": _importance,
    "grams": _grams,
    "fisher": _fisher,
}
