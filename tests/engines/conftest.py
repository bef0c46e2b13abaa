"""The shipped tiny family behind an engine, and small tasks of every kind that the runner supports."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.config import FitnessConfig, ItemsConfig, ObjectiveConfig, PoolConfig, TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.merging.pool import ModelPool

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "experiments" / "quickstart" / "models"
ITEMS = ROOT / "fitness" / "tasks" / "quickstart"
COUNT = 40

FitnessMaker = Callable[..., FitnessConfig]


@pytest.fixture(scope="session")
def pool() -> ModelPool:
    return ModelPool.open(MODELS / "base", {name: MODELS / name for name in ("rev", "sort", "ciph")})


@pytest.fixture(scope="session")
def engine(pool: ModelPool) -> TransformersEngine:
    return TransformersEngine(pool, TransformersConfig(device="cpu", batch_size=16))


def _items(skill: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ITEMS / f"{skill}.jsonl").read_text().splitlines()]


def _write_jsonl(file: Path, records: Sequence[dict[str, Any]]) -> str:
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return file.name


def _task(name: str, data: dict[str, str], output: str, metrics: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data},
        "test_split": "test",
        "output_type": output,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
        **more,
    }


def _choices(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of different lengths, two of which differ in the last character alone."""
    return [
        {
            "prompt": r["prompt"],
            "choices": [r["answer"][::-1][1:], r["answer"], r["answer"][:-1] + "a", "bb."],
            "label": 1,
        }
        for r in records
    ]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rev, sort = _items("rev")[:COUNT], _items("sort")[:COUNT]
    files = {
        "rev": _write_jsonl(folder / "rev.jsonl", rev),
        "sort": _write_jsonl(folder / "sort.jsonl", sort),
        "examples": _write_jsonl(folder / "examples.jsonl", _items("rev")[COUNT : COUNT + 12]),
        "choices": _write_jsonl(folder / "choices.jsonl", _choices(rev)),
    }
    letters = {"name": "letters", "filter": [{"function": "regex", "regex_pattern": "([a-j]+)"}]}
    letters["filter"] += [{"function": "take_first"}]  # type: ignore[operator]
    whole = {"name": "whole", "filter": [{"function": "take_first"}]}
    definitions = [
        _task("rev_exact", {"test": files["rev"]}, "loglikelihood", ["acc"]),
        _task("sort_exact", {"test": files["sort"]}, "loglikelihood", ["acc"]),
        _task("rev_empty_prompt", {"test": files["rev"]}, "loglikelihood", ["acc"], doc_to_text=""),
        _task(
            "rev_shots",
            {"test": files["rev"], "examples": files["examples"]},
            "loglikelihood",
            ["acc"],
            fewshot_split="examples",
            fewshot_delimiter="",
        ),
        _task(
            "rev_choice",
            {"test": files["choices"]},
            "multiple_choice",
            ["acc", "acc_norm"],
            doc_to_choice="choices",
            doc_to_target="label",
        ),
        _task(
            "rev_write",
            {"test": files["rev"]},
            "generate_until",
            ["exact_match"],
            doc_to_target="{{answer[:-1]}}",
            generation_kwargs={"until": ["."], "max_gen_toks": 10, "do_sample": False},
            filter_list=[letters, whole],
        ),
    ]
    for definition in definitions:
        (folder / f"{definition['task']}.yaml").write_text(yaml.safe_dump(definition))
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["rev_exact", "sort_exact"]}))
    return folder


@pytest.fixture(scope="session")
def make_fitness(tasks: Path) -> FitnessMaker:
    """A fitness over the small tasks; objectives are given as keyword sets."""

    def make(*objectives: dict[str, Any], **more: Any) -> FitnessConfig:
        paths = more.pop("tasks", (tasks,))
        named = tuple(ObjectiveConfig(**{"name": f"o{i}", **o}) for i, o in enumerate(objectives))
        return FitnessConfig(tasks=paths, objectives=named, items=ItemsConfig(search=4, confirm=4), **more)

    return make


@pytest.fixture(scope="session")
def fitness(make_fitness: FitnessMaker) -> FitnessConfig:
    """One objective for every kind of answer, and the tokens of the last."""
    return make_fitness(
        {"task": "rev_exact"},
        {"task": "rev_choice", "metric": "acc_norm"},
        {"task": "rev_write", "metric": "exact_match", "filter": "letters"},
        {"task": "rev_write", "metric": "tokens", "filter": "letters"},
    )


@pytest.fixture(scope="session")
def exact_engine(pool: ModelPool) -> TransformersEngine:
    """In float32, where the order of sums does not decide near-ties."""
    return TransformersEngine(pool, TransformersConfig(device="cpu", dtype="float32", batch_size=16))


RANDOM_SHAPE = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _save_random_family(folder: Path, config: type[Any], model: type[Any], **settings: Any) -> PoolConfig:
    """A base with spread-out weights, and two experts near it, of a shape that vLLM takes on a CPU."""
    torch.manual_seed(0)
    base = model(config(**RANDOM_SHAPE, **settings)).requires_grad_(False)
    for parameter in base.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    for name in ("base", "one", "two"):
        made = model(base.config).requires_grad_(False)
        made.load_state_dict(base.state_dict())
        for parameter in made.parameters() if name != "base" else ():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        made.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            copy(MODELS / "base" / file, folder / name)
    return PoolConfig(base=folder / "base", experts={name: folder / name for name in ("one", "two")})


@pytest.fixture(scope="session")
def save_random_family() -> Callable[..., PoolConfig]:
    return _save_random_family


def _save_adapter_family(folder: Path, *modules: str, rank: int = 2, tie_word_embeddings: bool = True) -> PoolConfig:
    """A random Llama, and two LoRA adapters on it."""
    family = _save_random_family(folder, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=tie_word_embeddings)
    base = load_file(family.base / "model.safetensors")
    for name in ("one", "two"):
        adapted = [
            tensor.removesuffix(".weight") for tensor in base if tensor.endswith(tuple(f"{m}.weight" for m in modules))
        ]
        tensors = {}
        for module in adapted:
            rows, columns = base[f"{module}.weight"].shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns) * 0.2
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank) * 0.2
        (folder / f"{name}-adapter").mkdir()
        save_file(tensors, folder / f"{name}-adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": adapted}
        (folder / f"{name}-adapter" / "adapter_config.json").write_text(json.dumps(config))
    return PoolConfig(base=family.base, experts={name: folder / f"{name}-adapter" for name in ("one", "two")})


@pytest.fixture(scope="session")
def save_adapter_family() -> Callable[..., PoolConfig]:
    return _save_adapter_family
