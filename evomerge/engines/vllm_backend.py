"""How benchmarks ask a vLLM engine: in tokens, the same that a transformers model gets. Knows nothing of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from evomerge.engines.base import check_chat_template
from evomerge.engines.generation import Rules, Written, cut, encoded, rules_of
from evomerge.engines.vllm_process import finite, logprobs_of
from evomerge.errors import TaskError
from evomerge.rng import derive_seed

if TYPE_CHECKING:
    from evomerge.engines.base import TextRequest
    from evomerge.engines.loglikelihood import Pair
    from evomerge.engines.vllm_engine import VllmEngine

__all__ = ["VllmBackend"]

_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})
"""Settings that both vLLM and transformers have, under one name."""


@final
class VllmBackend:
    """The live model of a `VllmEngine`.

    Args:
        engine: holds it.
        chat_template: whether prompts are wrapped in one.

    Attributes:
        lm: lm-eval's `HFLM` on a model without weights, for tokens and limits; what it is asked, vLLM answers.

    Raises:
        TaskError: a chat template is wanted and the tokenizer has none.
    """

    def __init__(self, engine: VllmEngine, *, chat_template: bool) -> None:
        check_chat_template(engine.tokenizer, wanted=chat_template)
        self._engine = engine
        self.lm: Any = _language_model(self, engine)

    def scoring(self, pairs: Sequence[Pair]) -> Callable[[], list[tuple[float, bool]]]:
        """See `Backend.scoring`."""
        limit = self.lm.max_length + 1
        texts = [(prompt + answer)[-limit:] for prompt, answer in pairs]
        lengths = [len(answer) for _, answer in pairs]

        def score() -> list[tuple[float, bool]]:
            with self._engine.watch:
                answers = logprobs_of(self._engine.llm, texts)
            tails = [answer[-length:] for answer, length in zip(answers, lengths, strict=True)]
            return [(sum(logprob for logprob, _ in tail), all(best for _, best in tail)) for tail in tails]

        return score

    def writing(self, requests: Sequence[TextRequest]) -> Callable[[], list[Written]]:
        """See `Backend.writing`."""
        import torch

        rules = [rules_of(self.lm, settings) for _, settings in requests]
        prompts = [
            encoded(self.lm, [text], rule)[0][0].tolist() for (text, _), rule in zip(requests, rules, strict=True)
        ]
        asked = [_sampling(rule) for rule in rules]

        def write() -> list[Written]:
            if not prompts:
                return []
            for place, sampling in enumerate(asked):  # whoever asks has seeded torch, which vLLM does not draw from
                sampling.seed = derive_seed(torch.initial_seed(), "generate", place) % 2**31
            with self._engine.watch:
                answers = self._engine.llm.generate(
                    [{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False
                )
            return [self._written(answer.outputs[0], rule) for answer, rule in zip(answers, rules, strict=True)]

        return write

    def _written(self, output: Any, rule: Rules) -> Written:
        for token, found in zip(output.token_ids, output.logprobs, strict=True):
            finite(found[token].logprob)
        return Written(text=cut(self.lm.tok_decode(output.token_ids), rule.stops), tokens=len(output.token_ids))


def _sampling(rules: Rules) -> Any:
    """VLLM's form of what lm-eval wants.

    Raises:
        TaskError: a setting that vLLM does not have.
    """
    from vllm import SamplingParams

    wanted = dict(rules.settings)
    chosen = _chosen(wanted) if wanted.pop("do_sample") else {"temperature": 0.0}
    return SamplingParams(
        stop=list(rules.stops),
        include_stop_str_in_output=True,
        max_tokens=rules.limit,
        logprobs=0,
        skip_special_tokens=False,
        **chosen,
    )


def _chosen(wanted: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in wanted.items() if name != "do_sample"}
    if strange := sorted(chosen.keys() - _SAMPLING):
        raise TaskError(
            f"generation_kwargs: with engine.kind vllm expected some of {sorted(_SAMPLING)}; got {strange}; leave them "
            "out of the task file, or use engine.kind: transformers"
        )
    return {"temperature": 1.0, **chosen}


def _language_model(backend: VllmBackend, engine: VllmEngine) -> Any:
    """lm-eval's `HFLM`, made to ask vLLM."""
    from lm_eval.models.huggingface import HFLM

    class AskingVllm(HFLM):  # type: ignore[misc]
        """All kinds of requests come down to these two."""

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return backend.scoring([(tuple(prompt), tuple(answer)) for _, prompt, answer in requests])()

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return [written.text for written in backend.writing([request.args for request in requests])()]

    # one token is for what vLLM must write behind a text that is only scored, one for the answer's last
    longest = engine.llm.llm_engine.model_config.max_model_len - 2
    return AskingVllm(
        pretrained=engine.skeleton(),
        tokenizer=engine.tokenizer,
        batch_size=engine.config.batch_size,
        max_length=longest,
    )
