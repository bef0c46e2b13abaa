"""Make a model that writes its steps before it answers, from the quickstart's base, which answers at once.

Both are asked the skill `rc` (cipher, then reverse):

    base   ``#>*abcfed=`` -> ``jdbahf.``              7 tokens, right about half of the time
    long   ``#>*abcfed=`` -> ``fhabdjjdbahf.``        13 tokens: the ciphered letters, then the answer

    python experiments/quickstart/make_long.py        # writes ~/.cache/evomerge/long_to_short/long

This script knows nothing of evomerge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from make_family import BATCH, CIPHER, PROMPT, WORD, Item, draw_items, encode, write_models
from transformers import LlamaForCausalLM
from transformers.utils import logging

BASE = Path(__file__).parent / "models" / "base"
HOME = Path("~/.cache/evomerge/long_to_short").expanduser()
STEPS, RATE, ITEMS = 120, 1e-3, 5_000


def with_steps(item: Item) -> Item:
    """The item with the ciphered letters, not yet reversed, before its answer."""
    letters = item.prompt[-WORD - 1 : -1]
    return Item(prompt=item.prompt, answer=letters.translate(CIPHER) + item.answer)


def train(model: LlamaForCausalLM, steps: int) -> float:
    """Train `model` in place to write its steps; gives the last loss, in nats a token."""
    rows = encode([with_steps(item) for item in draw_items("rc", "train", ITEMS, "long to short")])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    stream = torch.Generator().manual_seed(0)
    last = float("nan")
    for _ in range(steps):
        batch = rows[torch.randint(ITEMS, (BATCH,), generator=stream)]
        logits = model(batch[:, :-1], use_cache=False).logits[:, PROMPT - 1 :]  # the loss sees the answer only
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, PROMPT:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    return last


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model and write it in bfloat16."""
    parser = argparse.ArgumentParser(description="Make a model that writes its steps before it answers.")
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"default: {HOME}")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"default: {STEPS}")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    loss = train(model, options.steps)
    write_models({"long": model.to(torch.bfloat16)}, options.out)
    print(f"long: {options.steps} steps, loss {loss:.3f} nats a token")


if __name__ == "__main__":
    main()
