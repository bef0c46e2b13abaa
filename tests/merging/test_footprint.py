from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from evomerge.errors import ConfigError
from evomerge.merging.footprint import RESERVE, Memory, Needs, Tier, choose, footprints, needs_of
from evomerge.merging.pool import ModelPool

GB = 10**9
# an 8B base and four experts in bf16
NEEDS = Needs(live=16 * GB, held=80 * GB, widest=5 * GB, made=0, scratch=(10**7, GB))


@pytest.mark.parametrize(
    ("device", "host", "workers", "tier"),
    [
        (141, 200, 1, "device"),
        (80, 200, 1, "pinned"),
        (80, 200, 2, "pinned"),
        (80, 200, 8, "mapped"),  # as many times 80 GB cannot be pinned
        (80, 64, 1, "mapped"),
    ],
)
def test_the_best_tier_that_fits(device: int, host: int, workers: int, tier: str) -> None:
    memory = Memory(device=device * GB, host=host * GB, workers=workers)
    assert choose(footprints(NEEDS, on_device=True), memory).tier == tier


@pytest.mark.parametrize("wanted", ["auto", "device", "pinned", "mapped"])
def test_what_does_not_fit_is_refused_with_what_to_do(wanted: Tier | Literal["auto"]) -> None:
    memory = Memory(device=24 * GB, host=64 * GB)
    with pytest.raises(ConfigError, match=r"22\.4 GiB on the device, .*; use fewer workers, a smaller engine\.dtype"):
        choose(footprints(NEEDS, on_device=True), memory, wanted)


def test_a_wish_is_a_wish(make_family: Callable[..., Any]) -> None:
    memory = Memory(device=200 * GB, host=400 * GB)
    assert choose(footprints(NEEDS, on_device=True), memory, "pinned").tier == "pinned"
    cpu = footprints(NEEDS, on_device=False)
    assert [tier.tier for tier in cpu] == ["mapped"]
    assert choose(cpu, Memory(device=None, host=20 * GB)).host == NEEDS.live + NEEDS.scratch[0]
    with pytest.raises(ConfigError, match="expected a GPU for 'device'; got a CPU"):
        choose(cpu, Memory(device=None, host=20 * GB), "device")


def test_sums(make_family: Callable[..., Any]) -> None:
    family = make_family(dtype="bfloat16")
    pool = ModelPool.open(family.base, family.experts)
    elements = sum(pool.tensor("base", spec.name).numel() for spec in pool.specs)
    exact, small = needs_of(pool, "float32"), needs_of(pool, "float32", "int8")
    assert exact.live == small.live == 4 * elements
    assert exact.held == 3 * 2 * elements
    assert 2 * elements + 2 * 1.03 * elements < small.held < exact.held
    device, pinned, mapped = footprints(exact, on_device=True)
    assert device.device == exact.live + exact.held + exact.scratch[1] + RESERVE
    assert pinned.host == exact.held
    assert mapped.host == device.host == 0


def test_what_adapters_change_is_made_anew(make_family: Callable[..., Any], tmp_path: Path) -> None:
    family = make_family(dtype="bfloat16", experts=("full",))
    change = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(16, 2),
    }
    adapters = {name: tmp_path / name for name in ("one", "two")}
    for folder in adapters.values():
        folder.mkdir()
        save_file(change, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    pool = ModelPool.open(family.base, {**family.experts, **adapters})
    needs = needs_of(pool, "bfloat16")
    elements = sum(math.prod(spec.shape) for spec in pool.specs)
    assert needs.made == 3 * 4 * 16 * 16  # both, and the base in their dtype
    assert needs.held == 4 * 2 * elements + 2 * 2 * 16 * 16
    assert {tier.host - needs.made for tier in footprints(needs, on_device=True)} == {0, needs.held}
    (mapped,) = footprints(needs, on_device=False)
    assert mapped.host == needs.live + needs.scratch[0] + needs.made
    assert needs_of(ModelPool.open(family.base, family.experts), "bfloat16").made == 0
