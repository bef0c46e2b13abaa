from pathlib import Path
from shutil import copytree

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.errors import ConfigError, MergeError, PoolError
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"


def weights(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def average(pool: ModelPool, *names: str) -> Recipe:
    return uniform(names, layers=pool.layers, dtype=pool.dtype)


def test_a_single_source_gives_its_own_bytes(engine: TransformersEngine, pool: ModelPool) -> None:
    engine.load(average(pool, "sort"))
    assert same(weights(engine), {spec.name: pool.tensor("sort", spec.name) for spec in pool.specs})


def test_the_live_model_holds_what_an_export_would(engine: TransformersEngine, pool: ModelPool) -> None:
    recipe = average(pool, "rev", "sort", "ciph")
    engine.load(recipe)
    assert same(weights(engine), dict(execute(lower(recipe, pool), pool)))


def test_the_state_depends_on_the_last_recipe_alone(engine: TransformersEngine, pool: ModelPool) -> None:
    engine.load(average(pool, "rev", "sort"))
    first = weights(engine)
    engine.load(average(pool, "ciph"))
    assert not same(weights(engine), first)
    engine.load(average(pool, "rev", "sort"))
    assert same(weights(engine), first)


def test_only_what_changed_is_rewritten(engine: TransformersEngine, pool: ModelPool) -> None:
    engine.load(average(pool, "rev"))
    assert engine.load(average(pool, "base")).rewritten_share == 1.0
    assert engine.load(average(pool, "base")).rewritten_share == 0.0


def test_a_search_may_be_approximate_and_a_confirmation_not(pool: ModelPool) -> None:
    recipe = Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("rev", "sort"),
        parameters=(
            ("lambda", Field.constant([1.0], pool.layers)),
            ("weight", Field.constant([0.6, 0.3], pool.layers)),
        ),
        dtype=pool.dtype,
    )
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", deltas="int8"))
    engine.load(recipe, exact=False)
    near = weights(engine)
    assert engine.load(recipe).rewritten_share == 1.0
    assert same(weights(engine), dict(execute(lower(recipe, pool), pool)))
    assert not same(weights(engine), near)
    assert engine.load(recipe).rewritten_share == 0.0
    engine.load(recipe, exact=False)
    assert same(weights(engine), near)
    engine.load(average(pool, "sort"), exact=False)
    assert same(weights(engine), {spec.name: pool.tensor("sort", spec.name) for spec in pool.specs})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_cpu_has_one_place_for_models(pool: ModelPool) -> None:
    with pytest.raises(ConfigError, match="expected a GPU for 'pinned'"):
        TransformersEngine(pool, TransformersConfig(residency="pinned"))


def test_all_workers_of_a_machine_must_fit(pool: ModelPool) -> None:
    with pytest.raises(ConfigError, match="of host memory for 10000000 workers; use fewer workers"):
        TransformersEngine(pool, TransformersConfig(device="cpu"), workers=10**7)


def test_after_a_failed_load_everything_is_rewritten(
    engine: TransformersEngine, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(average(pool, "rev"))
    before, reads = weights(engine), list[str]()
    original = Checkpoint.tensor

    def tensor(self: Checkpoint, name: str) -> torch.Tensor:
        reads.append(name)
        if len(reads) > 10:
            raise MergeError("the disk went away")
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensor", tensor)
        with pytest.raises(MergeError, match="the disk went away"):
            engine.load(average(pool, "sort"))
    assert not same(weights(engine), before)
    assert engine.load(average(pool, "rev")).rewritten_share == 1.0
    assert same(weights(engine), before)


def test_dtype_and_device_of_the_engine(pool: ModelPool) -> None:
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", dtype="float32"))
    engine.load(average(pool, "rev", "sort"))
    exported = dict(execute(lower(average(pool, "rev", "sort"), pool), pool))
    assert (engine.device, engine.dtype) == ("cpu", "float32")
    assert same(weights(engine), {name: tensor.float() for name, tensor in exported.items()})


@pytest.fixture
def tied(tmp_path: Path) -> ModelPool:
    """Two random models whose output head is the embedding."""
    for seed, name in enumerate(("base", "rev")):
        copytree(MODELS / "base", tmp_path / name)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / name)
    return ModelPool.open(tmp_path / "base", {"rev": tmp_path / "rev"})


def test_tied_embeddings_stay_tied(tied: ModelPool) -> None:
    engine = TransformersEngine(tied, TransformersConfig(device="cpu"))
    engine.load(average(tied, "rev"))
    model: PreTrainedModel = engine.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tied.tensor("rev", "model.embed_tokens.weight"))


def test_weights_that_do_not_fit_the_config_are_named(tied: ModelPool, tmp_path: Path) -> None:
    for name in ("base", "rev"):
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(PoolError, match=r"parameter model\.layers\.2\.\S+: no such tensor"):
        TransformersEngine(
            ModelPool.open(tmp_path / "base", {"rev": tmp_path / "rev"}), TransformersConfig(device="cpu")
        )


def test_an_unknown_architecture_is_refused(tied: ModelPool, tmp_path: Path) -> None:
    for name in ("base", "rev"):
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace('"model_type": "llama"', '"model_type": "lama"'))
    with pytest.raises(PoolError, match="expected a causal language model"):
        TransformersEngine(
            ModelPool.open(tmp_path / "base", {"rev": tmp_path / "rev"}), TransformersConfig(device="cpu")
        )
