"""The weights inside a vLLM worker: which ones a recipe changes, and how they get there.

Where vLLM keeps parameters as it loaded them, plans are executed straight into them (see `vllm_views`). Where it packs
them for its kernels, as on a CPU, merged tensors go through vLLM's own reloading, module by module. An engine may have
more layers than a candidate: what its idle layers add to the residual stream is zero, so that they do nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, final

import torch

from evomerge.engines.vllm_views import module_of, views_of
from evomerge.merging.executor import execute_into
from evomerge.merging.footprint import Memory, choose, footprints, needs_of
from evomerge.merging.host import host_memory
from evomerge.merging.layout import at_layer, is_token_embedding, writes_to_residual
from evomerge.merging.operators import lower
from evomerge.merging.plan import MergePlan, TensorPlan
from evomerge.merging.residency import Residence

if TYPE_CHECKING:
    from evomerge.config import VllmConfig
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["LiveWeights"]

Content = TensorPlan | None
"""What a tensor holds: the result of a plan, or zeros."""


@final
class LiveWeights:
    """The live parameters of one vLLM worker: all of the model, or its rank's part.

    Args:
        worker: vLLM's.
        pool: the models.
        config: dtype, residency.

    Attributes:
        in_place: whether plans are executed straight into the parameters.
        intact: False once vLLM's reloading was cut short: it does not bear that.
    """

    def __init__(self, worker: Any, pool: ModelPool, config: VllmConfig) -> None:
        self._worker, self._pool = worker, pool
        self._model = worker.model_runner.get_model()
        self._depth: int = self._model.config.num_hidden_layers
        self._specs = _specs_at(pool, self._depth)
        self._views = views_of(self._model, self._specs)
        self.in_place = self._views is not None
        self.intact = True
        self._residence = _residence(pool, config, worker.device)
        self._content: dict[str, Content] = {}

    def forget(self) -> None:
        """Take nothing for granted: the next load writes everything."""
        self._content = {}

    def load(self, recipe: Recipe, *, exact: bool) -> float:
        """Write a recipe's merge.

        The state afterwards depends on the arguments alone. A load that fails midway leaves a mixture, so the next one
        writes everything.

        Args:
            recipe: what to merge.
            exact: from the models' own weights.

        Returns:
            Share of the model's weights that were written.

        Raises:
            MergeError: the recipe could not be turned into weights.
        """
        approximate = self._residence.deltas == "int8" and not exact
        if self._residence.approximate != approximate:
            self.forget()
        wanted = self._wanted(recipe)
        changed = {name for name in wanted if name not in self._content or self._content[name] != wanted[name]}
        self._content = {}
        self._residence.approximate = approximate
        if self._views is None:
            changed = self._whole_modules(changed, wanted)
            self._reload({name: wanted[name] for name in sorted(changed)})
        else:
            self._views.write({name: wanted[name] for name in sorted(changed)}, self._residence)
        self._content = wanted
        return self._size(changed) / self._size(wanted)

    def _size(self, names: Iterable[str]) -> int:
        return sum(prod(self._specs[name].shape) for name in names)

    def _wanted(self, recipe: Recipe) -> dict[str, Content]:
        """What every tensor is to hold."""
        wanted: dict[str, Content] = {tensor.name: tensor for tensor in lower(recipe, self._pool).tensors}
        for name, spec in self._specs.items():
            if spec.layer is not None and spec.layer >= recipe.depth and writes_to_residual(name):
                wanted[name] = None
        return wanted

    def _whole_modules(self, changed: Collection[str], wanted: Collection[str]) -> set[str]:
        """With what shares a module with them: vLLM makes a module's memory anew when it is reloaded."""
        modules = {module_of(self._model, name) for name in changed}
        return {name for name in wanted if module_of(self._model, name) in modules}

    def _reload(self, wanted: Mapping[str, Content]) -> None:
        if not wanted:
            return
        self.intact = False
        self._worker.reload_weights(weights_iterator=self._tensors(wanted))
        self.intact = True
        tied = getattr(self._model.config, "tie_word_embeddings", False)
        if tied and any(map(is_token_embedding, wanted)):
            # vLLM's own reloading packs a shared matrix for the embedding alone, and leaves the head with the old one
            head = self._model.lm_head
            head.quant_method.process_weights_after_loading(head)

    def _tensors(self, wanted: Mapping[str, Content]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, plan in wanted.items():
            shape = self._specs[name].shape
            if plan is None:
                yield name, torch.zeros(shape)
                continue
            made = {name: torch.empty(shape, dtype=getattr(torch, plan.dtype))}
            execute_into(MergePlan(tensors=(plan,)), self._pool, made, residence=self._residence)
            yield name, made[name]


def _specs_at(pool: ModelPool, depth: int) -> dict[str, TensorSpec]:
    """Every weight of a model of so many layers; layers are alike."""
    specs = {spec.name: spec for spec in pool.specs if spec.layer is None}
    for spec in (spec for spec in pool.specs if spec.layer == 0):
        for layer in range(depth):
            name = at_layer(spec.name, layer)
            specs[name] = replace(spec, name=name, layer=layer)
    return specs


def _residence(pool: ModelPool, config: VllmConfig, device: torch.device) -> Residence:
    """Where base and experts are kept: on a GPU, in what vLLM has left of it."""
    if device.type == "cpu":
        return Residence(pool=pool, deltas=config.deltas)
    needs = replace(needs_of(pool, pool.dtype, config.deltas), live=0)
    memory = Memory(device=torch.cuda.mem_get_info(device)[0], host=host_memory(free=True))
    tier = choose(footprints(needs, on_device=True), memory, config.residency).tier
    return Residence(pool=pool, tier=tier, device=device, deltas=config.deltas)
