"""CPU seconds per candidate of mergekit's Python API. Runs in mergekit's own environment, which lacks evomerge.

    python mergekit_seconds.py REPEATS CONFIG.yaml ...

Prints one JSON list of lists: for each configuration, the seconds of every repeat after a first one. A repeat plans,
schedules and executes the tensor tasks in a warm process; results are thrown away.
"""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner


def seconds_of(file: str) -> float:
    """One candidate."""
    began = time.process_time()
    config = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
    options = MergeOptions(quiet=True, trust_remote_code=False)
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    planner._plan()  # its plan_in_memory is broken
    for _ in Executor([task for _, task in planner._tensors]).run(quiet=True):
        pass
    return time.process_time() - began


if __name__ == "__main__":
    torch.set_num_threads(1)
    repeats = int(sys.argv[1])
    print(json.dumps([[seconds_of(file) for _ in range(repeats + 1)][1:] for file in sys.argv[2:]]))
