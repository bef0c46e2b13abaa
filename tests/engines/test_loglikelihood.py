import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM

from evomerge.engines import TransformersEngine
from evomerge.engines.loglikelihood import Pair, log_likelihoods, make_batches

MAX_LENGTH = 128

tokens = st.lists(st.integers(2, 31), min_size=1, max_size=9).map(tuple)


def scored(engine: TransformersEngine, pairs: list[Pair], batch_size: int) -> list[tuple[float, bool]]:
    batches = make_batches(pairs, batch_size=batch_size, max_length=MAX_LENGTH, device="cpu")
    return log_likelihoods(engine.model, batches, len(pairs))


def one_by_one(engine: TransformersEngine, pair: Pair) -> tuple[float, bool]:
    prompt, answer = pair
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    likely = torch.log_softmax(logits, dim=-1)[range(len(answer)), answer]
    return float(likely.sum()), logits.argmax(-1).tolist() == list(answer)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(pairs=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), batch_size=st.integers(1, 5))
def test_batches_change_nothing(exact_engine: TransformersEngine, pairs: list[Pair], batch_size: int) -> None:
    for (value, greedy), pair in zip(scored(exact_engine, pairs, batch_size), pairs, strict=True):
        expected, expected_greedy = one_by_one(exact_engine, pair)
        assert value == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy


def test_the_numbers_are_those_of_lm_eval(exact_engine: TransformersEngine) -> None:
    draw = random.Random(0)

    def text(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 32) for _ in range(length))

    prompt = text(7)
    pairs = [(text(draw.randrange(1, 20)), text(draw.randrange(1, 8))) for _ in range(50)]
    pairs += [(prompt, (5, 6, last)) for last in range(4)]  # share a row
    pairs += [(text(140), text(3))]  # longer than the model
    lm = HFLM(pretrained=exact_engine.model, tokenizer=exact_engine.tokenizer, batch_size=16, softmax_dtype="float32")
    expected = lm._loglikelihood_tokens([(("", ""), list(p), list(a)) for p, a in pairs], disable_tqdm=True)
    got = scored(exact_engine, pairs, 16)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-3)


def test_pairs_that_differ_in_their_last_token_share_a_row() -> None:
    (batch,) = make_batches(
        [((2, 3), (4, 5)), ((2, 3), (4, 6)), ((2, 3), (4,))], batch_size=8, max_length=9, device="cpu"
    )
    assert batch.tokens.tolist() == [[2, 3, 4], [2, 3, 0]]
    assert len(batch.keep) == 2
