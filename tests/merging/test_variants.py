"""Transformed experts as models: built once, whole or not at all, and merged like any other expert."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import DiskError, MergeError, PoolError
from evomerge.merging import cache
from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.merging.transforms import transformed
from evomerge.merging.variants import content_of, disk_bytes, facts_of, prepare
from evomerge.recipe import OPERATORS, Field, Preset, Recipe, options_of

STAR = "star:40"

HALVED = """
import sys, time
from pathlib import Path
from evomerge.merging import transforms
from evomerge.merging.pool import ModelPool
from evomerge.merging.variants import prepare
folder, trail, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "hang"

def halved(name, pool, facts):
    with trail.open("a") as file:
        file.write("built\\n")
    for index, spec in enumerate(pool.specs):
        if index == 3:
            print("half way", flush=True)
            time.sleep(600 if hang else 0.3)
        base = pool.tensor("base", spec.name).float()
        yield spec.name, {k: (pool.tensor(k, spec.name).float() - base) / 2 for k in pool.experts}

transforms.transformed = halved
pool = ModelPool.open(folder / "base", {name: folder / name for name in ("one", "two")})
print([built.transform for built in prepare(pool, ["star:40"])], flush=True)
"""
"""A transform that takes its time, in a process of its own."""


def recipe_of(
    pool: ModelPool, operator: str, transforms: tuple[str, ...] = (), preset: Preset = "paper", **values: float
) -> Recipe:
    """All experts, with the parameters' own defaults unless given."""
    table = OPERATORS[operator]
    fields = {}
    for name, parameter in table.parameters.items():
        width = len(pool.experts) if parameter.scope == "source" else 1
        value = values.get(name, parameter.default if parameter.default is not None else 1 / len(pool.experts))
        fields[name] = Field.constant([value] * width, pool.layers)
    return Recipe(
        operator=operator,
        options=options_of(table, preset),
        base=pool.base if table.needs_base else None,
        sources=pool.experts,
        transforms=transforms,
        parameters=tuple(sorted(fields.items())),
        mask_seed=7,
        dtype="float32",
    )


@pytest.fixture
def family(make_family: Callable[..., Any]) -> Any:
    return make_family(dtype="float32")


@pytest.fixture
def pool(family: Any) -> ModelPool:
    return ModelPool.open(family.base, family.experts)


def cached() -> list[Path]:
    folder = Path(os.environ["EVOMERGE_CACHE"]) / "variants"
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def builder(family: Any, trail: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HALVED, str(family.base.parent), str(trail), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_variant_is_the_base_with_what_the_transform_makes_of_the_change(pool: ModelPool) -> None:
    changes = dict(transformed(STAR, pool, facts_of(pool)))
    for spec in pool.specs:
        base = pool.tensor("base", spec.name)
        for expert in pool.experts:
            values = pool.tensor(f"{expert}~{STAR}", spec.name)
            assert torch.allclose(values, base + changes[spec.name][expert], atol=1e-7)
            assert (values.dtype, values.shape) == (torch.float32, spec.shape)
    assert not torch.equal(pool.tensor(f"one~{STAR}", spec.name), pool.tensor(f"two~{STAR}", spec.name))


def test_building_is_told_once_and_stored_without_what_stays(pool: ModelPool) -> None:
    (built,) = prepare(pool, ["none", STAR])
    assert list(prepare(pool, [STAR])) == []
    assert cached() == [built.folder]
    assert sorted(file.name for file in built.folder.iterdir()) == ["one.safetensors", "two.safetensors"]
    stored = load_file(built.folder / "one.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" in stored
    assert set(stored) < {spec.name for spec in pool.specs}  # what has no matrix stays the expert's own
    assert built.bytes == sum(file.stat().st_size for file in built.folder.iterdir())
    assert sum(4 * tensor.numel() for tensor in stored.values()) * 2 < built.bytes
    assert disk_bytes(pool, ["none", STAR]) == 8 * sum(pool.tensor("base", s.name).numel() for s in pool.specs)
    assert str(built).startswith("transform star:40 of all experts: built in ")


def test_bf16_models_have_fp32_variants(make_family: Callable[..., Any]) -> None:
    family = make_family(dtype="bfloat16")
    pool = ModelPool.open(family.base, family.experts)
    name = "model.layers.0.mlp.up_proj.weight"
    change = dict(transformed(STAR, pool, facts_of(pool)))[name]["one"]
    variant = pool.tensor(f"one~{STAR}", name)
    assert variant.dtype == torch.float32
    assert torch.allclose(variant - pool.tensor("base", name).float(), change, atol=1e-8)


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("task_arithmetic", {"weight": 0.7}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.5, "preset": "mergekit"}),
    ("dare_ties", {"density": 0.5}),
    ("della", {"density": 0.5, "epsilon": 0.1}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.05}),
    ("consensus", {}),
    ("magmax", {}),
    ("model_stock", {}),
    ("metagpt", {}),
    ("nuslerp_delta", {}),
    ("multislerp_delta", {}),
]


@pytest.mark.parametrize(("operator", "values"), FAMILIES, ids=lambda value: str(value)[:24])
def test_merging_a_variant_is_merging_the_model_that_it_stands_for(
    family: Any, pool: ModelPool, tmp_path: Path, operator: str, values: dict[str, Any]
) -> None:
    shutil.copytree(family.experts["one"], tmp_path / "explicit")
    written = {spec.name: pool.tensor(f"one~{STAR}", spec.name).contiguous() for spec in pool.specs}
    save_file(written, tmp_path / "explicit" / "model.safetensors", metadata={"format": "pt"})
    explicit = ModelPool.open(family.base, {**family.experts, "one": tmp_path / "explicit"})
    recipe = recipe_of(pool, operator, (STAR, "none"), **values)
    expected = dict(execute(lower(recipe_of(explicit, operator, **values), explicit), explicit))
    merged = dict(execute(lower(recipe, pool), pool))
    plain = dict(execute(lower(recipe_of(pool, operator, **values), pool), pool))
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert any(not torch.equal(merged[name], plain[name]) for name in plain)
    for name, values_64 in reference_merge(recipe, pool):
        assert torch.allclose(merged[name].double(), values_64, rtol=1e-5, atol=1e-7), name


def test_none_changes_nothing_and_builds_nothing(pool: ModelPool) -> None:
    plain, spelled = (recipe_of(pool, "ties", transforms) for transforms in ((), ("none", "none")))
    assert lower(plain, pool) == lower(spelled, pool)
    assert cached() == []


def test_several_builders_at_once_build_once(family: Any, tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    builders = [builder(family, trail, "finish") for _ in range(3)]
    told = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in builders)
    assert told == ["['star:40']", "[]", "[]"]
    assert trail.read_text() == "built\n"
    pool = ModelPool.open(family.base, family.experts)
    name = "model.layers.1.self_attn.q_proj.weight"
    base, own, half = (pool.tensor(model, name) for model in ("base", "one", f"one~{STAR}"))
    assert torch.allclose(half, (base + own) / 2)


def test_a_killed_builder_leaves_nothing_that_looks_complete(family: Any, tmp_path: Path) -> None:
    with builder(family, tmp_path / "trail", "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()
    assert [path.name.endswith(".partial") for path in cached()] == [True]
    pool = ModelPool.open(family.base, family.experts)
    (built,) = prepare(pool, [STAR])
    assert cached() == [built.folder]  # what was left behind is gone


def test_without_locks_the_first_to_finish_wins(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.merging import transforms

    def overtaken(*arguments: Any) -> Iterator[Any]:
        monkeypatch.setattr(transforms, "transformed", transformed)
        assert len(list(prepare(pool, [STAR]))) == 1  # another process, so to speak
        yield from transformed(*arguments)

    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    monkeypatch.setattr(transforms, "transformed", overtaken)
    assert list(prepare(pool, [STAR])) == []
    assert len(cached()) == 1


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_what_to_do_and_leaves_nothing(pool: ModelPool) -> None:
    with (
        pytest.raises(DiskError, match=r"expected room for 0.00 GiB.*File too large.*EVOMERGE_CACHE"),
        largest_file(9000),
    ):
        list(prepare(pool, [STAR]))
    assert cached() == []
    assert len(list(prepare(pool, [STAR]))) == 1


def test_a_cache_that_cannot_be_written_to(pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DiskError, match="set EVOMERGE_CACHE to a folder on a larger disk"):
        pool.tensor(f"one~{STAR}", pool.specs[0].name)


def test_a_garbled_file_names_the_folder_to_remove(pool: ModelPool) -> None:
    (built,) = prepare(pool, [STAR])
    (built.folder / "one.safetensors").write_bytes(b"no header")
    with pytest.raises(MergeError, match=f"remove the folder {built.folder}"):
        pool.tensor(f"one~{STAR}", pool.specs[0].name)
    shutil.rmtree(built.folder)
    assert pool.tensor(f"one~{STAR}", pool.specs[0].name).isfinite().all()


def test_a_pool_that_went_elsewhere_has_the_same_variants(pool: ModelPool) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    again: ModelPool = pickle.loads(pickle.dumps(pool))
    assert torch.equal(again.tensor(f"two~{STAR}", name), pool.tensor(f"two~{STAR}", name))


def test_contents_tell_variants_apart(family: Any, pool: ModelPool) -> None:
    names = ["base", "one", "two", f"one~{STAR}", f"two~{STAR}", "one~star:50", "one~tsv_m:1"]
    assert len({content_of(pool, name) for name in names}) == len(names)
    alone = ModelPool.open(family.base, {"one": family.experts["one"]})
    assert content_of(alone, "one") == content_of(pool, "one")
    assert content_of(alone, "one~tsv_m:1") != content_of(pool, "one~tsv_m:1")  # it depends on all experts


@pytest.mark.parametrize(
    ("model", "error"), [("three~star:40", KeyError), ("three", KeyError), ("one~sart", ValueError)]
)
def test_what_is_not_there(pool: ModelPool, model: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        pool.tensor(model, pool.specs[0].name)
    with pytest.raises(error):
        content_of(pool, model)


def test_the_mark_of_variants_is_refused_in_names(family: Any) -> None:
    with pytest.raises(PoolError, match=r"without '~', which marks variants; got \['one~star:40'\]; rename them"):
        ModelPool.open(family.base, {f"one~{STAR}": family.experts["one"]})


def test_a_transform_without_what_it_needs_says_so_and_leaves_nothing(pool: ModelPool) -> None:
    with pytest.raises(MergeError, match="calibration"):
        list(prepare(pool, ["regmean:0.9"]))
    assert cached() == []


def test_variants_that_nobody_used_for_long_make_room(family: Any, pool: ModelPool, monkeypatch: Any) -> None:
    folders = [next(iter(prepare(pool, [f"star:{percent}"]))).folder for percent in (10, 20, 30)]
    for age, folder in enumerate(folders):
        os.utime(folder, (1e9 + age, 1e9 + age))
    assert list(prepare(pool, ["star:10"])) == []  # used now
    monkeypatch.setattr(cache, "LIMIT", cache.size_of(folders[0]))
    cache.make_room.cache_clear()
    (built,) = prepare(pool, ["star:50"])
    assert set(cached()) == {folders[0], built.folder}
    assert torch.equal(pool.tensor("one~star:20", "model.norm.weight"), pool.tensor("one", "model.norm.weight"))


def test_an_expert_equal_to_the_base_has_variants_without_tensors(family: Any) -> None:
    pool = ModelPool.open(family.base, {"one": family.base})
    (built,) = prepare(pool, ["pcb"])
    assert load_file(built.folder / "one.safetensors") == {}
    assert torch.equal(pool.tensor("one~pcb:0.1", "model.norm.weight"), pool.tensor("base", "model.norm.weight"))
