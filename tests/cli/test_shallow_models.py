"""A newcomer's models may have fewer layers than the shipped spaces have knots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config import shipped_folder

Run = Callable[..., tuple[int, str, str]]

MODELS = shipped_folder("experiments") / "quickstart" / "models"
TASK = shipped_folder("fitness") / "tasks" / "quickstart" / "quickstart_rev.yaml"


def first_layers(source: Path, folder: Path, layers: int) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not _beyond(name, layers)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    changed = {"num_hidden_layers": layers, "layer_types": config.get("layer_types", [])[:layers]}
    (folder / "config.json").write_text(json.dumps(config | {k: v for k, v in changed.items() if k in config}))
    return folder


def _beyond(name: str, layers: int) -> bool:
    _, found, rest = name.partition("layers.")
    return bool(found) and int(rest.split(".")[0]) >= layers


@pytest.mark.parametrize("experts", [("rev",), ("rev", "sort")])
@pytest.mark.parametrize("layers", [1, 2])
def test_init_writes_what_check_accepts_for_few_layers(
    tmp_path: Path, experts: tuple[str, ...], layers: int, evomerge: Run
) -> None:
    base = first_layers(MODELS / "base", tmp_path / "base", layers)
    pairs = [f"--expert={name}={first_layers(MODELS / name, tmp_path / name, layers)}" for name in experts]
    file = tmp_path / "mine.yaml"
    code, _, err = evomerge("init", file, "--base", base, *pairs, "--task", TASK)
    assert code == 0, err
    assert yaml.safe_load(file.read_text())["space"]["knots"] == layers
    code, out, err = evomerge("check", file)
    assert code == 0, err
    assert f"layers: {layers}" in out
    kind = "slerp" if len(experts) == 1 else "task_arithmetic"
    code, _, err = evomerge("check", file, "--set", f"space={kind}")
    assert code == 2
    assert f"got 4; lower it: --set space.knots={layers}" in err
    assert evomerge("check", file, "--set", f"space={kind}", "--set", f"space.knots={layers}")[0] == 0
