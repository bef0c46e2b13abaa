"""A live transformers model in this process; recipes are merged straight into its parameters.

Nothing is written to disk. Knows nothing of tasks, items or scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.errors import ConfigError, Fault, MergeError, PoolError, TaskError
from evomerge.merging.footprint import Memory, choose, footprints, host_memory, needs_of
from evomerge.merging.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from evomerge.config import EngineConfig
    from evomerge.merging.footprint import Tier
    from evomerge.merging.plan import MergePlan
    from evomerge.merging.pool import ModelPool
    from evomerge.merging.residency import Residence
    from evomerge.recipe import Recipe

__all__ = ["ForwardWatch", "TransformersEngine"]


@final
class ForwardWatch:
    """Watches every forward pass of a model: how long it takes, and whether its output stays finite.

    In a causal model each position attends to all before it, so a NaN anywhere reaches the last position; looking there
    costs next to nothing.

    Args:
        model: whose forward passes.
        causal: whether its last position tells of all.

    Attributes:
        seconds: wall time inside forward passes since the last restart.
    """

    def __init__(self, model: Any, *, causal: bool) -> None:
        self._causal = causal
        self._cuda = model.device.type == "cuda"
        self._started = 0.0
        self.restart()
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def restart(self) -> None:
        """Forget what was seen so far."""
        self.seconds = 0.0
        self._finite: Any = True

    def check_finite(self) -> None:
        """Judge the forward passes since the last restart.

        Raises:
            MergeError: one of them gave NaN or infinity.
        """
        if not self._finite:
            raise MergeError(
                "expected finite logits; got NaN or infinity: the merged weights overflow this dtype; narrow the "
                "search range of the weights, or set engine.dtype to bfloat16 or float32"
            )

    def _now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self, _model: Any, _inputs: Any) -> None:
        self._started = self._now()

    def _stop(self, _model: Any, _inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None:
            # the largest logit is NaN if any is, and infinite if any is +inf; -inf alone is a legal mask
            last = logits[:, -1] if self._causal else logits
            self._finite = self._finite & last.amax(-1).isfinite().all()
        self.seconds += self._now() - self._started


@final
class TransformersEngine:
    """A model held in memory, whose weights every `load` sets anew.

    A causal language model; or, for scorers of the user's, what else `architectures` in config.json names.

    Example:
        >>> engine = TransformersEngine(pool, EngineConfig())  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        1.0

    Args:
        pool: base and experts; the base gives the architecture.
        config: device, dtype, batch size and threads. The thread count holds for the whole process.
        workers: how many like this one share the machine, itself included.
        gpu: share of a GPU that it may take.

    Attributes:
        pool: base and experts.
        model: the transformers model, in evaluation mode.
        tokenizer: the pool's choice; None for a model that is no language model and has none.
        causal: whether the model is a causal language model.
        device, dtype: where the model lives and what it computes in, for example `cpu` and `bfloat16`.
        watch: time and sanity of its forward passes.

    Raises:
        ConfigError: the models do not fit into memory in the tier that was asked for, or in any.
        PoolError: transformers cannot build the model, or its parameters and the pool's tensors do not match.
    """

    def __init__(self, pool: ModelPool, config: EngineConfig, *, workers: int = 1, gpu: float = 1.0) -> None:
        stay_offline()
        import torch

        torch.set_num_threads(config.threads)
        self.config, self.pool = config, pool
        self.device = _device(config.device)
        self.dtype: str = pool.dtype if config.dtype == "pool" else config.dtype
        self.model, self.tokenizer, self.causal = _build(pool, self.device, self.dtype)
        self.watch = ForwardWatch(self.model, causal=self.causal)
        self._parameters = _targets(self.model, pool)
        needs = needs_of(pool, self.dtype, config.deltas)
        tiers = footprints(needs, on_device=self.device != "cpu")
        tier = choose(tiers, _memory(self.device, needs.live, workers, gpu), config.residency).tier
        self._residence = _resident(pool, tier, self.device, config)
        self._written: tuple[MergePlan, bool] | None = None

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Overwrite the live parameters with the recipe's merge; only those whose plan differs from the last one.

        The state afterwards depends on the arguments alone. A load that fails midway leaves a mixture, so the next one
        rewrites everything.

        Args:
            recipe: what to merge.
            exact: from the models' own weights, even where `engine.deltas` is `int8`.

        Raises:
            MergeError: the recipe could not be turned into weights.
        """
        from evomerge.merging.executor import execute_into
        from evomerge.merging.operators import lower

        started = time.perf_counter()
        plan, approximate = lower(recipe, self.pool), self.config.deltas == "int8" and not exact
        previous, before = self._written or (None, approximate)
        names = plan.changed(previous if before == approximate else None)
        self._written = None
        self._residence.approximate = approximate
        execute_into(plan, self.pool, self._parameters, only=names, residence=self._residence)
        self._written = plan, approximate
        return LoadStats(seconds=time.perf_counter() - started, rewritten_share=self._share(names))

    def require_language_model(self, what: str) -> None:
        """Refuse what only a causal language model can do.

        Raises:
            TaskError: the model is none.
        """
        if not self.causal:
            raise TaskError(
                f"{what}: expected a causal language model; got {type(self.model).__name__}; score it by a scorer of "
                "kind function"
            )

    def _share(self, names: frozenset[str]) -> float:
        total = sum(parameter.numel() for parameter in self._parameters.values())
        return sum(self._parameters[name].numel() for name in names) / total


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        message = f"expected a GPU that torch can use; got none for {wanted!r}; use device: cpu or auto"
        raise ConfigError("engine", [Fault(path="$.engine.device", message=message)])
    return wanted


def _memory(device: str, live: int, workers: int, gpu: float) -> Memory:
    """What there is for a worker whose live model is in place already.

    What is free now must do for this worker, and the whole for all: others may be up already, or come up beside it.
    """
    import torch

    total, free = host_memory(free=False), host_memory(free=True)
    if device == "cpu":
        return Memory(device=None, host=min(total, workers * (free + live)), workers=workers)
    unused, whole = torch.cuda.mem_get_info(device)
    return Memory(device=min(unused + live, int(gpu * whole)), host=min(total, workers * free), workers=workers)


def _resident(pool: ModelPool, tier: Tier, device: str, config: EngineConfig) -> Residence:
    import torch

    from evomerge.merging.residency import Residence

    return Residence(pool=pool, tier=tier, device=torch.device(device), deltas=config.deltas)


def _build(pool: ModelPool, device: str, dtype: str) -> tuple[Any, Any, bool]:
    """The base model in the shape and with the tokenizer of the merged one; and whether it is causal."""
    import torch
    from transformers import AutoConfig

    folder = pool.folder(pool.base)
    try:
        config = AutoConfig.for_model(**pool.config)
        kind, causal = _kind(config)
        model = kind.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # embeddings have the rows of the chosen vocabulary
        )
        tokenizer = _tokenizer(pool.tokenizer_folder, needed=causal)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise PoolError(
            f"{folder}: expected a causal language model that the installed transformers knows, with its tokenizer; "
            f"got {type(error).__name__}: {error}; models that bring their own code are not run"
        ) from error
    return model.to(device).eval().requires_grad_(False), tokenizer, causal


def _kind(config: Any) -> tuple[Any, bool]:
    """The class of a model, and whether that is a causal language model."""
    import transformers

    name = (config.architectures or [""])[0]
    own = getattr(transformers, name, None)
    if own is None or (type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and "Classification" not in name):
        return transformers.AutoModelForCausalLM, True
    return own, False


def _tokenizer(folder: Path, *, needed: bool) -> Any:
    from transformers import AutoTokenizer

    if not needed and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _targets(model: Any, pool: ModelPool) -> Mapping[str, torch.Tensor]:
    """The live parameter of every tensor in the pool.

    Raises:
        PoolError: a tensor without a parameter, a parameter without a tensor, or two different shapes.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    specs = {spec.name: spec for spec in pool.specs}
    live |= {stored: live[name] for stored, name in _renamed(model, specs.keys() - live.keys()) if name in live}
    faults = [f"tensor {name}: the model has no such parameter" for name in specs.keys() - live.keys()]
    for name in specs.keys() & live.keys():
        if tuple(live[name].shape) != specs[name].shape:
            faults.append(f"tensor {name}: shape {list(specs[name].shape)}, but {list(live[name].shape)} in the model")
    covered = {id(live[name]) for name in specs.keys() & live.keys()}  # tied parameters are one object
    faults += [f"parameter {name}: no such tensor" for name in live if id(live[name]) not in covered]
    if faults:
        raise PoolError(
            f"{pool.folder(pool.base)}: its weights do not fit the model that its config.json describes\n  "
            + "\n  ".join(sorted(faults))
        )
    return {name: live[name].data for name in specs}


def _renamed(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Stored names of tensors, and those of the parameters that transformers reads them into.

    transformers 5 gave the parameters of some architectures other names than their files have.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 keeps the names
        return
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    weights = model.state_dict()
    for name in stored:
        yield name, rename_source_key(name, rules, [], model.base_model_prefix, weights)[0]
