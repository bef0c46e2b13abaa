"""Candidates as adapters on a real vLLM engine; run in the environment that `make test-vllm` makes."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import FitnessConfig, PoolConfig, TransformersConfig, VllmConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.build import build_engine
from evomerge.errors import MergeError, PoolError
from evomerge.merging.configured import configured_pool
from evomerge.outcome import ItemSet, Job, Scored
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform
from evomerge.workers import WorkerSpec
from evomerge.workers.candidate import MergeWorker

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS = VllmConfig(kind="vllm", dtype="float32", batch_size=8, kv_cache_gib=0.1, candidates="adapters")
ITEMS = (0, 3, 8, 17, 39)
PAIRS = [((2, 5, 6), (7,)), ((2, 5, 6), (7, 8, 9)), ((2,), tuple(range(4, 30)))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, save_adapter_family: Any) -> PoolConfig:
    made: PoolConfig = save_adapter_family(tmp_path_factory.mktemp("adapters"), *MODULES)
    return made


@pytest.fixture(scope="module")
def engine(source: PoolConfig) -> Iterator[Any]:
    found: Any = build_engine(configured_pool(source), source, SETTINGS)
    yield found
    found.close()


def merged(operator: str, *weights: float, space: str = "weights") -> Recipe:
    return Recipe(
        operator=operator,
        options=options_of(OPERATORS[operator], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=tuple(
            (name, Field.constant([*weights] if known.scope == "source" else [1.0], 3))
            for name, known in sorted(OPERATORS[operator].parameters.items())
        ),
        dtype="float32",
        space=space,  # type: ignore[arg-type]
    )


RECIPES = {
    "the base": uniform(("base",), layers=3, dtype="float32"),
    "an expert": uniform(("two",), layers=3, dtype="float32"),
    "the average": uniform(("one", "two"), layers=3, dtype="float32"),
    "a sum": merged("task_arithmetic", 0.7, -0.4),
    "in core space": merged("iso_c", 1.0, 1.0, space="core"),
    "the base again": uniform(("base",), layers=3, dtype="float32"),
}


def test_every_candidate_is_judged_as_with_transformers(
    engine: Any, source: PoolConfig, fitness: FitnessConfig
) -> None:
    other = TransformersEngine(configured_pool(source), TransformersConfig(device="cpu", dtype="float32"))
    runners = [EvalRunner(live, fitness, 3) for live in (engine, other)]
    chosen = ItemSet.of(dict.fromkeys(runners[0].sizes(), ITEMS))
    seen = set()
    for name, recipe in RECIPES.items():
        assert engine.load(recipe).rewritten_share == 0.0
        other.load(recipe)
        assert runners[0].score(chosen)[0] == runners[1].score(chosen)[0], name
        ours, theirs = (live.backend(chat_template=False).scoring(PAIRS)() for live in (engine, other))
        assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-3), name
        seen.add(tuple(score for score, _ in ours))
    assert len(seen) == len(RECIPES) - 1


def test_nothing_of_old_candidates_is_left(engine: Any) -> None:
    """Neither their folders nor prefixes that were cached under them."""
    prompt = ("abcdefghij" * 6, {"until": ["."], "max_gen_toks": 8})
    backend = engine.backend(chat_template=False)
    write, score = backend.writing([prompt]), backend.scoring(PAIRS)
    engine.load(RECIPES["a sum"])
    alone = write(), score()
    for name in ("an expert", "the base", "the average"):
        engine.load(RECIPES[name])
        assert (write(), score()) != alone
    engine.load(RECIPES["a sum"])
    assert (write(), score()) == alone
    assert len([*engine._folder.iterdir()]) == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (merged("ties", 1.0, 1.0), "got a merge element by element"),
        (replace(RECIPES["a sum"], path=(Hop(layer=0),)), "got a path through layers"),
    ],
)
def test_merges_that_are_no_adapter_are_refused(engine: Any, recipe: Recipe, message: str) -> None:
    with pytest.raises(MergeError, match=message):
        engine.load(recipe)
    engine.load(RECIPES["the base"])


def test_adapters_of_the_output_head_are_refused(tmp_path: Path, save_adapter_family: Any) -> None:
    source = save_adapter_family(tmp_path, "q_proj", "lm_head", tie_word_embeddings=False)
    with pytest.raises(PoolError, match=r"one: changes lm_head\.weight, which engines do not apply"):
        build_engine(configured_pool(source), source, SETTINGS)


def test_a_worker_with_adapters_of_a_few_modules(
    tmp_path: Path, save_adapter_family: Any, fitness: FitnessConfig
) -> None:
    source = save_adapter_family(tmp_path, "v_proj", "up_proj", rank=5)
    worker = MergeWorker(WorkerSpec(pool=source, fitness=fitness, engine=SETTINGS, seed=3))
    recipe, items = RECIPES["a sum"], ItemSet.of({"rev_choice": (1, 2)})
    outcome = worker.run(Job(candidate=1, phase="search", recipe=recipe, items=items))
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewritten == 0.0
