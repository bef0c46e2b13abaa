"""A live model of any depth: it must compute what the exported checkpoint computes, cached keys and values included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.errors import ConfigError, MergeError
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
IDS = torch.tensor([[2, 5, 9, 12, 7, 20], [2, 8, 4, 11, 6, 30]])
LONG = (("rev", 0), (None, 1), ("sort", 1), ("sort", 1), (None, 2), ("rev", 3), (None, 3))
SHORT = (("sort", 0), ("rev", 3))


def path_of(*hops: tuple[str | None, int] | tuple[str | None, int, float]) -> tuple[Hop, ...]:
    return tuple(Hop(source=hop[0], layer=hop[1], scale=hop[2] if len(hop) > 2 else 1.0) for hop in hops)


def route(pool: ModelPool, path: Sequence[Hop], *merged: str) -> Recipe:
    return replace(uniform(merged or ("base", "rev"), layers=pool.layers, dtype=pool.dtype), path=tuple(path))


def exported(pool: ModelPool, recipe: Recipe, out: Path) -> Any:
    plan = lower(recipe, pool)
    export_checkpoint(execute(plan, pool), pool, out, dtype=recipe.dtype, path=recipe.path)
    return transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True).eval()


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a whole pass, and what the model writes token by token with its cache."""
    with torch.inference_mode():
        written = model.generate(
            input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=12, do_sample=False, use_cache=True
        )
        return model(input_ids=IDS, use_cache=False).logits, written


def state(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "path", [path_of(*LONG), path_of(*SHORT), path_of(("rev", 0), ("sort", 2, 1.5), (None, 2, 0.5))]
)
def test_the_live_model_is_the_exported_one(
    path: tuple[Hop, ...], exact_engine: TransformersEngine, pool: ModelPool, tmp_path: Path
) -> None:
    recipe = route(pool, path)
    exact_engine.load(recipe)
    model = exported(pool, recipe, tmp_path / "out")
    assert model.config.num_hidden_layers == len(path) == len(model.model.layers)
    for live, stored in zip(answers(exact_engine.model), answers(model), strict=True):
        assert torch.equal(live, stored)


def test_writing_with_a_cache_is_writing_without(exact_engine: TransformersEngine, pool: ModelPool) -> None:
    exact_engine.load(route(pool, path_of(*LONG)))
    _, cached = answers(exact_engine.model)
    tokens = IDS
    with torch.inference_mode():
        for _ in range(cached.shape[1] - IDS.shape[1]):
            logits = exact_engine.model(input_ids=tokens, use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    ended = (cached == exact_engine.tokenizer.pad_token_id).cumsum(1) > 0
    assert torch.equal(torch.where(ended, 0, cached), torch.where(ended, 0, tokens))


def test_the_state_depends_on_the_last_path_alone(pool: ModelPool) -> None:
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    long, short, plain = route(pool, path_of(*LONG)), route(pool, path_of(*SHORT)), route(pool, ())
    seen: dict[str, Any] = {}
    for recipe in (plain, long, short, plain, short, long, long, plain):
        engine.load(recipe)
        assert same(seen.setdefault(recipe.digest, state(engine)), state(engine))
        assert same(state(engine), dict(execute(lower(recipe, pool), pool)))
        assert engine.model.config.num_hidden_layers == recipe.depth


def test_a_layer_that_is_there_is_not_written_again(pool: ModelPool) -> None:
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    path = path_of(("rev", 0), ("rev", 1), ("sort", 2), ("rev", 3))
    engine.load(route(pool, path))
    parameters = engine.model.num_parameters()
    layer = sum(p.numel() for p in engine.model.model.layers[0].parameters())
    inserted = (*path[:1], Hop(source="ciph", layer=1), *path[1:])
    assert engine.load(route(pool, inserted)).rewritten_share == pytest.approx(layer / (parameters + layer))
    assert engine.load(route(pool, path)).rewritten_share == 0.0
    assert engine.load(route(pool, inserted[::-1])).rewritten_share == 0.0
    assert same(state(engine), dict(execute(lower(route(pool, inserted[::-1]), pool), pool)))


def test_after_a_failed_load_nothing_is_trusted(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    recipe = route(pool, path_of(*LONG))
    engine.load(recipe)
    wanted = state(engine)
    with monkeypatch.context() as patch:
        patch.setattr("evomerge.merging.executor._store", _broken_after(20))
        with pytest.raises(MergeError, match="the disk went away"):
            engine.load(route(pool, path_of(*SHORT, *LONG, *SHORT), "ciph"))
    assert engine.load(recipe).rewritten_share == 1.0
    assert same(state(engine), wanted)


def _broken_after(writes: int) -> Any:
    from evomerge.merging.executor import _store

    done = []

    def store(*arguments: Any) -> None:
        done.append(1)
        if len(done) > writes:
            raise MergeError("the disk went away")
        _store(*arguments)

    return store


hops = st.builds(
    Hop,
    source=st.sampled_from([None, "base", "rev", "sort"]),
    layer=st.integers(0, 3),
    scale=st.sampled_from([1.0, 1.0, 0.5, 1.3]),
)


@given(paths=st.lists(st.lists(hops, min_size=1, max_size=9), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_row_of_paths_leaves_what_its_last_one_makes(
    engine: TransformersEngine, pool: ModelPool, paths: list[list[Hop]]
) -> None:
    for path in paths:
        recipe = route(pool, path)
        engine.load(recipe)
    assert same(state(engine), dict(execute(lower(recipe, pool), pool)))
    numbers = [layer.self_attn.layer_idx for layer in engine.model.model.layers]
    assert numbers == [*range(recipe.depth)]


@pytest.fixture
def sliding(tmp_path: Path) -> ModelPool:
    """Two random Gemma 2 models, in which every second layer attends to a few tokens only."""
    for seed, name in enumerate(("base", "rev")):
        torch.manual_seed(seed)
        config = transformers.Gemma2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=3,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
        model = transformers.Gemma2ForCausalLM(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            copy(MODELS / "base" / file, tmp_path / name)
    return ModelPool.open(tmp_path / "base", {"rev": tmp_path / "rev"})


def test_layers_that_differ_by_kind_keep_theirs(sliding: ModelPool, tmp_path: Path) -> None:
    engine = TransformersEngine(sliding, TransformersConfig(device="cpu", dtype="float32"))
    paths = (
        path_of(("rev", 1), ("base", 0), ("rev", 0, 2.0), (None, 1), ("base", 2)),
        path_of(("base", 1), ("base", 1), ("rev", 1)),
        path_of(("base", 0), ("rev", 2), ("rev", 2), ("rev", 0), ("base", 1, 0.4)),
    )
    for number, path in enumerate(paths):
        recipe = route(sliding, path)
        engine.load(recipe)
        model = exported(sliding, recipe, tmp_path / str(number))
        kinds = ["full_attention" if hop.layer == 1 else "sliding_attention" for hop in path]
        assert engine.model.config.layer_types == model.config.layer_types == kinds
        for live, stored in zip(answers(engine.model), answers(model), strict=True):
            assert torch.equal(live, stored)


def test_memory_for_the_longest_path_is_asked_for(pool: ModelPool) -> None:
    with pytest.raises(ConfigError, match=r"expected memory for each worker: mapped: .* of host memory"):
        TransformersEngine(pool, TransformersConfig(device="cpu"), depth=10**9)


def test_what_no_checkpoint_can_be_is_no_candidate(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=8,
        n_layer=2,
        n_head=2,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=2,
        eos_token_id=3,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        copy(MODELS / "base" / file, tmp_path / "base")
    pool = ModelPool.open(tmp_path / "base", {})
    engine = TransformersEngine(pool, TransformersConfig(device="cpu"))
    plain = uniform(("base",), layers=2, dtype="float32")
    engine.load(plain)
    with pytest.raises(MergeError, match="cannot be written as a plain gpt2 checkpoint"):
        engine.load(replace(plain, path=path_of((None, 1), (None, 0))))
    engine.load(replace(plain, path=path_of((None, 0))))
    assert len(engine.model.transformer.h) == 1


def test_approximate_changes_are_moved_as_exact_ones_are(pool: ModelPool) -> None:
    recipe = Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("rev", "sort"),
        parameters=(
            ("lambda", Field.constant([1.0], pool.layers)),
            ("weight", Field.constant([0.6, 0.3], pool.layers)),
        ),
        path=path_of((None, 2), ("ciph", 1), (None, 2, 0.5)),
        dtype=pool.dtype,
    )
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", deltas="int8"))
    engine.load(recipe, exact=False)
    near, exact = state(engine), dict(execute(lower(recipe, pool), pool))
    differing = [name for name in near if not torch.equal(near[name], exact[name])]
    assert differing
    assert all(torch.allclose(near[name].float(), exact[name].float(), atol=0.02) for name in near)
    assert not any(".layers.1." in name for name in differing)
    engine.load(recipe)
    assert same(state(engine), exact)
