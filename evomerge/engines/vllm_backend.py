"""How benchmarks ask vLLM, in this process or behind a server: in tokens, the same that a transformers model gets.

Knows nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

from evomerge.engines.base import check_chat_template
from evomerge.engines.generation import Rules, Written, cut, encoded, rules_of
from evomerge.errors import TaskError
from evomerge.rng import derive_seed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from evomerge.config import OpenaiConfig, VllmConfig
    from evomerge.engines.base import TextRequest
    from evomerge.engines.loglikelihood import Pair
    from evomerge.engines.vllm_process import Likelihood
    from evomerge.merging.pool import ModelPool

__all__ = ["Asked", "VllmBackend", "skeleton_of"]

_NEUTRAL: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that both vLLM and transformers have, under one name, so that they change nothing; all are sent, because a
server would take what is left out from the base's generation_config.json."""


class Asked(Protocol):
    """A live model that speaks vLLM's terms."""

    @property
    def config(self) -> VllmConfig | OpenaiConfig:
        """Its settings."""
        ...

    @property
    def pool(self) -> ModelPool:
        """Base and experts."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The pool's choice."""
        ...

    @property
    def watch(self) -> AbstractContextManager[Any]:
        """Measures the time inside."""
        ...

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together."""
        ...

    def logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[Likelihood]]:
        """For each text, how likely each token but the first is."""
        ...

    def continuations(self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """For each prompt, the tokens that it goes on with, under settings by vLLM's names."""
        ...


def skeleton_of(pool: ModelPool) -> Any:
    """A pool's model as transformers has it, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**pool.config))


@final
class VllmBackend:
    """The live model of an engine that speaks vLLM's terms.

    Args:
        engine: holds it.
        chat_template: whether prompts are wrapped in one.

    Attributes:
        lm: lm-eval's `HFLM` on a model without weights, for tokens and limits; what it is asked, vLLM answers.

    Raises:
        TaskError: a chat template is wanted and the tokenizer has none.
    """

    def __init__(self, engine: Asked, *, chat_template: bool) -> None:
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
                answers = self._engine.logprobs(texts)
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
            # whoever asks has seeded torch, which vLLM does not draw from
            seeds = [derive_seed(torch.initial_seed(), "generate", place) % 2**31 for place in range(len(asked))]
            with self._engine.watch:
                answers = self._engine.continuations(
                    prompts, [{**settings, "seed": seed} for settings, seed in zip(asked, seeds, strict=True)]
                )
            return [self._written(tokens, rule) for tokens, rule in zip(answers, rules, strict=True)]

        return write

    def _written(self, tokens: Sequence[int], rule: Rules) -> Written:
        return Written(text=cut(self.lm.tok_decode(tokens), rule.stops), tokens=len(tokens))


def _sampling(rules: Rules) -> dict[str, Any]:
    """VLLM's form of what lm-eval wants.

    Raises:
        TaskError: a setting that vLLM does not have.
    """
    wanted = dict(rules.settings)
    chosen = _chosen(wanted) if wanted.pop("do_sample") else {"temperature": 0.0}
    return {
        **_NEUTRAL,
        **chosen,
        "stop": list(rules.stops),
        "include_stop_str_in_output": True,
        "max_tokens": rules.limit,
        "skip_special_tokens": False,
    }


def _chosen(wanted: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in wanted.items() if name != "do_sample"}
    if strange := sorted(chosen.keys() - _NEUTRAL.keys()):
        raise TaskError(
            f"generation_kwargs: with vLLM expected some of {sorted(_NEUTRAL)}; got {strange}; leave them "
            "out of the task file, or use engine.kind: transformers"
        )
    return chosen


def _language_model(backend: VllmBackend, engine: Asked) -> Any:
    """lm-eval's `HFLM`, made to ask vLLM."""
    from lm_eval.models.huggingface import HFLM

    class AskingVllm(HFLM):  # type: ignore[misc]
        """All kinds of requests come down to these two."""

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return backend.scoring([(tuple(prompt), tuple(answer)) for _, prompt, answer in requests])()

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return [written.text for written in backend.writing([request.args for request in requests])()]

    # one token is for what vLLM must write behind a text that is only scored, one for the answer's last
    longest = engine.most_tokens - 2
    return AskingVllm(
        pretrained=skeleton_of(engine.pool),
        tokenizer=engine.tokenizer,
        batch_size=engine.config.batch_size,
        max_length=longest,
    )
