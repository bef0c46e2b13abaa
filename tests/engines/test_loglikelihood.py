import random

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM

from evomerge.engines import TransformersEngine
from evomerge.engines.loglikelihood import Pair, keeps_branches_apart, log_likelihoods, make_batches

MAX_LENGTH = 128

tokens = st.lists(st.integers(2, 31), min_size=1, max_size=9).map(tuple)


def scored(
    engine: TransformersEngine, pairs: list[Pair], batch_size: int, *, share_prompts: bool = False
) -> list[tuple[float, bool]]:
    batches = make_batches(
        pairs, batch_size=batch_size, max_length=MAX_LENGTH, device="cpu", share_prompts=share_prompts
    )
    return log_likelihoods(engine.model, batches, len(pairs))


def one_by_one(engine: TransformersEngine, pair: Pair) -> tuple[float, bool]:
    prompt, answer = pair
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    likely = torch.log_softmax(logits, dim=-1)[range(len(answer)), answer]
    return float(likely.sum()), logits.argmax(-1).tolist() == list(answer)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    prompts=st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=6),
    batch_size=st.integers(1, 5),
    share_prompts=st.booleans(),
)
def test_batches_change_nothing(
    exact_engine: TransformersEngine,
    prompts: list[tuple[tuple[int, ...], list[tuple[int, ...]]]],
    batch_size: int,
    share_prompts: bool,
) -> None:
    pairs = [(prompt, answer) for prompt, answers in prompts for answer in answers]
    got = scored(exact_engine, pairs, batch_size, share_prompts=share_prompts)
    for (value, greedy), pair in zip(got, pairs, strict=True):
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
    for share_prompts in (False, True):
        got = scored(exact_engine, pairs, 16, share_prompts=share_prompts)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-3)


def test_pairs_that_differ_in_their_last_token_share_a_row() -> None:
    (batch,) = make_batches(
        [((2, 3), (4, 5)), ((2, 3), (4, 6)), ((2, 3), (4,))], batch_size=8, max_length=9, device="cpu"
    )
    assert batch.tokens.tolist() == [[2, 3, 4], [2, 3, 0]]
    assert len(batch.keep) == 2


def test_answers_to_one_prompt_share_its_row_and_do_not_see_each_other() -> None:
    pairs: list[Pair] = [((2, 3), (4, 5, 6)), ((2, 3), (7, 8)), ((2, 3), (9,)), ((3, 3), (1, 1, 1))]
    (batch,) = make_batches(pairs, batch_size=8, max_length=9, device="cpu", share_prompts=True)
    assert batch.tokens.tolist() == [[2, 3, 4, 5, 7], [3, 3, 1, 1, 0]]
    assert batch.branches is not None
    assert batch.branches.positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 2, 3, 0]]
    assert batch.branches.visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1],
    ]  # fmt: skip
    assert batch.branches.visible[1, 0, 4].all(), "padding sees its row, and so any NaN in it"
    assert (len(batch.answers), len(batch.rows)) == (9, 7), "three answers begin at one place"


def test_rows_of_plain_text_need_no_mask() -> None:
    pairs: list[Pair] = [((2, 3), (4, 5)), ((2, 3), (4, 6)), ((2, 3), (7,)), ((5,), (1, 1))]
    batches = make_batches(pairs, batch_size=2, max_length=9, device="cpu", share_prompts=True)
    assert [batch.branches for batch in batches] == [None]


def tiny(kind: str, **settings: object) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(kind, vocab_size=32, **settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "apart"),
    [
        ("llama", SMALL, True),
        ("gpt_neox", SMALL, True),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, True),
        ("mistral", {**SMALL, "sliding_window": 8}, False),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, False),
        ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, False),
    ],
)
def test_models_that_keep_answers_apart_are_told_from_others(kind: str, settings: dict[str, int], apart: bool) -> None:
    torch.manual_seed(0)
    assert keeps_branches_apart(tiny(kind, **settings)) == apart
