"""A live transformers model in this process; recipes are merged straight into its parameters.

Nothing is written to disk. Knows nothing of tasks, items or scores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.errors import ConfigError, Fault, MergeError, PoolError
from evomerge.merging.footprint import Memory, choose, footprints, host_memory, needs_of

if TYPE_CHECKING:
    import torch

    from evomerge.config import EngineConfig
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

    Attributes:
        seconds: wall time inside forward passes since the last restart.
    """

    def __init__(self, model: Any) -> None:
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
        # the largest logit is NaN if any is, and infinite if any is +inf; -inf alone is a legal mask
        self._finite = self._finite & output.logits[:, -1].amax(-1).isfinite().all()
        self.seconds += self._now() - self._started


@final
class TransformersEngine:
    """A causal language model held in memory, whose weights every `load` sets anew.

    Example:
        >>> engine = TransformersEngine(pool, EngineConfig())  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        1.0

    Args:
        pool: base and experts; the base gives the architecture.
        config: device, dtype, batch size and threads. The thread count holds for the whole process.

    Attributes:
        pool: base and experts.
        model: the transformers model, in evaluation mode.
        tokenizer: the pool's choice.
        device, dtype: where the model lives and what it computes in, for example `cpu` and `bfloat16`.
        watch: time and sanity of its forward passes.

    Raises:
        ConfigError: the models do not fit into memory in the tier that was asked for, or in any.
        PoolError: transformers cannot build the model, or its parameters and the pool's tensors do not match.
    """

    def __init__(self, pool: ModelPool, config: EngineConfig) -> None:
        stay_offline()
        import torch

        torch.set_num_threads(config.threads)
        self.config, self.pool = config, pool
        self.device = _device(config.device)
        self.dtype: str = pool.dtype if config.dtype == "pool" else config.dtype
        self.model, self.tokenizer = _build(pool, self.device, self.dtype)
        self.watch = ForwardWatch(self.model)
        self._parameters = _targets(self.model, pool)
        self._residence = _residence(pool, config, self.device, self.dtype)
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


def _residence(pool: ModelPool, config: EngineConfig, device: str, dtype: str) -> Residence:
    """The pool in the best tier that fits beside the live model, which is in place already."""
    import torch

    from evomerge.merging.residency import Residence

    needs = needs_of(pool, dtype, config.deltas)
    on_device = device != "cpu"
    free = torch.cuda.mem_get_info(device)[0] + needs.live if on_device else None
    host = host_memory(free=True) + (0 if on_device else needs.live)
    tier = choose(footprints(needs, on_device=on_device), Memory(device=free, host=host), config.residency).tier
    return Residence(pool=pool, tier=tier, device=torch.device(device), deltas=config.deltas)


def _build(pool: ModelPool, device: str, dtype: str) -> tuple[Any, Any]:
    """The base model, in the shape and with the tokenizer of the merged one, ready to be overwritten."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = pool.folder(pool.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(pool.tokenizer_folder, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=AutoConfig.for_model(**pool.config),
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # embeddings have the rows of the chosen vocabulary
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise PoolError(
            f"{folder}: expected a causal language model that the installed transformers knows, with its tokenizer; "
            f"got {type(error).__name__}: {error}; models that bring their own code are not run"
        ) from error
    return model.to(device).eval().requires_grad_(False), tokenizer


def _targets(model: Any, pool: ModelPool) -> Mapping[str, torch.Tensor]:
    """The live parameter of every tensor in the pool.

    Raises:
        PoolError: a tensor without a parameter, a parameter without a tensor, or two different shapes.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    specs = {spec.name: spec for spec in pool.specs}
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
