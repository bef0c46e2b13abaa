"""A live transformers model in this process; recipes are merged straight into its parameters.

Nothing is written to disk. Knows nothing of tasks, items or scores.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, final

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.engines.layer_stack import LayerStack
from evomerge.engines.live_model import build_live
from evomerge.engines.places import places_of
from evomerge.engines.transformers_backend import TransformersBackend
from evomerge.errors import ConfigError, Fault, MergeError, TaskError
from evomerge.merging.depth import config_at_depth, layers_of
from evomerge.merging.footprint import Memory, choose, footprints, needs_of
from evomerge.merging.host import host_memory

if TYPE_CHECKING:
    from evomerge.config import TransformersConfig
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
        >>> engine = TransformersEngine(pool, TransformersConfig())  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        1.0

    Args:
        pool: base and experts; the base gives the architecture.
        config: device, dtype, batch size and threads. The thread count holds for the whole process.
        depth: most layers that paths will ask for, so that their memory is reckoned with; deeper ones are tried.
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

    def __init__(
        self,
        pool: ModelPool,
        config: TransformersConfig,
        *,
        depth: int | None = None,
        workers: int = 1,
        gpu: float = 1.0,
    ) -> None:
        stay_offline()
        import torch

        torch.set_num_threads(config.threads)
        self.config, self.pool = config, pool
        self.device = _device(config.device)
        self.dtype: str = pool.dtype if config.dtype == "pool" else config.dtype
        self.model, self.tokenizer, self.causal = build_live(pool, self.device, self.dtype)
        self.watch = ForwardWatch(self.model, causal=self.causal)
        self._places = places_of(self.model, pool)
        self._parameters = {name: place.within(self.model) for name, place in self._places.items()}
        self._stack: LayerStack | None = None  # made for the first path
        tiers = footprints(needs_of(pool, self.dtype, config.deltas, depth=depth), on_device=self.device != "cpu")
        there = sum(parameter.nbytes for parameter in self._parameters.values())
        tier = choose(tiers, _memory(self.device, there, workers, gpu), config.residency).tier
        self._residence = _resident(pool, tier, self.device, config)
        self._written: tuple[MergePlan, bool] | None = None

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Overwrite the live parameters with the recipe's merge; only those whose plan differs from the last one.

        The state afterwards depends on the arguments alone. A load that fails midway leaves a mixture, so the next one
        rewrites everything. A path gives the model as many layers as it has; memory grows with the longest one.

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
        self._written = None
        names = plan.changed(self._arranged(recipe, plan, previous if before == approximate else None))
        self._residence.approximate = approximate
        execute_into(plan, self.pool, self._parameters, only=names, residence=self._residence)
        self._written = plan, approximate
        return LoadStats(seconds=time.perf_counter() - started, rewritten_share=self._share(names))

    def _arranged(self, recipe: Recipe, plan: MergePlan, previous: MergePlan | None) -> MergePlan | None:
        """Give the live model the recipe's layers, and tell what of the previous plan they hold."""
        if self._stack is None:
            if not recipe.path:
                return previous
            self._stack = LayerStack(self.model, self.pool, self._places)
        layers = layers_of(recipe)
        config_at_depth(self.pool.config, layers)  # what no checkpoint can be is no candidate either
        held = self._stack.arrange(layers, plan, previous)
        self._parameters = self._stack.parameters
        return held

    def backend(self, *, chat_template: bool) -> TransformersBackend:
        """What benchmarks ask; see `TransformersBackend`."""
        return TransformersBackend(self, chat_template=chat_template)

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


def _resident(pool: ModelPool, tier: Tier, device: str, config: TransformersConfig) -> Residence:
    import torch

    from evomerge.merging.residency import Residence

    return Residence(pool=pool, tier=tier, device=torch.device(device), deltas=config.deltas)
