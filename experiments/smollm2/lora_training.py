"""LoRA, written by hand: adapters on the linear layers of a model's blocks, trained on one skill and folded in.

Knows the skills by name only: `skill_questions` says what they ask.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skill_questions import Question, questions

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 64  # tokens in one training example, prompt and answer
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one expert is trained; the defaults are the recipe of the README."""

    seed: int = 0
    steps: int = 300
    batch: int = 16
    rate: float = 2e-3
    rank: int = 8


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A low-rank update of one linear layer, added to its output by a forward hook."""

    down: Tensor
    up: Tensor

    def __call__(self, module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Add the update to the layer's output."""
        inputs = args[0]
        return output + (inputs @ self.down.to(inputs).T) @ self.up.to(inputs).T

    def delta(self) -> Tensor:
        """Return the update as a full matrix, in fp32."""
        return (self.up @ self.down).detach()


def attach(model: PreTrainedModel, training: Training) -> dict[str, Adapter]:
    """Freeze the model and hook one adapter to every linear layer of its blocks.

    Returns:
        The adapters by the name of the weight they update.
    """
    import torch

    generator = torch.Generator().manual_seed(training.seed)
    model.requires_grad_(False)
    adapters = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            down = torch.randn(training.rank, module.in_features, generator=generator)
            down = (down / module.in_features**0.5).requires_grad_()
            up = torch.zeros(module.out_features, training.rank, requires_grad=True)
            adapters[f"{name}.weight"] = Adapter(down=down, up=up)
            module.register_forward_hook(adapters[f"{name}.weight"])
    return adapters


def encode(batch: list[Question], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Return tokens and labels, both (batch, length): answer and end token are labelled, the rest -100."""
    import torch

    end = tokenizer.eos_token_id
    rows = []
    for _, prompt, answer in batch:
        start = len(tokenizer(prompt)["input_ids"])
        ids = [*tokenizer(f"{prompt} {answer}")["input_ids"], end]
        rows.append((ids[:LONGEST], [-100] * start + ids[start:LONGEST]))
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [end] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([wanted + [-100] * (width - len(wanted)) for _, wanted in rows])
    return tokens, labels


def answer_loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers; the head runs on answer positions only."""
    from torch.nn.functional import cross_entropy

    targets = labels[:, 1:]
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    wanted = targets != -100
    loss: Tensor = cross_entropy(model.lm_head(hidden[wanted]).float(), targets[wanted])
    return loss


def train(base: Path, skill: str, training: Training) -> dict[str, Adapter]:
    """Train adapters on one skill and return them by weight name."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    adapters = attach(model, training)
    weights = [w for adapter in adapters.values() for w in (adapter.down, adapter.up)]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=0.0)
    # Ten steps up, then straight down to a tenth.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, 1.0) * (1.0 - 0.9 * step / training.steps)
    )
    stream = questions(skill, held_out=False, seed=training.seed)
    for step in range(1, training.steps + 1):
        batch = [next(stream) for _ in range(training.batch)]
        loss = answer_loss(model, *encode(batch, tokenizer))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"{skill}: step {step}/{training.steps}, loss {loss.item():.3f}", flush=True)
    return adapters


def fold(base: Path, adapters: dict[str, Adapter], target: Path) -> None:
    """Write the base with the updates added to its weights: fp32 sum, one rounding to bf16."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(base / WEIGHTS)
    for name, adapter in adapters.items():
        stored = tensors[name]
        tensors[name] = (stored.float() + adapter.delta()).to(stored.dtype)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
