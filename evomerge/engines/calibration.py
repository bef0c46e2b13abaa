"""Runs models of a pool over a text and keeps what merging asks of their activations and gradients.

Each statistic of a model is a folder in the cache, measured once by whoever needs it first; others wait. Models run in
fp32 whatever dtype they store, so that a statistic belongs to the model and the text alone. See
`evomerge.merging.calibrated` for what they are. Knows nothing of recipes.

Legend: X `[tokens, in]` the inputs of a linear map; g the gradient of a weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast, get_args

from evomerge.config import transformers_config
from evomerge.engines.texts import token_ids
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.errors import DiskError, PoolError, StoreError, require_installed
from evomerge.merging.atomic import alone, complete_or_absent
from evomerge.merging.cache import make_room
from evomerge.merging.calibrated import Statistic, statistics_folder
from evomerge.merging.layout import stores_inputs_first
from evomerge.recipe import uniform

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from evomerge.config import EngineConfig
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe.transform_table import Need

    Measured = tuple[dict[str, torch.Tensor], dict[str, str]]
    """Tensors by name, and a header."""

__all__ = ["calibrate"]

_BLOCK = 512
"""Tokens of a sequence; fewer where a model takes no more."""

_MEMORY = 1 << 30
"""Bytes that are measured in one pass over the text: a bound for Gram matrices, which may take more than the model."""


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
    missing = {job: folder for job in wanted if not (folder := statistics_folder(pool, *job)).is_dir()}
    if not missing:
        return
    require_installed("transformers", "merge")
    engine = TransformersEngine(pool, transformers_config(config).model_copy(update={"dtype": "float32"}))
    for (model, statistic), folder in missing.items():
        try:
            with alone(folder.with_suffix(".lock")):
                if not folder.is_dir():  # else someone else has measured it meanwhile
                    make_room(folder.parent)
                    _measure(engine, pool, model, statistic, folder)
        except (OSError, DiskError, StoreError) as error:
            if not folder.is_dir():  # as above, on a file system without locks
                raise DiskError(
                    f"{folder}: expected to keep what was measured over the calibration text; got: "
                    f"{error.__cause__ or error}; free space there, or set EVOMERGE_CACHE to a folder on a larger disk"
                ) from error


def _measure(engine: TransformersEngine, pool: ModelPool, model: str, statistic: Statistic, folder: Path) -> None:
    """Run one model over its text, and keep what it shows, file by file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    engine.load(uniform((model,), layers=pool.layers, dtype="float32"))
    sequences = _sequences(engine, pool, model)
    with complete_or_absent(folder) as draft:
        for number, (tensors, header) in enumerate(_MEASURES[statistic](engine, pool, sequences)):
            try:
                save_file(tensors, draft / f"{number:04}.safetensors", metadata=header)
            except SafetensorError as error:  # what it makes of a disk that is full
                raise OSError(str(error)) from error


def _sequences(engine: TransformersEngine, pool: ModelPool, model: str) -> list[torch.Tensor]:
    """The text as sequences `[1, tokens]` of one length; the rest is left out. A short text is one shorter sequence."""
    import torch

    assert pool.calibration is not None, "statistics_folder has refused this"
    file, tokens = pool.calibration.texts[model], pool.calibration.tokens
    ids = token_ids(engine.tokenizer, file, tokens)
    if len(ids) < 2:
        raise PoolError(f"{file}: expected at least 2 tokens of calibration text; got {len(ids)}; choose another text")
    length = min(_BLOCK, getattr(engine.model.config, "max_position_embeddings", None) or _BLOCK, len(ids))
    whole = torch.tensor(ids[: len(ids) // length * length], device=engine.device)
    return list(whole.view(-1, 1, length))


def _importance(engine: TransformersEngine, pool: ModelPool, sequences: Sequence[torch.Tensor]) -> Iterator[Measured]:
    """`sum |x_j| / tokens` of the inputs of every linear map, fp64."""
    return _of_inputs(engine, pool, sequences, lambda x: x.double().abs().sum(0))


def _grams(engine: TransformersEngine, pool: ModelPool, sequences: Sequence[torch.Tensor]) -> Iterator[Measured]:
    """`X^T X / tokens` of the inputs of every linear map, fp32."""
    return _of_inputs(engine, pool, sequences, lambda x: x.float().T @ x.float())


def _of_inputs(
    engine: TransformersEngine,
    pool: ModelPool,
    sequences: Sequence[torch.Tensor],
    measure: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[Measured]:
    """A measure of the inputs of every linear map, over the tokens of the text, not only those that pass the map.

    The text is run over once for as many maps as there is memory for. Maps of MoE experts that see no token have the
    measure of none, zero.
    """
    import torch

    tokens = sum(ids.numel() for ids in sequences)
    for maps in _portions(_linear_maps(engine, pool), measure):
        watch = _InputWatch(measure)
        hooks = [linear.module.register_forward_pre_hook(watch.of(linear.name)) for linear in maps]
        try:
            with torch.inference_mode():
                for ids in sequences:
                    engine.model(ids, use_cache=False)
                    watch.forget()
        finally:
            for hook in hooks:
                hook.remove()
        for linear in maps:
            if linear.name not in watch.keys:
                watch.keys[linear.name] = f"unseen.{linear.inputs}"
                watch.totals[f"unseen.{linear.inputs}"] = measure(torch.zeros(0, linear.inputs))
        means = {name: (total / tokens).cpu().contiguous() for name, total in watch.totals.items()}
        yield means, {"inputs": json.dumps(watch.keys)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Linear:
    """A linear map: the name of its weight, its module, and how many inputs it has."""

    name: str
    module: Any
    inputs: int


def _portions(
    maps: Iterable[_Linear], measure: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[_Linear, ...]]:
    """Maps in their order, cut where the measures of a portion would take more than `_MEMORY`; one map at least."""
    import torch

    portion: list[_Linear] = []
    taken = 0
    for linear in maps:
        size = measure(torch.zeros(0, linear.inputs, device="meta")).nbytes
        if portion and taken + size > _MEMORY:
            yield tuple(portion)
            portion, taken = [], 0
        portion.append(linear)
        taken += size
    yield tuple(portion)


def _linear_maps(engine: TransformersEngine, pool: ModelPool) -> Iterator[_Linear]:
    """Those of the pool; not those that share a weight with an embedding."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    names = {spec.name for spec in pool.specs}
    for path, module in engine.model.named_modules():
        if isinstance(module, Linear | Conv1D) and f"{path}.weight" in names:
            inputs = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            yield _Linear(name=f"{path}.weight", module=module, inputs=inputs)


class _InputWatch:
    """Adds up a measure of what flows into linear maps; what flows into several in a row is measured once.

    Args:
        measure: of inputs `[tokens, in]`.

    Attributes:
        keys: by linear map, the one that its inputs were measured at.
        totals: sums of the measure by such keys.
    """

    def __init__(self, measure: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._measure = measure
        self.keys: dict[str, str] = {}
        self.totals: dict[str, torch.Tensor] = {}
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

        return hook


def _fisher(engine: TransformersEngine, pool: ModelPool, sequences: Sequence[torch.Tensor]) -> Iterator[Measured]:
    """`mean g^2` over sequences, g the gradient of a sequence's mean loss; of matrices, its means along both axes.

    A diagonal empirical Fisher information (Matena and Raffel 2022), by sequences instead of tokens, which takes one
    pass back for each. Gradients are used up as they come: memory holds about one tensor's.
    """
    totals: dict[str, torch.Tensor] = {}
    model_type = str(pool.config.get("model_type"))
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
    finally:
        for hook in hooks:
            hook.remove()
        engine.model.requires_grad_(False)
    yield {name: (total / len(sequences)).cpu().contiguous() for name, total in totals.items()}, {}


def _factored(name: str, squares: torch.Tensor, model_type: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A matrix as its means over inputs `[out]` and over outputs `[in]`, one by one in stacks; others as they are."""
    if squares.ndim not in (2, 3):
        yield name, squares
        return
    first = stores_inputs_first(name, squares.ndim, model_type)
    yield f"{name}.row", squares.mean(-2 if first else -1)
    yield f"{name}.column", squares.mean(-1 if first else -2)


_MEASURES: Mapping[Statistic, Callable[[TransformersEngine, ModelPool, Sequence[torch.Tensor]], Iterator[Measured]]] = {
    "importance": _importance,
    "grams": _grams,
    "fisher": _fisher,
}
