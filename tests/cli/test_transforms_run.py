"""A run over transformed experts, as a person does it: planned, run, replayed, exported, merged again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.config import shipped_folder
from evomerge.recipe import Recipe
from evomerge.runs import RunStore

SMALL = [
    "--set", "space=transforms",
    "--set", "space.operator.options={normalize: [false, true]}",
    "--set", "algorithm={kind: random, population: 5}",
    "--set", "budget.evaluations=10",
    "--set", "fitness.items={search: 8, confirm: 16}",
    "--set", "fitness.confirm.shortlist=1",
]  # fmt: skip

MODELS = shipped_folder("experiments") / "quickstart" / "models"
EXPERTS = ("rev", "sort", "ciph")

Run = Callable[..., tuple[int, str, str]]


def test_a_run_chooses_transforms_and_its_export_can_be_made_again(evomerge: Run, tmp_path: Path) -> None:
    folder, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    code, out, err = evomerge("run", "quickstart", "--executor", "serial", "--out", folder, *SMALL)
    assert code == 0, err
    for transform in ("star:40", "tsv_m:1", "pcb:0.1", "wudi:0.001"):
        assert f"transform {transform} of all experts: built in " in out
    assert str(tmp_path / "cache" / "variants") in out
    with RunStore.read(folder) as store:
        chosen = {c.id: c.recipe for c in store.candidates() if any(t != "none" for t in c.recipe.transforms)}
        genes = store.manifest["genes"]
    assert genes[-4:] == ["transform.rev", "transform.sort", "transform.ciph", "option.normalize"]
    assert {recipe.option("normalize") for recipe in chosen.values()} == {True, False}
    number, recipe = next(iter(chosen.items()))
    assert evomerge("replay", folder, "--candidate", number)[1].endswith(" items as recorded\n")

    assert evomerge("export", folder, "--candidate", number, "--out", first)[0] == 0
    assert Recipe.from_data(json.loads((first / "recipe.json").read_text())) == recipe
    variant = next(name for name in recipe.variants if "~" in name)
    for text in ((first / "README.md").read_text(), (first / "mergekit_config.yml").read_text()):
        assert f"# not reproducible with mergekit: {variant}: it has no transforms" in text
    folders = [part for name in EXPERTS for part in ("--expert", f"{name}={MODELS / name}")]
    shutil.rmtree(tmp_path / "cache")
    assert evomerge("merge", first / "recipe.json", "--out", second, "--base", MODELS / "base", *folders)[0] == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    code, _, err = evomerge("merge", first / "mergekit_config.yml", "--out", tmp_path / "third")
    assert code == 2
    assert f"nothing at {MODELS / variant}" in err


def test_a_plan_names_choices_and_disk(evomerge: Run, tmp_path: Path) -> None:
    code, out, _ = evomerge("plan", "quickstart", *SMALL)
    assert code == 0
    words = " ".join(out.split())
    assert "transform.rev, transform.sort, none | star:40 | tsv_m:1 | pcb:0.1 | transform.ciph wudi:0.001" in words
    assert "option.normalize false | true" in words
    assert "disk for transforms 10.0 MiB at most" in words
    assert not (tmp_path / "cache" / "variants").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("space.transforms=[sart]", "$.space.transforms (--set space.transforms=[sart]): expected one of none"),
        ("space.transforms={srot: [star]}", "$.space.transforms.srot: expected an expert of the pool (rev, "),
        ("space.transforms=[regmean]", "needs a text"),
        ("space.transforms=[fisher]", "needs a text"),
        ("space.transforms=[ota]", "rev: expected them as "),
    ],
)  # fmt: skip
def test_transforms_that_cannot_be_are_refused_before_anything_runs(evomerge: Run, change: str, fault: str) -> None:
    code, _, err = evomerge("check", "quickstart", "--set", change)
    assert code == 2
    assert fault in err
