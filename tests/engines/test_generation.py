"""Greedy and sampled text, stop strings and caps."""

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from evomerge.config import TransformersConfig
from evomerge.engines import TransformersEngine
from evomerge.engines.generation import generate, make_prompts
from evomerge.engines.transformers_backend import TransformersBackend
from evomerge.errors import TaskError
from evomerge.recipe import uniform

PROMPTS = ["#>_dfccgc=", "#>_hiigab=", "#>_cediae=", "#>_abc=", "#>_", "abc"]


@pytest.fixture(scope="module")
def lm(exact_engine: TransformersEngine) -> Any:
    exact_engine.load(uniform(("rev",), layers=4, dtype="bfloat16"))
    return TransformersBackend(exact_engine, chat_template=False).lm


def written(lm: Any, *prompts: str, **settings: Any) -> list[tuple[str, int]]:
    requests = [(prompt, settings) for prompt in prompts]
    return [(text.text, text.tokens) for text in generate(lm, make_prompts(lm, requests), len(requests))]


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["."], "max_gen_toks": 12},
        {"until": [".", "b", "ca"], "max_gen_toks": 12},
        {"until": [], "max_gen_toks": 3},
        {"max_new_tokens": 5, "temperature": 0.0},
    ],
)
def test_texts_are_those_of_lm_eval(lm: Any, settings: dict[str, Any]) -> None:
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, settings), idx=0) for prompt in PROMPTS
    ]
    expected = lm.generate_until(requests, disable_tqdm=True)
    assert [text for text, _ in written(lm, *PROMPTS, **settings)] == expected


def test_every_row_ends_on_its_own(lm: Any, exact_engine: TransformersEngine) -> None:
    """Rows that meet different stop strings: nothing runs to the cap."""
    whole = [text for text, _ in written(lm, *PROMPTS, until=["."], max_gen_toks=12)]
    stops = sorted({text[-1] for text in whole if text})
    assert len(stops) > 1
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handle = exact_engine.model.register_forward_hook(count)
    found = written(lm, *PROMPTS, until=[*stops, "."], max_gen_toks=60)
    handle.remove()
    for (text, tokens), full in zip(found, whole, strict=True):
        ends = [place for place, letter in enumerate(full) if letter in stops]
        assert text == full[: min(ends, default=len(full))]
        assert tokens == len(text) + 1
    assert passes == max(tokens for _, tokens in found)


def test_company_changes_no_text(lm: Any) -> None:
    together = written(lm, *PROMPTS, until=["."], max_gen_toks=12)
    assert together == [written(lm, prompt, until=["."], max_gen_toks=12)[0] for prompt in PROMPTS]


def test_caps_and_stops_may_differ_between_requests(lm: Any) -> None:
    prompt = PROMPTS[1]
    ((whole, _),) = written(lm, prompt, until=["."], max_gen_toks=12)
    assert len(whole) > 2
    requests: list[tuple[str, dict[str, Any]]] = [
        (prompt, {"until": ["."], "max_gen_toks": 1}),
        (prompt, {"until": [whole[-1]], "max_gen_toks": 12}),
    ]
    first, second = generate(lm, make_prompts(lm, requests), 2)
    assert (first.text, first.tokens) == (whole[:1], 1)
    assert (second.text, second.tokens) == (whole[: whole.index(whole[-1])], whole.index(whole[-1]) + 1)


@pytest.mark.parametrize("limit", [0, 128, 4096])
def test_a_cap_must_leave_room_for_the_prompt(lm: Any, limit: int) -> None:
    with pytest.raises(TaskError, match=f"expected max_gen_toks from 1 to 127, the model's positions; got {limit}"):
        make_prompts(lm, [("abc", {"max_gen_toks": limit})])


def test_samples_follow_the_seed(lm: Any) -> None:
    def draw(seed: int) -> list[tuple[str, int]]:
        torch.manual_seed(seed)
        return written(lm, "abc", "b", until=["."], max_gen_toks=12, do_sample=True, temperature=100.0)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_batches_are_of_the_engines_size_and_longest_first(pool: Any) -> None:
    engine = TransformersEngine(pool, TransformersConfig(device="cpu", batch_size=4))
    small = TransformersBackend(engine, chat_template=False).lm
    batches = make_prompts(small, [(prompt, {"until": ["."], "max_gen_toks": 9}) for prompt in PROMPTS])
    assert [len(batch.owners) for batch in batches] == [4, 2]
    assert [batch.tokens.shape[1] for batch in batches] == sorted((b.tokens.shape[1] for b in batches), reverse=True)
