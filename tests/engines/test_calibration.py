"""What is measured over a text, against plain hooks, numpy and autograd on the same models."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.engines.calibration import calibrate
from evomerge.errors import DiskError, MergeError, PoolError
from evomerge.merging.calibrated import CalibratedFacts, Calibration, calibrated, importance, statistics_folder
from evomerge.merging.pool import ModelPool
from evomerge.recipe import uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
TOKENS = 200
CPU = TransformersConfig(device="cpu")


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_text(folder: Path, seed: int = 0) -> Path:
    letters = np.random.default_rng(seed).choice(list("abcdefghij> "), 600)
    file = folder / f"text{seed}.txt"
    file.write_text("".join(letters))
    return file


def calibrated_on(pool: ModelPool, file: Path, tokens: int = TOKENS) -> ModelPool:
    return calibrated(pool, Calibration.read(dict.fromkeys(pool.names, file), tokens))


@pytest.fixture(scope="module")
def measured(pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> ModelPool:
    whole = calibrated_on(pool, write_text(tmp_path_factory.mktemp("text")))
    calibrate(whole, ["importance", "grams", "fisher"], CPU)
    return whole


@pytest.fixture(scope="module")
def live(pool: ModelPool) -> TransformersEngine:
    return TransformersEngine(pool, TransformersConfig(device="cpu", dtype="float32"))


def sequences_of(engine: TransformersEngine, pool: ModelPool) -> list[torch.Tensor]:
    assert pool.calibration is not None
    ids = engine.tokenizer(pool.calibration.texts["base"].read_text())["input_ids"][: pool.calibration.tokens]
    length = min(512, engine.model.config.max_position_embeddings, len(ids))
    return [torch.tensor([ids[i : i + length]]) for i in range(0, len(ids) - length + 1, length)]


def inputs_of(engine: TransformersEngine, pool: ModelPool, model: str) -> dict[str, np.ndarray]:
    """Every linear map's inputs `[tokens, in]` on the text, by plain hooks."""
    engine.load(uniform((model,), layers=pool.layers, dtype="float32"))
    seen: dict[str, list[np.ndarray]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, __, name=f"{path}.weight": seen.setdefault(name, []).append(
                args[0].double().numpy().reshape(-1, args[0].shape[-1])
            )
        )
        for path, module in engine.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for ids in sequences_of(engine, pool):
            engine.model(ids)
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def test_importance_is_the_mean_magnitude_of_the_base_inputs(live: TransformersEngine, measured: ModelPool) -> None:
    expected = inputs_of(live, measured, "base")
    names = {spec.name for spec in measured.specs}
    assert len(expected.keys() & names) > 10
    for name in expected.keys() & names:
        found = importance(measured, name)
        assert found is not None
        np.testing.assert_allclose(found, np.abs(expected[name]).mean(0), rtol=1e-6)
    others = [importance(measured, name) for name in names - expected.keys()]
    assert others
    assert all(found is None for found in others)


def test_grams_are_those_of_each_expert_and_shared_inputs_are_stored_once(
    live: TransformersEngine, measured: ModelPool
) -> None:
    facts = CalibratedFacts(measured)
    for expert in ("rev", "sort"):
        for name, x in inputs_of(live, measured, expert).items():
            found = facts.gram(expert, name)
            if found is not None:
                assert found.dtype == torch.float32
                np.testing.assert_allclose(found.numpy(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert facts.gram("rev", "model.norm.weight") is None
    q, k, o = (facts.gram("rev", f"model.layers.0.self_attn.{p}_proj.weight") for p in "qko")
    assert q is not None
    assert k is not None
    assert o is not None
    assert torch.equal(q, k)
    assert not torch.equal(q, o)
    with safe_open(statistics_folder(measured, "rev", "grams") / "0000.safetensors", "pt") as file:
        inputs = json.loads(file.metadata()["inputs"])
        assert set(file.keys()) == set(inputs.values())
        assert len(inputs) > len(set(inputs.values()))


def test_fisher_is_that_of_autograd(live: TransformersEngine, measured: ModelPool) -> None:
    live.load(uniform(("sort",), layers=measured.layers, dtype="float32"))
    model, facts = live.model, CalibratedFacts(measured)
    total: dict[str, Any] = {}
    parameters = {spec.name: model.get_parameter(spec.name).requires_grad_(True) for spec in measured.specs}
    sequences = sequences_of(live, measured)
    for ids in sequences:
        logits = model(ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:])
        for name, gradient in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
            total[name] = total.get(name, 0) + gradient.double().square() / len(sequences)
    model.requires_grad_(False)
    for name, expected in total.items():
        found = facts.fisher("sort", name)
        assert found is not None
        if isinstance(found, tuple):
            row, column = expected.mean(1), expected.mean(0)
            whole, found = torch.outer(row, column) / row.mean(), torch.outer(*found)
        else:
            whole = expected
        torch.testing.assert_close(found.double(), whole, rtol=1e-3, atol=1e-3 * float(whole.max()))


def test_what_is_there_is_not_measured_again(measured: ModelPool) -> None:
    files = [statistics_folder(measured, "base", "importance"), statistics_folder(measured, "sort", "fisher")]
    before = [file.stat().st_mtime_ns for file in files]
    calibrate(measured, ["importance", "grams", "fisher"], CPU)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_only_what_is_asked_for_is_measured(pool: ModelPool, tmp_path: Path) -> None:
    other = calibrated_on(pool, write_text(tmp_path), 64)
    calibrate(other, ["importance", "moments", "nothing"], CPU)
    assert statistics_folder(other, "base", "importance").is_dir()
    assert not statistics_folder(other, "rev", "grams").exists()
    with pytest.raises(MergeError, match="expected what was measured"):
        CalibratedFacts(other).gram("rev", "model.layers.0.mlp.up_proj.weight")


def test_the_digest_covers_text_and_tokens(pool: ModelPool, tmp_path: Path) -> None:
    one, other = write_text(tmp_path), write_text(tmp_path, seed=1)
    same = tmp_path / "moved.txt"
    same.write_text(one.read_text())
    pools = [calibrated_on(pool, file) for file in (one, same, other)] + [calibrated_on(pool, one, 64)]
    assert pools[0].digest == pools[1].digest
    assert len({pool.digest, *(found.digest for found in pools)}) == 4
    assert pickle.loads(pickle.dumps(pools[0])).calibration == pools[0].calibration


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "ab"}\n{"txt": "cd"}\n', "a key 'text' in every line; got KeyError"),
        ("t.jsonl", '{"text": 3}\n', "a 'text' that is no text: 3"),
        ("t.txt", " \n", "got none in this file"),
    ],
)
def test_unreadable_texts_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PoolError, match=message):
        Calibration.read({"base": tmp_path / name}, 9)
    with pytest.raises(PoolError, match="FileNotFoundError"):
        Calibration.read({"base": tmp_path / "nowhere.txt"}, 9)


def test_lines_of_a_jsonl_are_texts(pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "abcdef"}\n\n{"text": "ghij"}\n')
    short = calibrated_on(pool, tmp_path / "t.jsonl")
    calibrate(short, ["importance"], CPU)
    assert importance(short, "model.layers.0.mlp.up_proj.weight") is not None


def test_a_text_of_one_token_is_refused(pool: ModelPool, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="expected at least 2 tokens"):
        calibrate(calibrated_on(pool, write_text(tmp_path), 1), ["importance"], CPU)


def test_models_without_a_text_are_refused(pool: ModelPool, tmp_path: Path) -> None:
    partial = calibrated(pool, Calibration.read({"base": write_text(tmp_path)}, 64))
    with pytest.raises(MergeError, match="text that 'rev' can be run over"):
        calibrate(partial, ["grams"], CPU)
    assert CalibratedFacts(partial).gram("rev", "model.layers.0.mlp.up_proj.weight") is None
    assert CalibratedFacts(pool).fisher("rev", "model.layers.0.mlp.up_proj.weight") is None


def test_a_cache_that_cannot_be_written_is_named(
    pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    other = calibrated_on(pool, write_text(tmp_path), 64)
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DiskError, match="EVOMERGE_CACHE"):
        calibrate(other, ["importance"], CPU)
