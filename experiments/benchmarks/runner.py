"""The runner's figures: what scoring takes beside the model's forward passes, and what sharing prompts saves.

Run it with `make bench NAME=runner`; `QUICK=1` is shorter. SmolLM2-135M in bf16 on one thread, 40 made-up
multiple-choice items; medians of CPU seconds, with the compared runs taking turns. `make smollm2` gets the model.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from table import QUICK, Row, conclude

from evomerge.config import FitnessConfig, ItemsConfig, ObjectiveConfig, TransformersConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.loglikelihood import Batch, keeps_branches_apart, make_batches
from evomerge.merging.pool import ModelPool
from evomerge.outcome import ItemSet

MODEL = Path("~/.cache/evomerge/smollm2/base").expanduser()
WORDS = (
    "the",
    "of",
    "river",
    "seven",
    "green",
    "why",
    "stone",
    "under",
    "to",
    "and",
    "light",
    "because",
    "music",
    "over",
)
ITEMS, CHOICES = 40, 4
REPEATS = 5
TARGET = 0.05


def write_task(folder: Path) -> FitnessConfig:
    """Items of 20 to 80 words with choices of 1 to 6."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    records = [
        {"question": text(20, 80), "choices": [" " + text(1, 6) for _ in range(CHOICES)], "answer": draw.randrange(4)}
        for _ in range(ITEMS)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "items.yaml").write_text(yaml.safe_dump(task))
    objective = ObjectiveConfig(name="acc", task="made_up")
    return FitnessConfig(tasks=(folder,), objectives=(objective,), items=ItemsConfig(search=4, confirm=4))


def forward_alone(engine: TransformersEngine, batches: tuple[Batch, ...]) -> None:
    """The same forward passes, with nothing around them."""
    with torch.inference_mode():
        for batch in batches:
            inputs = {}
            if batch.branches is not None:
                inputs = {"position_ids": batch.branches.positions, "attention_mask": batch.branches.visible}
            engine.model(input_ids=batch.tokens, use_cache=False, logits_to_keep=batch.keep, **inputs)


def taking_turns(*functions: Callable[[], object]) -> list[float]:
    """Median CPU seconds of each; a first round warms up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for function, measured in zip(functions, seconds, strict=True):
            started = time.process_time()
            function()
            if repeat:
                measured.append(time.process_time() - started)
    return [statistics.median(measured) for measured in seconds]


def measure() -> list[Row]:
    """Score, forward alone, and forward without sharing."""
    engine = TransformersEngine(ModelPool.open(MODEL, {}), TransformersConfig(device="cpu", batch_size=8))
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        runner = EvalRunner(engine, write_task(Path(folder)), seed=0)
        building = time.process_time() - started
    items = ItemSet.of({"made_up": tuple(range(10 if QUICK else ITEMS))})
    pairs = [pair for i in dict(items.tasks)["made_up"] for pair in runner._items["made_up"][i].pairs]
    share = keeps_branches_apart(engine.model)
    shared, plain = (
        make_batches(pairs, batch_size=8, max_length=2048, device="cpu", share_prompts=wanted)
        for wanted in (share, False)
    )
    score, alone, unshared = taking_turns(
        lambda: runner.score(items), lambda: forward_alone(engine, shared), lambda: forward_alone(engine, plain)
    )
    overhead = score / alone - 1
    return [
        Row(
            name="scoring beyond the bare forward passes, CPU time",
            target=f"<= {TARGET:.0%}",
            measured=f"{overhead:+.1%} ({score:.2f} s against {alone:.2f} s)",
            met=overhead <= TARGET,
        ),
        Row(
            name="forward passes that share prompts, against one for each choice",
            target="faster",
            measured=f"{unshared / alone:.2f} times as fast ({unshared:.2f} s without)",
            met=alone < unshared,
        ),
        Row(name="building all requests, once per worker", target="-", measured=f"{building:.2f} s", met=None),
    ]


if __name__ == "__main__":
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not MODEL.is_dir():
        sys.exit(f"expected SmolLM2 in {MODEL}; got nothing; run: make smollm2")
    conclude("Runner", measure())
