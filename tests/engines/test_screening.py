"""A first look at a live model: what is worse than a guess is told from what is not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.config import ScreenConfig
from evomerge.engines import TransformersEngine
from evomerge.engines.screening import Screen
from evomerge.errors import MergeError, PoolError, TaskError
from evomerge.merging.pool import ModelPool
from evomerge.recipe import Hop, uniform

TEXT = "#>_dfccgc=cgccfd."


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def loss_of(engine: TransformersEngine, tokens: int) -> float:
    ids = torch.tensor(engine.tokenizer(TEXT)["input_ids"][:tokens])
    with torch.inference_mode():
        logits = engine.model(input_ids=ids[None], use_cache=False).logits[0].float()
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))


def test_the_limit_is_on_the_mean_loss(exact_engine: TransformersEngine, pool: ModelPool, text: Path) -> None:
    exact_engine.load(uniform(("rev",), layers=pool.layers, dtype="float32"))
    loss = loss_of(exact_engine, 12)
    Screen(ScreenConfig(text=text, tokens=12, limit=loss + 1e-4), exact_engine).check()
    with pytest.raises(MergeError, match=f"at most {loss - 1e-2:.3f} nats on the 11 tokens .* got {loss:.3f}"):
        Screen(ScreenConfig(text=text, tokens=12, limit=loss - 1e-2), exact_engine).check()


def test_a_broken_path_is_worse_than_a_guess(exact_engine: TransformersEngine, pool: ModelPool, text: Path) -> None:
    screen = Screen(ScreenConfig(text=text), exact_engine)
    assert screen.limit == pytest.approx(math.log(len(exact_engine.tokenizer)))
    whole = uniform(("rev",), layers=pool.layers, dtype="float32")
    exact_engine.load(whole)
    screen.check()
    backwards = tuple(Hop(source="rev", layer=layer) for layer in (3, 2, 1, 0, 3, 3))
    exact_engine.load(replace(whole, path=backwards))
    assert loss_of(exact_engine, 64) > screen.limit
    with pytest.raises(MergeError, match=r"fitness\.screen; got"):
        screen.check()


def test_its_text_and_limit_are_its_digest(engine: TransformersEngine, text: Path) -> None:
    digest = Screen(ScreenConfig(text=text, tokens=12), engine).digest
    assert Screen(ScreenConfig(text=text, tokens=12), engine).digest == digest
    assert Screen(ScreenConfig(text=text, tokens=11), engine).digest != digest
    assert Screen(ScreenConfig(text=text, tokens=12, limit=3.0), engine).digest != digest
    text.write_text(TEXT.replace("dfc", "dff"))
    assert Screen(ScreenConfig(text=text, tokens=12), engine).digest != digest


def test_texts_that_do_not_fit_are_refused(engine: TransformersEngine, text: Path) -> None:
    text.write_text(TEXT * 100)
    with pytest.raises(TaskError, match=r"expected 2 to \d+ tokens, the model's positions; got 1700"):
        Screen(ScreenConfig(text=text, tokens=4096), engine)
    with pytest.raises(PoolError):
        Screen(ScreenConfig(text=text.with_name("none.txt")), engine)
