"""Which memory of a live transformers model is which of a pool's tensors.

transformers 5 gave the parameters of some architectures other names than their files have, and packs the maps of a
mixture's experts into one parameter for a layer, where files hold a tensor for each expert. It tells both itself, as
rules for loading; what they stack or join is undone by views, so that writing a tensor is writing into the parameter.
Knows nothing of recipes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, final

from evomerge.errors import PoolError

if TYPE_CHECKING:
    import torch

    from evomerge.merging.pool import ModelPool

__all__ = ["Place", "places_of"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a tensor lies in a model, or in a layer of one.

    Attributes:
        parameter: the name of the parameter that holds it, or of the buffer, where that is loaded from files, too.
        shape, strides: of the tensor.
        offset: of its first element from the parameter's.
    """

    parameter: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, name: str, parameter: torch.Tensor, view: torch.Tensor) -> Place:
        """The place of a view of a parameter."""
        offset = int(view.storage_offset() - parameter.storage_offset())
        return cls(parameter=name, shape=tuple(view.shape), strides=tuple(view.stride()), offset=offset)

    def whole(self, module: Any) -> torch.Tensor:
        """The parameter, or the buffer."""
        owner, _, name = self.parameter.rpartition(".")
        found: torch.Tensor = getattr(module.get_submodule(owner), name)
        return found

    def within(self, module: Any) -> torch.Tensor:
        """The tensor itself, as memory that may be written to.

        Args:
            module: the model, or the layer.
        """
        whole = self.whole(module).data
        here: torch.Tensor = whole.as_strided(self.shape, self.strides, whole.storage_offset() + self.offset)
        return here


def places_of(model: Any, pool: ModelPool) -> Mapping[str, Place]:
    """The place of every tensor in the pool.

    Raises:
        PoolError: a tensor without a place, a parameter without a tensor, or two different shapes.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    live = parameters | {name: buffers[name] for name in model.state_dict().keys() & buffers.keys()}
    specs = {spec.name: spec for spec in pool.specs}
    places, faults = _placed(model, live, specs)
    for name, place in places.items():
        if place.shape != specs[name].shape:
            faults.append(f"tensor {name}: shape {[*specs[name].shape]}, but {[*place.shape]} in the model")
    covered = {id(live[place.parameter]) for place in places.values()}  # tied parameters are one object
    faults += [f"parameter {name}: no such tensor" for name, own in parameters.items() if id(own) not in covered]
    if faults:
        raise PoolError(
            f"{pool.folder(pool.base)}: its weights do not fit the model that its config.json describes\n  "
            + "\n  ".join(sorted(faults))
        )
    return {name: places[name] for name in specs}


def _placed(model: Any, live: Mapping[str, torch.Tensor], stored: Iterable[str]) -> tuple[dict[str, Place], list[str]]:
    """Places of tensors by their stored names, and what is wrong with the others."""
    places, faults = {}, []
    packed: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    renaming, converting = _rules(model)
    for name, parameter, pattern in _read_as(model, stored, renaming, converting):
        if parameter not in live:
            faults.append(f"tensor {name}: the model has no such parameter")
        elif pattern is None:
            places[name] = Place.of(parameter, live[parameter], live[parameter])
        else:
            packed[parameter][pattern].append(name)
    rules = {pattern: rule for rule in converting for pattern in rule.source_patterns}
    for parameter, by_pattern in packed.items():
        rule, whole = rules[next(iter(by_pattern))], live[parameter]
        names = [by_pattern[pattern] for pattern in rule.source_patterns]
        views = _views(whole, rule.operations, names)
        places |= {name: Place.of(parameter, whole, view) for name, view in views.items()}
        faults += [
            f"tensor {name}: transformers makes {parameter}, {[*whole.shape]}, of {sum(map(len, names))} such "
            f"tensors by {rule.operations}, which cannot be undone in place"
            for name in chain(*names)
            if name not in views
        ]
    return places, faults


def _views(packed: torch.Tensor, operations: Sequence[Any], names: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """The parts of a parameter by the names of the tensors that were stacked, joined or both; empty for anything else.

    Args:
        packed: the parameter.
        operations: transformers', in order.
        names: of the tensors in order, in a list for each pattern of names.
    """
    every, kinds = [*chain(*names)], [type(operation).__name__ for operation in operations]
    if kinds == ["Transpose"] and operations[0].check_dims:  # of files that hold another shape alone
        return dict.fromkeys(every, packed)
    if kinds not in (["MergeModulelist"], ["Concatenate"], ["MergeModulelist", "Concatenate"]):
        return {}
    stacked = kinds[0] == "MergeModulelist"
    parts: Sequence[torch.Tensor] = [packed]
    if kinds[-1] == "Concatenate":
        parts = packed.chunk(len(names) if stacked else len(every), operations[-1].dim)
    if stacked:
        parts = [part for joined in parts for part in joined.unbind(operations[0].dim)]
    return dict(zip(every, parts, strict=True)) if len(every) == len(parts) else {}


def _read_as(
    model: Any, stored: Iterable[str], renaming: Sequence[Any], converting: Sequence[Any]
) -> Iterator[tuple[str, str, str | None]]:
    """Tensor, the parameter that it is read into, and the pattern of the rule that converts it; as rules take them."""
    if not renaming and not converting:
        yield from ((name, name, None) for name in stored)
        return
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    prefix, weights = model.base_model_prefix, model.state_dict()
    for name in sorted(stored, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renaming, converting, prefix, weights)
        known = parameter in weights or name not in weights
        yield (name, parameter, pattern) if known else (name, name, None)


def _rules(model: Any) -> tuple[list[Any], list[Any]]:
    """How transformers reads tensors of files into parameters: rules for names, and rules that make one of several."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
    except ImportError:  # transformers 4 keeps names and tensors
        return [], []
    rules = get_model_conversion_mapping(model)
    renaming = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    return renaming, [rule for rule in rules if isinstance(rule, WeightConverter)]
