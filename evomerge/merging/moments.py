"""Second moments of optimizers that experts bring beside their weights: whether they are there. Opens headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.errors import PoolError
from evomerge.merging.calibrated import MOMENTS_FILE
from evomerge.merging.checkpoint import read_header
from evomerge.merging.layout import is_matrix, stores_inputs_first

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["require_moments"]

_NAMED = 3
"""Faults of an expert that are told one by one."""


def require_moments(pool: ModelPool) -> None:
    """Refuse experts that lack second moments of a linear map inside a layer.

    Raises:
        PoolError: of each expert, the file or the tensors that are missing or have another shape.
    """
    if faults := [f"{expert}: {fault}" for expert in pool.experts for fault in _faults(pool, expert)]:
        raise PoolError("\n  ".join(["the transform ota needs second moments of each expert's optimizer", *faults]))


def _faults(pool: ModelPool, expert: str) -> list[str]:
    file = pool.folder(expert) / MOMENTS_FILE
    if not file.is_file():
        return [f"expected them as {file}; got no such file; save them, or leave ota out"]
    try:
        shapes = {tensor.name: tensor.shape for tensor in read_header(file)}
    except PoolError as error:
        return [str(error)]
    kind = str(pool.config.get("model_type"))
    faults = [f"{file}: {fault}" for spec in pool.specs if is_matrix(spec) and (fault := _fault(spec, shapes, kind))]
    more = [f"{file}: {len(faults) - _NAMED} more like these"] if len(faults) > _NAMED else []
    return faults[:_NAMED] + more


def _fault(spec: TensorSpec, shapes: dict[str, tuple[int, ...]], kind: str) -> str:
    """What is wrong with the second moments of one tensor; empty if nothing."""
    *lead, rows, columns = spec.shape
    if stores_inputs_first(spec.name, len(spec.shape), kind):
        rows, columns = columns, rows
    wanted = {f"{spec.name}.row": (*lead, rows), f"{spec.name}.column": (*lead, columns)}
    if spec.name in shapes or not wanted.keys() & shapes.keys():
        wanted = {spec.name: spec.shape}
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            got = f"shape {[*shapes[name]]}" if name in shapes else "no such tensor"
            return f"expected {name} of shape {[*shape]}; got {got}"
    return ""
