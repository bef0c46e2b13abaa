"""The layers of a live model as a set of slots, so that one model in memory serves paths of any length.

A path is laid out by choosing a slot for each depth, telling it its number (keys and values are cached under it) and
handing the model the list. A slot that holds the wanted weights already is taken before any other, so that a path that
differs from the last one by a layer costs one layer's weights. Slots are only added, when a path needs more than there
are. Knows nothing of recipes; whoever asks brings plans.

Legend: `t` depth in the live model; a layer of the pool is one of the models' own.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, final

from evomerge.merging.depth import INDICES, find_stack, says_by_layer, signature
from evomerge.merging.layout import stacked
from evomerge.merging.plan import MergePlan, TensorPlan

if TYPE_CHECKING:
    import torch

    from evomerge.engines.places import Place
    from evomerge.merging.pool import ModelPool

__all__ = ["LayerStack"]

Content = dict[str, TensorPlan]
"""By name inside a layer, the plan of a tensor without its whole name: what its weights depend on."""


@dataclass(kw_only=True, eq=False)
class _Slot:
    """A layer in memory.

    Attributes:
        kind: the first of the pool's layers that is built like it; it can stand for all such.
        places: where its tensors lie in the module, by their names in files, inside the layer.
        content: what its weights are; empty if that is not known.
    """

    module: Any
    kind: int
    places: Mapping[str, Place]
    content: Content = field(default_factory=dict)

    def twin(self) -> _Slot:
        """Another slot of this kind, with memory of its own."""
        return _Slot(module=copy.deepcopy(self.module), kind=self.kind, places=self.places)


@final
class LayerStack:
    """The layers of one live model.

    Args:
        model: the live model, with the pool's own layers in order.
        pool: base and experts.
        places: where every tensor of the pool lies in the model, by its name there.

    Raises:
        MergeError: the model has no single list of layers.
    """

    def __init__(self, model: Any, pool: ModelPool, places: Mapping[str, Place]) -> None:
        name, self._owner = find_stack(model, pool.layers)
        self._attribute = name.rpartition(".")[2]
        self._config = model.config.get_text_config(decoder=True)
        self._pool = pool
        self._outside = {spec.name: places[spec.name].within(model) for spec in pool.specs if spec.layer is None}
        self._prefix = next(stacked(spec.name)[0] for spec in pool.specs if spec.layer is not None)
        modules = list(getattr(self._owner, self._attribute))
        first: dict[Any, int] = {}
        self._kinds = [first.setdefault(signature(module, layer), layer) for layer, module in enumerate(modules)]
        inside = _places_inside(modules, model, pool, places)
        self._slots = [
            _Slot(module=module, kind=kind, places=inside[layer])
            for layer, (module, kind) in enumerate(zip(modules, self._kinds, strict=True))
        ]
        self._order, self._layers = self._slots[:], [*range(pool.layers)]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The live tensors, by the names that plans have for them as layers lie now."""
        inside = {
            self._name(t, rest): place.within(slot.module)
            for t, slot in enumerate(self._order)
            for rest, place in slot.places.items()
        }
        return self._outside | inside

    def arrange(self, layers: Sequence[int], plan: MergePlan, previous: MergePlan | None) -> MergePlan | None:
        """Make the live model one whose layer t is built like layer `layers[t]` of the pool.

        Args:
            layers: see above.
            plan: what is to be written into it next.
            previous: what was written last, into all of it; None if nothing that counts.

        Returns:
            What the new arrangement holds already; None for nothing.
        """
        if previous is None:
            for slot in self._slots:
                slot.content = {}
        if [*layers] == self._layers == [*range(self._pool.layers)]:
            return previous
        if previous is not None:
            for slot, content in zip(self._order, self._contents(previous, len(self._order)), strict=True):
                slot.content = content
        self._install(self._chosen(layers, self._contents(plan, len(layers))), layers)
        if previous is None:
            return None
        held = [tensor for tensor in previous.tensors if tensor.name in self._outside]
        for t, slot in enumerate(self._order):
            held += [replace(tensor, name=self._name(t, rest)) for rest, tensor in slot.content.items()]
        return MergePlan(tensors=tuple(held))

    def _chosen(self, layers: Sequence[int], contents: Sequence[Content]) -> list[_Slot]:
        """A slot for each depth: one that holds it all, else the one that is there now, else any, else a new one."""
        free = dict.fromkeys(self._slots)
        chosen: list[_Slot | None] = [None] * len(layers)

        def take(t: int, candidates: Sequence[_Slot]) -> None:
            kind = self._kinds[layers[t]]
            if chosen[t] is None and (slot := next((s for s in candidates if s in free and s.kind == kind), None)):
                chosen[t] = slot
                del free[slot]

        holding: defaultdict[frozenset[tuple[str, TensorPlan]], list[_Slot]] = defaultdict(list)
        for slot in self._slots:
            holding[frozenset(slot.content.items())].append(slot)
        for t, content in enumerate(contents):
            take(t, holding.get(frozenset(content.items()), ()))
        for t in range(min(len(layers), len(self._order))):
            take(t, [self._order[t]])
        for t in range(len(layers)):
            take(t, self._slots)
        return [slot or self._grown(self._kinds[layers[t]]) for t, slot in enumerate(chosen)]

    def _grown(self, kind: int) -> _Slot:
        slot = self._slots[kind].twin()
        self._slots.append(slot)
        return slot

    def _install(self, order: list[_Slot], layers: Sequence[int]) -> None:
        """Hand the model its layers, and tell it and them of the new numbers."""
        from torch.nn import ModuleList

        for t, slot in enumerate(order):
            for module in slot.module.modules():
                for key in INDICES:
                    if key in vars(module):
                        setattr(module, key, t)
        setattr(self._owner, self._attribute, ModuleList(slot.module for slot in order))
        for key, value in says_by_layer(self._pool.config, layers).items():
            setattr(self._config, key, value)
        self._order, self._layers = order, [*layers]

    def _contents(self, plan: MergePlan, depth: int) -> list[Content]:
        """What a plan writes into each layer."""
        contents: list[Content] = [{} for _ in range(depth)]
        start = len(self._prefix) + 1
        for tensor in plan.tensors:
            if tensor.name not in self._outside:
                number, _, rest = tensor.name[start:].partition(".")
                contents[int(number)][rest] = replace(tensor, name="")
        return contents

    def _name(self, t: int, rest: str) -> str:
        return f"{self._prefix}.{t}.{rest}"


def _places_inside(
    modules: Sequence[Any], model: Any, pool: ModelPool, places: Mapping[str, Place]
) -> list[dict[str, Place]]:
    """For each layer, where tensors lie in its module, by their names in files."""
    inside: list[dict[str, Place]] = [{} for _ in modules]
    own = [
        {id(p): name for name, p in chain(module.named_parameters(remove_duplicate=False), module.named_buffers())}
        for module in modules
    ]
    for spec in pool.specs:
        if spec.layer is not None:
            place = places[spec.name]
            parameter = own[spec.layer][id(place.whole(model))]
            inside[spec.layer][stacked(spec.name)[1]] = replace(place, parameter=parameter)
    return inside
