"""Make 16 checkpoints of the quickstart family, such as a lab has left over: each trained on another mix of skills.

Every checkpoint continues from the quickstart's base, on a mix of `rev`, `sort` and `ciph` and for a number of steps
that are drawn for it. Trained, validated and scored are different items, as in `make_family.py`.

    python experiments/quickstart/make_checkpoints.py        # writes ~/.cache/evomerge/recycle/{c00 ... c15}

This script knows nothing of evomerge.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from make_family import EXPERTS, Course, train, write_models
from transformers import LlamaForCausalLM
from transformers.utils import logging

BASE = Path(__file__).parent / "models" / "base"
HOME = Path("~/.cache/evomerge/recycle").expanduser()
CHECKPOINTS = 16
FEWEST_STEPS, MOST_STEPS = 30, 90


def course(number: int) -> Course:
    """What checkpoint `number` is trained on, and for how long: a function of its number alone."""
    stream = random.Random(f"checkpoint {number}")
    return Course(
        mixture={skill: stream.expovariate(1.0) for skill in EXPERTS},
        watched=EXPERTS,
        target=1.0,
        max_steps=stream.randint(FEWEST_STEPS, MOST_STEPS),
        rate=1e-3,
    )


def make(number: int, out: Path) -> str:
    """Train one checkpoint and write it as `out/cNN`, in bfloat16; says what it was trained on."""
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    plan = course(number)
    steps, accuracy = train(model, plan, number)
    write_models({f"c{number:02d}": model.to(torch.bfloat16)}, out)
    shares = ", ".join(f"{skill} {weight / sum(plan.mixture.values()):.2f}" for skill, weight in plan.mixture.items())
    return f"c{number:02d}: {steps} steps on {shares}; validation accuracy {accuracy:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the checkpoints."""
    parser = argparse.ArgumentParser(description="Make 16 checkpoints of the quickstart family.")
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"default: {HOME}")
    parser.add_argument("--count", type=int, default=CHECKPOINTS, metavar="N", help=f"default: {CHECKPOINTS}")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for number in range(options.count):
        print(make(number, options.out))


if __name__ == "__main__":
    main()
