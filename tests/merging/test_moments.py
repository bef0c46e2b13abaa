"""Second moments beside experts: what is missing is told before anything is merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.merging.moments import require_moments
from evomerge.merging.pool import ModelPool

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
UP = "model.layers.1.mlp.up_proj.weight"

Change = Callable[[dict[str, torch.Tensor]], None]


def pool_with(folder: Path, change: Change) -> ModelPool:
    shutil.copytree(MODELS / "rev", folder / "rev")
    moments = {name: tensor.float() ** 2 for name, tensor in load_file(MODELS / "rev" / "model.safetensors").items()}
    change(moments)
    save_file(moments, folder / "rev" / "second_moments.safetensors")
    return ModelPool.open(MODELS / "base", {"rev": folder / "rev"})


def in_factors(moments: dict[str, torch.Tensor]) -> None:
    whole = moments.pop(UP)
    moments[f"{UP}.row"], moments[f"{UP}.column"] = whole.mean(1), whole.mean(0)


def of_matrices_alone(moments: dict[str, torch.Tensor]) -> None:
    for name in [name for name in moments if "norm" in name or "embed" in name]:
        del moments[name]


@pytest.mark.parametrize("change", [lambda moments: None, in_factors, of_matrices_alone])
def test_what_the_transform_can_use_is_taken(change: Change, tmp_path: Path) -> None:
    require_moments(pool_with(tmp_path, change))


def cut(moments: dict[str, torch.Tensor]) -> None:
    moments[UP] = moments[UP][1:].clone()


def without_columns(moments: dict[str, torch.Tensor]) -> None:
    in_factors(moments)
    del moments[f"{UP}.column"]


def with_sides_swapped(moments: dict[str, torch.Tensor]) -> None:
    in_factors(moments)
    moments[f"{UP}.row"], moments[f"{UP}.column"] = moments[f"{UP}.column"], moments[f"{UP}.row"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda moments: moments.pop(UP), rf"rev: .*expected {UP} of shape \[\d+, \d+\]; got no such tensor"),
        (cut, rf"expected {UP} of shape \[\d+, \d+\]; got shape \[\d+, \d+\]"),
        (without_columns, rf"expected {UP}\.column of shape \[\d+\]; got no such tensor"),
        (with_sides_swapped, rf"expected {UP}\.row of shape \[\d+\]; got shape"),
        (dict.clear, r"(?s)down_proj.*25 more like these"),
    ],
)
def test_what_it_lacks_is_told(change: Change, fault: str, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=fault):
        require_moments(pool_with(tmp_path, change))


def test_every_expert_without_a_file_is_told() -> None:
    pool = ModelPool.open(MODELS / "base", {name: MODELS / name for name in ("rev", "sort")})
    with pytest.raises(PoolError, match=r"(?s)rev: expected them as .*second_moments.*sort: .*or leave ota out"):
        require_moments(pool)
