"""What is measured of models that are no plain list of linear modules: other layouts, adapters, mixtures of experts."""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine, calibration
from evomerge.engines.calibration import calibrate
from evomerge.errors import DiskError, MergeError
from evomerge.merging.calibrated import (
    CalibratedFacts,
    Calibration,
    calibrated,
    importance,
    statistics_bytes,
    statistics_folder,
)
from evomerge.merging.pool import ModelPool
from evomerge.merging.transforms import transformed
from evomerge.recipe import uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
CPU = TransformersConfig(device="cpu")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


def calibrated_on(pool: ModelPool, folder: Path, tokens: int = 200) -> ModelPool:
    letters = np.random.default_rng(0).choice(list("abcdefghij> "), 600)
    (folder / "text.txt").write_text("".join(letters))
    return calibrated(pool, Calibration.read(dict.fromkeys(pool.names, folder / "text.txt"), tokens))


def sequences_of(engine: TransformersEngine, pool: ModelPool) -> list[torch.Tensor]:
    assert pool.calibration is not None
    ids = engine.tokenizer(pool.calibration.texts["base"].read_text())["input_ids"][: pool.calibration.tokens]
    length = min(512, engine.model.config.max_position_embeddings, len(ids))
    return [torch.tensor([ids[i : i + length]]) for i in range(0, len(ids) - length + 1, length)]


def random_pool(folder: Path, kind: str, **settings: Any) -> ModelPool:
    """A base and an expert of an architecture, with the tokenizer of the shipped models."""
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / "base")
    config = getattr(transformers, f"{kind}Config")(
        **settings, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0
    )
    for name in ("base", "one"):
        make = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
        make(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ModelPool.open(folder / "base", {"one": folder / "one"})


def test_gpt2_stores_inputs_first(tmp_path: Path) -> None:
    plain = random_pool(tmp_path, "GPT2", n_embd=16, n_layer=2, n_head=2, n_positions=32)
    pool = calibrated_on(plain, tmp_path)
    calibrate(pool, ["importance", "fisher"], CPU)
    up = next(spec for spec in pool.specs if spec.name.endswith("h.0.mlp.c_fc.weight"))
    assert up.shape == (16, 64)
    found, curvature = importance(pool, up.name), CalibratedFacts(pool).fisher("one", up.name)
    assert found is not None
    assert found.shape == (16,)
    assert statistics_bytes(pool) == 2 * 4 * (3 * 16**2 + 64**2)
    assert isinstance(curvature, tuple)
    assert [len(side) for side in curvature] == [64, 16]
    embedding = next(spec.name for spec in pool.specs if spec.name.endswith("wte.weight"))
    assert importance(pool, embedding) is None


def test_an_adapter_is_run_as_it_adapts_the_base(tmp_path: Path) -> None:
    """Its Gram matrices are those of the model that it makes of the base."""
    base = MODELS / "base"
    folder = tmp_path / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    plain = ModelPool.open(base, {"rev": MODELS / "rev"})
    name = "model.layers.0.mlp.up_proj"
    rows, columns = next(spec.shape for spec in plain.specs if spec.name == f"{name}.weight")
    factors = {
        f"base_model.model.{name}.lora_A.weight": 0.3 * torch.randn(2, columns, generator=generator),
        f"base_model.model.{name}.lora_B.weight": 0.3 * torch.randn(rows, 2, generator=generator),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    pool = calibrated_on(ModelPool.open(base, {"lora": folder}), tmp_path)
    calibrate(pool, ["grams"], CPU)
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", dtype="float32"))
    engine.load(uniform(("base",), layers=pool.layers, dtype="float32"))
    weight = engine.model.get_parameter(f"{name}.weight")
    weight.data += factors[f"base_model.model.{name}.lora_B.weight"] @ factors[f"base_model.model.{name}.lora_A.weight"]
    down = "model.layers.0.mlp.down_proj.weight"
    found = CalibratedFacts(pool).gram("lora", down)
    seen: list[torch.Tensor] = []
    hook = engine.model.get_submodule(down.removesuffix(".weight")).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for ids in sequences_of(engine, pool):
            engine.model(ids)
    hook.remove()
    x = torch.cat(seen)
    assert found is not None
    torch.testing.assert_close(found, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_second_moments_lie_beside_the_weights(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(MODELS / "rev", tmp_path / "rev")
    before = ModelPool.open(MODELS / "base", {"rev": tmp_path / "rev"})
    up, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    shape = next(spec.shape for spec in before.specs if spec.name == up)
    moments = {
        norm: torch.rand(shape[1]),
        f"{up}.row": torch.arange(1.0, shape[0] + 1),
        f"{up}.column": torch.ones(shape[1]),
    }
    save_file(moments, tmp_path / "rev" / "second_moments.safetensors")
    after = ModelPool.open(MODELS / "base", {"rev": tmp_path / "rev"})
    facts = CalibratedFacts(after)
    assert after.digest != before.digest
    assert torch.equal(facts.second_moments("rev", norm), moments[norm])  # type: ignore[arg-type]
    pair = facts.second_moments("rev", up)
    assert isinstance(pair, tuple)
    torch.testing.assert_close(torch.outer(*pair)[:, 0], moments[f"{up}.row"] / moments[f"{up}.row"].mean())
    assert facts.second_moments("rev", "model.embed_tokens.weight") is None
    assert replace(facts, pool=before).second_moments("base", norm) is None


@pytest.fixture
def packed(tmp_path: Path) -> ModelPool:
    """A mixture whose experts share tensors."""
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    experts = {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 1, "pad_token_id": 0}
    positions = {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    return calibrated_on(random_pool(tmp_path, "GptOss", **shape, **experts, **positions), tmp_path)


def test_the_fisher_information_of_packed_experts_is_factored_expert_by_expert(packed: ModelPool) -> None:
    calibrate(packed, ["fisher"], CPU)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    pair = CalibratedFacts(packed).fisher("one", name)
    assert isinstance(pair, tuple)
    assert [tuple(side.shape) for side in pair] == [(4, 48), (4, 16)]
    engine = TransformersEngine(packed, TransformersConfig(device="cpu", dtype="float32"))
    engine.load(uniform(("one",), layers=packed.layers, dtype="float32"))
    weight, total = engine.model.get_parameter(name).requires_grad_(True), torch.zeros(4, 16, 48)
    sequences = sequences_of(engine, packed)
    for ids in sequences:
        (gradient,) = torch.autograd.grad(engine.model(ids, labels=ids).loss, [weight])
        total += gradient.square() / len(sequences)
    torch.testing.assert_close(pair[0], total.mean(1), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(pair[1].mean(1), torch.where(total.mean((1, 2)) > 0, 1.0, 0.0), rtol=1e-3, atol=1e-9)
    for _, changes in transformed("fisher", packed, CalibratedFacts(packed)):
        assert changes["one"].isfinite().all()


def test_regmean_of_packed_experts_is_refused_by_name(packed: ModelPool) -> None:
    calibrate(packed, ["grams"], CPU)
    with pytest.raises(MergeError, match=r"mlp\.experts\.down_proj; got none; .* experts that share a tensor"):
        dict(transformed("regmean", packed, CalibratedFacts(packed)))


class Mixture(torch.nn.Module):
    """Two linear experts, the second of which never sees a token; or is called with none."""

    def __init__(self, inner: torch.nn.Linear, calls: bool) -> None:
        super().__init__()
        self.weight, self.used, self.calls = inner.weight, inner, calls
        self.unused = torch.nn.Linear(inner.in_features, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.reshape(-1, x.shape[-1])[: x.shape[1] // 2]
        self.used(half)
        if self.calls:
            self.unused(half[:0])
        return torch.nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("calls", [True, False])
def test_tokens_that_do_not_pass_a_map_count_as_zero(pool: ModelPool, calls: bool, tmp_path: Path) -> None:
    """As in a mixture of experts, of which some see few tokens and some see none."""
    whole = calibrated_on(pool, tmp_path, 64)
    engine = TransformersEngine(whole, TransformersConfig(device="cpu", dtype="float32"))
    mlp = engine.model.get_submodule("model.layers.0.mlp")
    mlp.up_proj = Mixture(mlp.up_proj, calls)
    names = ["model.layers.0.mlp.up_proj.used.weight", "model.layers.0.mlp.up_proj.unused.weight"]
    shapes = {name: engine.model.get_parameter(name).shape for name in names}
    specs = tuple(replace(pool.specs[0], name=name, shape=tuple(shape), layer=0) for name, shape in shapes.items())
    sequences = sequences_of(engine, whole)
    ((tensors, header),) = calibration._grams(engine, replace(whole, specs=specs), sequences)
    keys = json.loads(header["inputs"])
    inputs = shapes[names[0]][1]
    assert torch.equal(tensors[keys[names[1]]], torch.zeros(inputs, inputs))
    seen: list[torch.Tensor] = []
    mlp.up_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for ids in sequences:
            engine.model(ids)
    halves = torch.cat([x[: len(x) // 2] for x in seen])
    tokens = sum(ids.numel() for ids in sequences)
    torch.testing.assert_close(tensors[keys[names[0]]], halves.T @ halves / tokens, rtol=1e-4, atol=1e-6)


def test_several_passes_measure_the_same(pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrated_on(pool, tmp_path, 64)
    calibrate(whole, ["grams", "importance"], CPU)
    names = [spec.name for spec in pool.specs]
    before = {name: CalibratedFacts(whole).gram("rev", name) for name in names}
    strong = {name: importance(whole, name) for name in names}
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(calibration, "_MEMORY", 100_000)
    calibrate(whole, ["grams", "importance"], CPU)
    files = sorted(statistics_folder(whole, "rev", "grams").iterdir())
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 150_000  # the largest map alone takes most of that
    for name in names:
        again, first = CalibratedFacts(whole).gram("rev", name), before[name]
        assert (again is None) == (first is None)
        assert again is None or first is None or torch.equal(again, first)
        np.testing.assert_array_equal(importance(whole, name), strong[name])


def test_a_full_disk_says_what_to_do_and_leaves_nothing(pool: ModelPool, tmp_path: Path) -> None:
    whole = calibrated_on(pool, tmp_path, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(DiskError, match="EVOMERGE_CACHE"):
            calibrate(whole, ["grams"], CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.suffix for path in (tmp_path / "cache" / "calibration").iterdir()] == [".lock"]
    calibrate(whole, ["grams"], CPU)
