import re
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import OpenaiConfig, TransformersConfig, VllmConfig, load_experiment, transformers_config
from evomerge.errors import ConfigError


def engine_of(*settings: str, name: str = "smollm2_vllm") -> Any:
    return load_experiment(name, settings).engine


def test_the_shipped_experiment_asks_for_vllm() -> None:
    engine = engine_of()
    assert isinstance(engine, VllmConfig)
    assert (engine.max_model_len, engine.device) == (512, "auto")


def test_transformers_is_what_runs_unless_told_otherwise() -> None:
    assert isinstance(engine_of("engine={batch_size: 4}", name="quickstart"), TransformersConfig)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.kind=vlm"], "expected one of 'transformers', 'vllm', 'openai'; got 'vlm'; did you mean 'vllm'"),
        (["engine.device=cpu"], r"\$\.engine\.device.*unknown key"),
        (["engine.gpu_memory_utilization=1.5"], "less than or equal to 1; got 1.5"),
        (["engine.max_model_len=1"], "greater than or equal to 16; got 1"),
        (
            ["engine.tensor_parallel_size=2", "executor={kind: ray, gpus: 1}"],
            r"expected as many as each worker has GPUs \(executor.gpus: 1\); got 2",
        ),
        (["executor={kind: ray, gpus: 4}"], r"\(executor.gpus: 4\); got 1"),
    ],
)
def test_bad_settings(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_of(*settings)


def fitness_with(kind: str, metric: str, text: Path) -> str:
    return (
        f"fitness={{scorers: {{own: {{kind: {kind}, text: {text}}}}}, items: {{search: 4, confirm: 4}}, "
        f"objectives: [{{name: own, task: own, metric: {metric}, goal: min}}]}}"
    )


def test_a_whole_distribution_needs_the_model_itself(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.")
    assert engine_of(fitness_with("loss", "loss", tmp_path / "text.txt"))
    with pytest.raises(ConfigError, match="the scorers own need all of a distribution; write transformers"):
        engine_of(fitness_with("kl", "kl", tmp_path / "text.txt"))


SERVER = "engine={kind: openai, url: 'http://127.0.0.1:8000'}"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://node7:8000/", "http://node7:8000"),
        ("https://models.example/team/v1", "https://models.example/team"),
    ],
)
def test_addresses(written: str, read: str) -> None:
    engine = engine_of(SERVER, f"engine.url={written}")
    assert isinstance(engine, OpenaiConfig)
    assert engine.url == engine.device == read


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.url=file:///etc/passwd"], "expected an address such as http://127.0.0.1:8000; got file"),
        (["engine.url=127.0.0.1:8000"], "expected an address such as"),
        (["engine.url=http://me:hunter2hunter2@host"], "expected scheme, host and path alone"),
        (["engine.url=http://host:99999"], "Port out of range"),
        (["engine.url=http://host?key=1"], "expected scheme, host and path alone"),
        (["engine.api_key=sk-0123456789"], "expected the name of an environment variable .* do not write keys"),
        (["engine.api_key=MY_KEYS"], "with API_KEY, TOKEN or SECRET in it"),
        (
            ["engine.url=http://host", "engine.api_key=MY_API_KEY"],
            "expected https where a key is sent; got http to host",
        ),
        (["engine.folder=adapters"], "expected an absolute path, the same for the server; got adapters"),
        (["engine.residency=device"], "unknown key"),
        (["space=ties"], "sums of adapters' changes; got the operator ties; linear and task_arithmetic"),
        (["space=routing"], "got space.kind: routing, whose candidates have layers of their own"),
        (["space.operator={name: linear, options: {normalize: false}}"], "got linear with normalize: false"),
        (["space.transforms=[none, 'star:40']"], "got the transforms star:40"),
        (["engine={kind: vllm, candidates: adapters, deltas: int8}"], "with candidates: adapters nothing is merged"),
    ],
)
def test_bad_servers(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        engine_of(SERVER, *settings)
    assert not any(re.search("hunter2|sk-0123456789", fault.message) for fault in error.value.faults)


@pytest.mark.parametrize(
    "space",
    [
        "task_arithmetic",
        "core_ties",
        "soup",
        "{kind: parameter, operator: {name: linear}, knots: 1, genes: {weight: {}}}",
    ],
)
def test_spaces_whose_candidates_are_adapters(space: str) -> None:
    assert engine_of(SERVER, f"space={space}").serves_adapters


def test_settings_of_a_transformers_model_beside_vllm() -> None:
    assert transformers_config(VllmConfig(kind="vllm", dtype="float16", threads=3)) == TransformersConfig(
        dtype="float16", threads=3
    )
