"""vLLM's own server on the CPU, asked for candidates as adapters; run in the environment of `make test-vllm`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from evomerge.config import FitnessConfig, OpenaiConfig, PoolConfig, TransformersConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.build import build_engine
from evomerge.errors import MergeError
from evomerge.merging.configured import configured_pool
from evomerge.outcome import ItemSet
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "gate_up_proj")
KINDS: tuple[dict[str, Any], ...] = (
    {"task": "rev_exact"},
    {"task": "rev_choice", "metric": "acc_norm"},
    {"task": "rev_write", "metric": "exact_match", "filter": "letters"},
    {"task": "rev_write", "metric": "tokens", "filter": "letters"},
)
ITEMS = (0, 3, 8, 17, 39)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, save_adapter_family: Any) -> PoolConfig:
    made: PoolConfig = save_adapter_family(tmp_path_factory.mktemp("adapters"), *MODULES)
    return made


@pytest.fixture(scope="module")
def url(source: PoolConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As the documentation says, but for memory and a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the command `vllm` asks for the version of the package `vllm`, which the CPU's has not
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(source.base)]
    place = ["--host=127.0.0.1", f"--port={port}"]
    settings = ["--dtype=float32", "--enforce-eager", "--kv-cache-memory-bytes=100000000", "--max-num-seqs=8"]
    lora = ["--enable-lora", "--max-lora-rank=8", "--max-loras=2", "--lora-target-modules", *MODULES, *FUSED]
    surroundings = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, *place, *settings, *lora], env=surroundings, stdout=file, stderr=file)
    found = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 240
        while not _is_up(found):
            if server.poll() is not None or time.monotonic() > until:
                pytest.fail(log.read_text()[-5000:])
            time.sleep(0.5)
        yield found
    finally:
        server.terminate()
        server.wait(60)


def _is_up(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except URLError:
        return False


@pytest.fixture(scope="module")
def fitness(make_fitness: Any) -> FitnessConfig:
    made: FitnessConfig = make_fitness(*KINDS)
    return made


def engine_on(url: str, source: PoolConfig) -> Any:
    config = OpenaiConfig(kind="openai", url=url, dtype="float32", batch_size=8)
    return build_engine(configured_pool(source), source, config)


def task_arithmetic(*weights: float) -> Recipe:
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=(("lambda", Field.constant([1.0], 3)), ("weight", Field.constant([*weights], 3))),
        dtype="float32",
    )


def test_every_candidate_is_judged_as_with_transformers(url: str, source: PoolConfig, fitness: FitnessConfig) -> None:
    engine = engine_on(url, source)
    other = TransformersEngine(configured_pool(source), TransformersConfig(device="cpu", dtype="float32"))
    runners = [EvalRunner(live, fitness, 3) for live in (engine, other)]
    chosen = ItemSet.of(dict.fromkeys(runners[0].sizes(), ITEMS))
    recipes = [uniform(names, layers=3, dtype="float32") for names in (("base",), ("one",), ("one", "two"))]
    for recipe in (*recipes, task_arithmetic(0.7, -0.4), recipes[0]):
        engine.load(recipe)
        other.load(recipe)
        assert runners[0].score(chosen)[0] == runners[1].score(chosen)[0]
    assert engine.device.startswith("vLLM 0.")


def test_candidates_beyond_the_servers_slots_are_served_too(url: str, source: PoolConfig) -> None:
    """Several workers, each with a candidate of its own."""
    texts = [[2, 5, 6, 7, 8, 9, 11, 4]]
    engines = [engine_on(url, source) for _ in range(4)]
    for number, engine in enumerate(engines):
        engine.load(task_arithmetic(0.2 * number, 1.0 - 0.3 * number))
    first = [engine.logprobs(texts) for engine in engines]
    assert [engine.logprobs(texts) for engine in reversed(engines)] == first[::-1]
    assert len({str(answer) for answer in first}) == 4
    for engine in engines:
        engine.close()


def test_an_adapter_of_too_high_a_rank_is_refused_with_the_rank(
    url: str, save_adapter_family: Any, tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=r"be started with --enable-lora --max-lora-rank 16 or more"):
        engine_on(url, save_adapter_family(tmp_path, "q_proj", rank=7))
