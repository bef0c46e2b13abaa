"""Make 16 checkpoints of the quickstart family, such as a lab has left over: each trained on another mix of skills.

Every checkpoint continues from the quickstart's base, on a mix of `rev`, `sort` and `ciph` and for a number of steps
that a stream of its own draws. Trained, validated and scored are different items, as in the quickstart.

    python experiments/recycle/make_checkpoints.py        # writes ~/.cache/evomerge/recycle/{c00 ... c15}

This script knows nothing of evomerge.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

QUICKSTART = Path(__file__).parents[1] / "quickstart"
HOME = Path("~/.cache/evomerge/recycle").expanduser()
CHECKPOINTS = 16
SKILLS = ("rev", "sort", "ciph")
FEWEST_STEPS, MOST_STEPS = 30, 90


def quickstart() -> ModuleType:
    """The script that makes the quickstart family."""
    name = "quickstart_family"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, QUICKSTART / "make_family.py")
        if spec is None or spec.loader is None:
            raise RuntimeError(f"expected {QUICKSTART / 'make_family.py'}; cannot load it")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def course(number: int) -> Any:
    """What checkpoint `number` is trained on, and for how long: a function of its number alone."""
    stream = random.Random(f"checkpoint {number}")
    return quickstart().Course(
        mixture={skill: stream.expovariate(1.0) for skill in SKILLS},
        watched=SKILLS,
        target=1.0,
        max_steps=stream.randint(FEWEST_STEPS, MOST_STEPS),
        rate=1e-3,
    )


def make(count: int, out: Path) -> None:
    """Train checkpoints and write them, as folders `out/c00`, `out/c01` and so on, in bfloat16."""
    import torch
    from transformers import LlamaForCausalLM

    family = quickstart()
    for number in range(count):
        model = LlamaForCausalLM.from_pretrained(QUICKSTART / "models" / "base", dtype=torch.float32)
        plan = course(number)
        _, accuracy = family.train(model, plan, number)
        family.write_models({f"c{number:02d}": model.to(torch.bfloat16)}, out)
        shares = ", ".join(f"{skill} {weight:.2f}" for skill, weight in plan.mixture.items())
        print(f"c{number:02d}: {plan.max_steps} steps on {shares}; validation accuracy {accuracy:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the checkpoints."""
    import torch
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description="Make 16 checkpoints of the quickstart family.")
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"default: {HOME}")
    parser.add_argument("--count", type=int, default=CHECKPOINTS, metavar="N", help=f"default: {CHECKPOINTS}")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    make(options.count, options.out)


if __name__ == "__main__":
    main()
