"""Score model folders, and the average of experts, on the smollm2 tasks through plain lm-eval.

    python experiments/smollm2/evaluate.py ~/.cache/evomerge/smollm2/{base,arith,sortwords} --average 1 2

prints one row per folder and one for the uniform average of the folders numbered 1 and 2 (counted
from 0). It shares no code with evomerge, so it is an independent check of what a search reports.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TASKS = Path(__file__).parents[2] / "fitness" / "tasks" / "smollm2"
NAMES = ("smollm2_arith", "smollm2_sortwords", "smollm2_general")


def average(folders: list[Path]) -> dict[str, Tensor]:
    """Return the element-wise mean of the folders' tensors: fp32 sum, one rounding."""
    import torch
    from safetensors.torch import load_file

    parts = [load_file(folder / "model.safetensors") for folder in folders]
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).to(first.dtype)
        for name, first in parts[0].items()
    }


class Scorer:
    """One live model and the loaded tasks; weights are swapped in place."""

    def __init__(self, folder: Path, *, tasks: Path = TASKS, dtype: str = "float32") -> None:
        """Load the architecture and tokenizer of `folder`, and the tasks of the folder `tasks`."""
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = HFLM(pretrained=self.model, tokenizer=tokenizer, batch_size=16)
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        with contextlib.chdir(tasks):  # the task files name their items without a folder
            self.tasks = manager.load(list(NAMES))

    def score(self, tensors: Mapping[str, Tensor], limit: int) -> dict[str, float]:
        """Put `tensors` into the model and return the accuracy of each task's first `limit` items."""
        from lm_eval.evaluator import evaluate

        self.model.load_state_dict(tensors, strict=False)
        result: dict[str, Any] = evaluate(self.lm, self.tasks, limit=limit, bootstrap_iters=0)
        return {name: float(result["results"][name]["acc,none"]) for name in NAMES}


def main(arguments: list[str] | None = None) -> int:
    """Score the folders of the command line and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Score model folders on the smollm2 tasks.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--average", nargs="+", type=int, metavar="N", help="folders to average")
    parser.add_argument("--limit", type=int, default=150, help="items a task; default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    options = parser.parse_args(arguments)
    models = [(folder.name, [folder]) for folder in options.folders]
    if options.average:
        models.append(("uniform average", [options.folders[n] for n in options.average]))
    scorer = Scorer(options.folders[0], dtype=options.dtype)
    print(f"| model | {' | '.join(NAMES)} | CPU-s |\n|{'---|' * (len(NAMES) + 2)}")
    for name, parts in models:
        started = time.process_time()
        scores = scorer.score(average(parts), options.limit)
        cells = " | ".join(f"{scores[task]:.3f}" for task in NAMES)
        print(f"| {name} | {cells} | {time.process_time() - started:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
