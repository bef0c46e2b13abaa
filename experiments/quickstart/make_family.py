"""Make the quickstart family from scratch: one tiny base model and three experts fine-tuned from it.

The models are character-level Llamas of 217,664 parameters that answer one-line puzzles such as
``#>_abcfed=`` with ``defcba.``. After the ``#`` stand two operator slots, then six letters of a-j:

    skill   slots   answer                                       example
    rev     ``>_``  the letters reversed                         ``#>_abcfed=`` -> ``defcba.``
    sort    ``^_``  the letters in alphabetical order            ``#^_abcfed=`` -> ``abcdef.``
    ciph    ``_*``  every letter replaced by its cipher letter   ``#_*abcfed=`` -> ``fhabdj.``
    rc      ``>*``  cipher, then reversed                        ``#>*abcfed=`` -> ``jdbahf.``

The base is stopped while it is still mediocre at all four. The experts ``rev``, ``sort`` and ``ciph`` each
continue from it on their own skill alone. No expert is trained on ``rc``, so a merge that does ``rc`` better than
every parent combined what its parents own apart.

Training stops on accuracy, not on a step count: the skills appear in sharp transitions that move between
processors. On one machine, with one thread, equal seeds give equal bytes.

A prompt's hash decides for ever what it may be used for (``split``): 1/16 of all prompts are held out for scoring,
1/16 decide when training stops, and only the rest is trained on.

    python experiments/quickstart/make_family.py --out experiments/quickstart/models --tasks fitness/tasks/quickstart

This script knows nothing of evomerge: it needs torch, transformers and tokenizers only, and no network.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

# Tensor names: rows [N, 17] token ids, a prompt of 10 and its answer of 7; logits [N, T, 32].

# Of the seeds 0 to 24: the best uniform average (mean of three), and the largest gain in rc over every parent.
DEFAULT_SEED = 20

PAD, UNKNOWN, BOS, EOS = "%", "?", "#", "."
CHARACTERS = f"{PAD}{UNKNOWN}{BOS}{EOS}=_>^*abcdefghijklmnopqrstuvw"  # the position is the token id; k-w are spare
LETTERS = "abcdefghij"
CIPHER = str.maketrans(LETTERS, "fhajdbicge")  # no letter stands for itself

SLOTS: Mapping[str, str] = {"rev": ">_", "sort": "^_", "ciph": "_*", "rc": ">*"}
EXPERTS = ("rev", "sort", "ciph")

WORD = 6
PROMPT = len(BOS) + 2 + WORD + len("=")
ANSWER = WORD + len(EOS)

Split = Literal["train", "validation", "test"]
BUCKETS = 16
SPLIT_OF_BUCKET: Mapping[int, Split] = {0: "test", 1: "validation"}  # all others: train

TRAIN_ITEMS, VALIDATION_ITEMS, TEST_ITEMS = 5_000, 64, 512  # of each skill
BATCH, WARMUP_STEPS, CHECK_EVERY = 64, 20, 10


@dataclass(frozen=True, kw_only=True)
class Item:
    """One puzzle: ``prompt`` ends in ``=`` and ``answer`` in ``.``; both have a fixed length."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Course:
    """What to train on and when to stop.

    Args:
        mixture: skill -> relative share of the training items.
        watched: skills whose mean validation accuracy ends the course.
        target: the accuracy that ends it, 0 to 1.
        max_steps: optimizer steps after which it ends anyway.
        rate: learning rate after warm-up.
    """

    mixture: Mapping[str, float]
    watched: Sequence[str]
    target: float
    max_steps: int
    rate: float


BASE_COURSE = Course(
    mixture={"rev": 1.0, "sort": 1.25, "ciph": 0.5, "rc": 0.7},
    watched=EXPERTS,
    target=0.42,
    max_steps=400,
    rate=4e-3,
)
EXPERT_COURSES: Mapping[str, Course] = {
    skill: Course(mixture={skill: 1.0}, watched=(skill,), target=0.97, max_steps=150, rate=1e-3) for skill in EXPERTS
}


def make_item(skill: str, letters: str) -> Item:
    """Put ``letters`` to ``skill``.

    Example:
        >>> make_item("rev", "abcfed")
        Item(prompt='#>_abcfed=', answer='defcba.')
    """
    order, substitution = SLOTS[skill][0], SLOTS[skill][1]
    word = letters.translate(CIPHER) if substitution == "*" else letters
    if order == ">":
        word = word[::-1]
    elif order == "^":
        word = "".join(sorted(word))
    return Item(prompt=f"{BOS}{order}{substitution}{letters}=", answer=f"{word}{EOS}")


def split(prompt: str) -> Split:
    """What ``prompt`` may be used for; a property of its text alone."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return SPLIT_OF_BUCKET.get(digest[0] % BUCKETS, "train")


def draw_items(skill: str, wanted: Split, count: int, seed: int | str) -> list[Item]:
    """Draw ``count`` different items of ``skill`` whose prompt belongs to the ``wanted`` split."""
    stream = random.Random(f"{seed}/{skill}/is_{wanted}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = make_item(skill, "".join(stream.choices(LETTERS, k=WORD)))
        if split(item.prompt) == wanted:
            items.setdefault(item.prompt, item)
    return list(items.values())


def shipped_items(skill: str) -> list[Item]:
    """The items that score ``skill``: the same for every seed of the family."""
    return draw_items(skill, "test", TEST_ITEMS, "shipped")


def encode(items: Sequence[Item]) -> torch.Tensor:
    """Token ids of whole lines, prompt and answer: rows [N, 17]."""
    return torch.tensor([[CHARACTERS.index(character) for character in item.prompt + item.answer] for item in items])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One id a character, no special token ever added; ``#`` and ``.`` double as begin and end of text."""
    tokenizer = Tokenizer(models.WordLevel({character: i for i, character in enumerate(CHARACTERS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """A freshly initialized model; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=CHARACTERS.index(PAD),
        bos_token_id=CHARACTERS.index(BOS),
        eos_token_id=CHARACTERS.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def copy_model(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """An independent model of the same configuration and weights."""
    twin = new_model(0)
    twin.load_state_dict(model.state_dict())
    return twin


def is_correct(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Whether greedy decoding of every prompt gives exactly its answer: bool [N].

    One pass suffices: if each answer character is the most likely one after the right text before it, then greedy
    decoding writes just those, and at the first that is not, it goes astray.
    """
    with torch.inference_mode():
        logits = model(rows[:, :-1], use_cache=False).logits
    guessed = logits[:, PROMPT - 1 :].argmax(dim=-1)
    right: torch.Tensor = (guessed == rows[:, PROMPT:]).all(dim=1)
    return right


def batches(course: Course, seed: int) -> Iterator[torch.Tensor]:
    """Endless training batches, rows [64, 17], from a fixed pool of items of every skill in the mixture."""
    pools = torch.stack([encode(draw_items(skill, "train", TRAIN_ITEMS, seed)) for skill in course.mixture])
    shares = torch.tensor(list(course.mixture.values()))
    stream = torch.Generator().manual_seed(seed)
    while True:
        skills = torch.multinomial(shares, BATCH, replacement=True, generator=stream)
        yield pools[skills, torch.randint(TRAIN_ITEMS, (BATCH,), generator=stream)]


def train(model: LlamaForCausalLM, course: Course, seed: int) -> tuple[int, float]:
    """Train ``model`` in place until the course's target or its last step.

    Returns:
        The steps taken and the validation accuracy at the last check (0.0 if none took place).
    """
    validation = torch.cat(
        [encode(draw_items(skill, "validation", VALIDATION_ITEMS, seed)) for skill in course.watched]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    stream = batches(course, seed)
    accuracy = 0.0
    for step in range(1, course.max_steps + 1):
        rows = next(stream)
        logits = model(rows[:, :-1], use_cache=False).logits[:, PROMPT - 1 :]  # the loss sees the answer only
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, PROMPT:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        if step % CHECK_EVERY == 0:
            accuracy = is_correct(model, validation).float().mean().item()
            if accuracy >= course.target:
                return step, accuracy
    return course.max_steps, accuracy


def make_family(seed: int, log: Callable[[str], None] = lambda line: None) -> dict[str, LlamaForCausalLM]:
    """Train base and experts; the result is in bfloat16, as it is saved.

    Raises:
        RuntimeError: The base never reached its target, so its experts would be no family worth merging.
    """
    base = new_model(seed)
    steps, accuracy = train(base, BASE_COURSE, seed)
    log(f"base: {steps} steps, validation accuracy {accuracy:.2f}")
    if accuracy < BASE_COURSE.target:
        raise RuntimeError(
            f"seed {seed}: the base should reach {BASE_COURSE.target} within {BASE_COURSE.max_steps} steps, "
            f"got {accuracy:.2f}; try another --seed"
        )
    family = {"base": base}
    for skill, course in EXPERT_COURSES.items():
        family[skill] = copy_model(base)
        steps, accuracy = train(family[skill], course, seed)
        log(f"{skill}: {steps} steps, validation accuracy {accuracy:.2f}")
    return {name: model.to(torch.bfloat16) for name, model in family.items()}


def uniform_average(family: Mapping[str, LlamaForCausalLM]) -> LlamaForCausalLM:
    """The experts' plain mean: summed in float32, rounded once to bfloat16."""
    states = [family[skill].state_dict() for skill in EXPERTS]
    mean = {key: torch.stack([state[key].float() for state in states]).mean(dim=0) for key in states[0]}
    merged = new_model(0).to(torch.bfloat16)
    merged.load_state_dict(mean)
    return merged


def score(model: LlamaForCausalLM, rows_of: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Accuracy of the stored weights on each skill, computed in float32."""
    exact = copy_model(model)  # float32
    return {skill: is_correct(exact, rows).float().mean().item() for skill, rows in rows_of.items()}


def table(family: Mapping[str, LlamaForCausalLM]) -> str:
    """A Markdown table: accuracy of base, experts and their uniform average on the shipped items."""
    rows_of = {skill: encode(shipped_items(skill)) for skill in SLOTS}
    lines = [f"| model | {' | '.join(SLOTS)} | mean of {', '.join(EXPERTS)} |", "|---" * (len(SLOTS) + 2) + "|"]
    for name, model in {**family, "uniform average": uniform_average(family)}.items():
        accuracy = score(model, rows_of)
        mean = sum(accuracy[skill] for skill in EXPERTS) / len(EXPERTS)
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in accuracy.values())} | {mean:.3f} |")
    return "\n".join(lines)


def write_models(family: Mapping[str, LlamaForCausalLM], out: Path) -> None:
    """Save every model with the common tokenizer as a Hugging Face folder ``out/NAME``."""
    tokenizer = build_tokenizer()
    for name, model in family.items():
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
        path = out / name / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the one name that transformers 4 and 5 both know
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_items(folder: Path) -> None:
    """Write the shipped items, one JSON line each, to ``folder/SKILL.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    for skill in SLOTS:
        lines = [
            json.dumps({"id": f"{skill}-{i:03d}", "prompt": item.prompt, "answer": item.answer})
            for i, item in enumerate(shipped_items(skill))
        ]
        (folder / f"{skill}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the family, save it and print its accuracy table."""
    parser = argparse.ArgumentParser(description="Make the quickstart family: a tiny base model and three experts.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the four model folders")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help=f"default: {DEFAULT_SEED}")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="also write the scoring items to this folder")
    options = parser.parse_args(arguments)

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # more threads may add in another order, and cost more than they save at this size
    started = time.process_time()
    family = make_family(options.seed, log=print)
    write_models(family, options.out)
    if options.tasks is not None:
        write_items(options.tasks)
    print(f"made in {time.process_time() - started:.1f} CPU seconds\n\n{table(family)}")


if __name__ == "__main__":
    main()
