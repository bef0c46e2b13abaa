"""A real vLLM engine on the CPU; run in the environment that `make test-vllm` makes."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from evomerge.config import PoolConfig, VllmConfig
from evomerge.errors import MergeError
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.configured import configured_pool
from evomerge.recipe import Hop, Recipe, uniform

if TYPE_CHECKING:
    from evomerge.engines.vllm_engine import VllmEngine

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

SMALL = VllmConfig(kind="vllm", dtype="float32", batch_size=8, kv_cache_gib=0.1)
EXTRA = 2


def started(source: PoolConfig, config: VllmConfig = SMALL) -> Any:
    from evomerge.engines.vllm_engine import VllmEngine
    from evomerge.engines.vllm_worker import Opening

    pool = configured_pool(source)
    return VllmEngine(pool, Opening(pool=source, engine=config), depth=pool.layers + EXTRA)


@pytest.fixture(scope="module", params=["tied Llama", "untied Qwen2", "in place"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, save_random_family: Any
) -> Iterator[Any]:
    """One engine for all tests of a family, each of which must not mind what the others left.

    `in place` rehearses what GPUs do: without oneDNN, vLLM leaves parameters on a CPU as they were loaded.
    """
    folder = tmp_path_factory.mktemp("family")
    if request.param == "untied Qwen2":
        source = save_random_family(folder, Qwen2Config, Qwen2ForCausalLM, tie_word_embeddings=False)
    else:
        source = save_random_family(folder, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in place":
            from vllm import _custom_ops

            patch.setattr(_custom_ops, "_supports_onednn", False)
        found = started(source)
    assert found.in_place == (request.param == "in place")
    yield found
    found.close()


def average(*names: str, path: tuple[Hop, ...] = ()) -> Recipe:
    return replace(uniform(names, layers=3, dtype="float32"), path=path)


LONG = (
    Hop(layer=0),
    Hop(source="one", layer=1, scale=1.2),
    Hop(layer=1),
    Hop(source="two", layer=1, scale=0.8),
    Hop(layer=2),
)
SWAPPED = (Hop(layer=0), Hop(layer=2), Hop(layer=1))

RECIPES = {
    "all tensors": average("one", "two"),
    "an expert": average("two"),
    "a repeat": average("two", path=(Hop(layer=0), Hop(layer=1), Hop(layer=1), Hop(layer=2))),
    "the longest path": average("base", path=LONG),
    "a short path": average("one", path=(Hop(layer=2),)),
    "another order": average("base", path=SWAPPED),
    "the base again": average("base"),
}


def answers(engine: "VllmEngine") -> list[float]:
    from evomerge.engines.vllm_canary import answers_of, canary_texts

    return answers_of(engine.llm, canary_texts(32))


@pytest.mark.parametrize("name", RECIPES)
def test_live_weights_are_what_an_export_holds(engine: "VllmEngine", name: str, tmp_path: Path) -> None:
    from evomerge.engines.vllm_canary import canary_texts, distance, expected_answers
    from evomerge.merge import write_merge

    engine.load(RECIPES[name])
    write_merge(RECIPES[name], engine.pool, tmp_path / "model")
    assert distance(answers(engine), expected_answers(tmp_path / "model", canary_texts(32), "float32")) < 1e-4


def test_the_state_depends_on_the_last_recipe_alone(engine: "VllmEngine") -> None:
    engine.load(RECIPES["all tensors"])
    first = answers(engine)
    for name in ("the longest path", "an expert", "a short path"):
        engine.load(RECIPES[name])
        assert answers(engine) != first
    engine.load(RECIPES["all tensors"])
    assert answers(engine) == first


def test_only_what_changed_is_rewritten(engine: "VllmEngine") -> None:
    engine.load(average("base", path=SWAPPED))
    assert engine.load(average("base", path=SWAPPED)).rewritten_share == 0.0
    assert 0.0 < engine.load(average("base", path=(*SWAPPED, Hop(source="one", layer=2)))).rewritten_share < 0.4


def test_a_recipe_that_cannot_be_merged_is_refused_and_forgotten(engine: "VllmEngine") -> None:
    engine.load(average("one"))
    first = answers(engine)
    with pytest.raises(MergeError, match="the recipe names the models"):
        engine.load(average("one", "three"))
    engine.load(average("one"))
    assert answers(engine) == first


def test_after_a_load_that_failed_midway_everything_is_as_it_should_be(
    engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(average("one"))
    first, reads, original = answers(engine), list[str](), Checkpoint.tensor

    def tensor(self: Checkpoint, name: str) -> Any:
        reads.append(name)
        if len(reads) > 10:
            raise MergeError("the disk went away")
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensor", tensor)
        with pytest.raises(MergeError, match="the disk went away"):
            engine.load(average("one", "two"))
    engine.load(average("one"))
    assert answers(engine) == pytest.approx(first, abs=1e-5)


def test_nothing_of_old_prefixes_is_left(engine: "VllmEngine") -> None:
    """Prompts of several blocks would be answered from the cache of the model before."""
    prompt = ("abcdefghij" * 6, {"until": ["."], "max_gen_toks": 8})
    write = engine.backend(chat_template=False).writing([prompt])
    engine.load(average("one"))
    alone = write()
    engine.load(average("two"))
    write()
    engine.load(average("one"))
    assert write() == alone


def test_weights_that_turn_out_wrong_end_swapping(engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a tied model keeps its old copy of the embedding, if nobody packs it again."""
    from evomerge.engines import vllm_weights

    if engine.in_place or not engine.pool.config.get("tie_word_embeddings"):
        pytest.skip("nothing is packed")
    engine.load(average("base"))
    monkeypatch.setattr(vllm_weights, "is_token_embedding", lambda _: False)
    monkeypatch.setattr(engine, "_loads", SMALL.canary_every)
    with pytest.raises(MergeError, match="which is slow; its last 200 scores are in doubt"):
        engine.load(average("two"))
    assert not engine.swaps
    engine.swaps = True


def test_a_deeper_candidate_restarts_the_engine(engine: "VllmEngine") -> None:
    deep = average("base", path=tuple(Hop(layer=t % 3) for t in range(3 + EXTRA + 1)))
    engine.load(average("one"))
    first = answers(engine)
    engine.load(deep)
    engine.load(average("one"))
    assert answers(engine) == pytest.approx(first, abs=1e-5)


def test_other_architectures_get_an_engine_for_each_candidate(tmp_path: Path, save_random_family: Any) -> None:
    from evomerge.engines.vllm_canary import canary_texts, distance, expected_answers
    from evomerge.merge import write_merge

    source = save_random_family(tmp_path, GemmaConfig, GemmaForCausalLM, head_dim=32)
    engine = started(source)
    assert not engine.swaps
    recipe = average("one", "two")
    assert engine.load(recipe).rewritten_share == 1.0
    write_merge(recipe, engine.pool, tmp_path / "model")
    assert distance(answers(engine), expected_answers(tmp_path / "model", canary_texts(32), "float32")) < 1e-4
    engine.close()


def test_an_engine_that_is_wrong_from_the_start_never_swaps(
    tmp_path: Path, save_random_family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.engines import vllm_weights
    from evomerge.engines.vllm_canary import canary_texts, distance, expected_answers

    source = save_random_family(tmp_path, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)
    monkeypatch.setattr(vllm_weights, "is_token_embedding", lambda _: False)
    engine = started(source)
    assert not engine.swaps
    assert distance(answers(engine), expected_answers(source.base, canary_texts(32), "float32")) < 1e-4
    engine.close()


def test_two_ranks_hold_one_model(tmp_path: Path, save_random_family: Any) -> None:
    """Tensor parallelism over two processes, which reach nothing of this one but texts."""
    from evomerge.engines.vllm_canary import canary_texts, distance, expected_answers
    from evomerge.merge import write_merge

    source = save_random_family(tmp_path, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)
    engine = started(source, SMALL.model_copy(update={"tensor_parallel_size": 2}))
    for number, name in enumerate(("all tensors", "the longest path")):
        engine.load(RECIPES[name])
        write_merge(RECIPES[name], engine.pool, tmp_path / f"model{number}")
        expected = expected_answers(tmp_path / f"model{number}", canary_texts(32), "float32")
        assert distance(answers(engine), expected) < 1e-4
    with pytest.raises(MergeError, match="the recipe names the models"):
        engine.load(average("one", "three"))
    assert engine.llm is not None
    engine.close()
