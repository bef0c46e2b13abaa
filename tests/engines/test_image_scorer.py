"""A pool of image classifiers, scored by a function: nothing in a search asks for a language model."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

from evomerge.config import FitnessConfig, FunctionConfig, ItemsConfig, LossConfig, ObjectiveConfig, TransformersConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.errors import MergeError, TaskError
from evomerge.merging.pool import ModelPool
from evomerge.outcome import ItemSet
from evomerge.recipe import uniform

CODE = """
import torch


def images(numbers):
    makers = [torch.Generator().manual_seed(number) for number in numbers]
    return torch.stack([torch.randn(3, 8, 8, generator=maker) for maker in makers])


def brightest(engine, items):
    pixels = images(items)
    found = engine.model(pixel_values=pixels.to(engine.device, engine.model.dtype)).logits.argmax(-1)
    return found == pixels.mean((2, 3)).argmax(-1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three channels: one model that was trained for a moment, and one that was not."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "bright.py").write_text(CODE)
    scope: dict[str, object] = {}
    exec(CODE, scope)
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    config.num_labels = 3
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(folder / "base")
    expert = copy.deepcopy(model)
    pixels = scope["images"](range(1000, 1512))  # type: ignore[operator]
    optimizer = torch.optim.AdamW(expert.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(expert(pixel_values=pixels).logits, pixels.mean((2, 3)).argmax(-1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expert.save_pretrained(folder / "bright")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    pool = ModelPool.open(folder / "base", {"bright": folder / "bright"})
    return TransformersEngine(pool, TransformersConfig(device="cpu"))


def fitness(folder: Path) -> FitnessConfig:
    own = FunctionConfig(kind="function", function="bright:brightest", items=200, folder=folder)
    objective = ObjectiveConfig(name="bright", task="bright")
    return FitnessConfig(scorers={"bright": own}, objectives=(objective,), items=ItemsConfig(search=8, confirm=8))


def test_candidates_are_scored(engine: TransformersEngine, folder: Path) -> None:
    assert engine.tokenizer is None
    runner = EvalRunner(engine, fitness(folder), seed=0)
    share = {}
    for name in ("base", "bright"):
        engine.load(uniform((name,), layers=engine.pool.layers, dtype="float32"))
        (response,), _ = runner.score(ItemSet.of({"bright": tuple(range(100))}))
        assert set(response.values) <= {0.0, 1.0}
        share[name] = sum(response.values) / 100
    assert share["bright"] > share["base"] + 0.2


def test_overflow_shows(engine: TransformersEngine, folder: Path) -> None:
    runner = EvalRunner(engine, fitness(folder), seed=0)
    engine.load(uniform(("base",), layers=engine.pool.layers, dtype="float32"))
    with torch.no_grad():
        engine.model.classifier.bias[0] = torch.nan
    try:
        with pytest.raises(MergeError, match="expected finite logits"):
            runner.score(ItemSet.of({"bright": (0, 1)}))
    finally:
        with torch.no_grad():
            engine.model.classifier.bias[0] = 0.0


def test_what_needs_a_language_model_is_refused(engine: TransformersEngine, folder: Path) -> None:
    (folder / "text.txt").write_text("a text " * 100)
    config = FitnessConfig(
        scorers={"wiki": LossConfig(kind="loss", text=folder / "text.txt")},
        objectives=(ObjectiveConfig(name="wiki", task="wiki", metric="loss", goal="min"),),
        items=ItemsConfig(search=8, confirm=8),
    )
    with pytest.raises(TaskError, match="expected a causal language model; got ViTForImageClassification"):
        EvalRunner(engine, config, seed=0)
