from pathlib import Path
from typing import Any

import pytest

from evomerge.config import TransformersConfig, VllmConfig, load_experiment, transformers_config
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
        (["engine.kind=vlm"], "expected one of 'transformers', 'vllm'; got 'vlm'; did you mean 'vllm'"),
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


def test_scorers_need_the_model_itself(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.")
    loss = (
        f"fitness={{scorers: {{ppl: {{kind: loss, text: {tmp_path / 'text.txt'}}}}}, items: {{search: 4, confirm: 4}}, "
        "objectives: [{name: ppl, task: ppl, metric: loss, goal: min}]}"
    )
    with pytest.raises(ConfigError, match="the scorers ppl need the model itself; write transformers"):
        engine_of(loss)


def test_settings_of_a_transformers_model_beside_vllm() -> None:
    assert transformers_config(VllmConfig(kind="vllm", dtype="float16", threads=3)) == TransformersConfig(
        dtype="float16", threads=3
    )
