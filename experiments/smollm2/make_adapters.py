"""The two experts as LoRA adapters on the base, for engines that serve candidates as adapters.

    python experiments/smollm2/make_adapters.py

Training folds its adapters into full weights; here they are found again, by the singular values of what each weight
changed by: `theta - theta_0 = U S V^T`, cut off at the rank that was trained. What is lost is rounding to bf16.

What this does not know: how the experts were trained, but for the rank and that it changed the blocks' linear layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FAMILY = Path("~/.cache/evomerge/smollm2").expanduser()
EXPERTS = ("arith", "sortwords")
RANK = 8


def extract(
    base: dict[str, torch.Tensor], expert: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Factors of every matrix that changed, by PEFT's names; and the modules."""
    factors, modules = {}, []
    for name, theta_0 in base.items():
        change = expert[name].float() - theta_0.float()
        if change.ndim != 2 or not change.any():
            continue
        u, s, v = torch.svd_lowrank(change, q=2 * RANK, niter=8)
        modules.append(name.removesuffix(".weight"))
        stem = f"base_model.model.{modules[-1]}.lora_"
        factors[f"{stem}A.weight"] = v[:, :RANK].T.contiguous()
        factors[f"{stem}B.weight"] = (u[:, :RANK] * s[:RANK]).contiguous()
    return factors, modules


def main() -> None:
    """Write a PEFT folder for each expert."""
    torch.manual_seed(0)  # svd_lowrank draws
    base = load_file(FAMILY / "base" / "model.safetensors")
    for name in EXPERTS:
        factors, modules = extract(base, load_file(FAMILY / name / "model.safetensors"))
        folder = FAMILY / f"{name}-adapter"
        folder.mkdir(exist_ok=True)
        save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
        (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": modules}, indent=2) + "\n")
        print(f"{folder}: {len(modules)} weights")


if __name__ == "__main__":
    main()
