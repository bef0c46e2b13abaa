"""Make two models that answer the same puzzles, one at once, the other by writing its steps first.

Both continue from the quickstart's base, on the skill `rc` (cipher, then reverse):

    short   ``#>*abcfed=`` -> ``jdbahf.``             7 tokens, and often wrong
    long    ``#>*abcfed=`` -> ``fhabdjjdbahf.``       13 tokens: the ciphered letters, then the answer

    python experiments/long_to_short/make_models.py       # writes ~/.cache/evomerge/long_to_short/{short,long}

This script knows nothing of evomerge.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

QUICKSTART = Path(__file__).parents[1] / "quickstart"
HOME = Path("~/.cache/evomerge/long_to_short").expanduser()
SKILL = "rc"
STEPS = {"short": 30, "long": 120}
RATE = 1e-3
POOL = 5_000


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


def at_once(item: Any) -> Any:
    """The item as it is."""
    return item


def with_steps(item: Any) -> Any:
    """The item with the ciphered letters, not yet reversed, before its answer."""
    family = quickstart()
    letters = item.prompt[-family.WORD - 1 : -1]
    return family.Item(prompt=item.prompt, answer=letters.translate(family.CIPHER) + item.answer)


def train(model: Any, written: Callable[[Any], Any], steps: int) -> float:
    """Train `model` in place on answers as `written` by its tutor; gives the last loss, in nats a token."""
    import torch

    family = quickstart()
    items = family.draw_items(SKILL, "train", POOL, "long to short")
    rows: Tensor = family.encode([written(item) for item in items])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    stream = torch.Generator().manual_seed(0)
    last = float("nan")
    for _ in range(steps):
        batch = rows[torch.randint(POOL, (family.BATCH,), generator=stream)]
        logits = model(batch[:, :-1], use_cache=False).logits[:, family.PROMPT - 1 :]  # the loss sees the answer only
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, family.PROMPT :].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(loss)
    return last


def make(out: Path) -> None:
    """Train both and write them as `out/short` and `out/long`, in bfloat16."""
    import torch
    from transformers import LlamaForCausalLM

    for name, written in {"short": at_once, "long": with_steps}.items():
        model = LlamaForCausalLM.from_pretrained(QUICKSTART / "models" / "base", dtype=torch.float32)
        loss = train(model, written, STEPS[name])
        quickstart().write_models({name: model.to(torch.bfloat16)}, out)
        print(f"{name}: {STEPS[name]} steps, loss {loss:.3f} nats a token")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both models."""
    import torch
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description="Make a model that answers at once, and one that writes its steps.")
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"default: {HOME}")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    make(options.out)


if __name__ == "__main__":
    main()
