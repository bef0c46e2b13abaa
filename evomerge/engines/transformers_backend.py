"""How benchmarks ask a transformers model: in batches that are laid out once. Knows nothing of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

from evomerge.engines.base import check_chat_template
from evomerge.engines.generation import Written, generate, make_prompts
from evomerge.engines.loglikelihood import Pair, keeps_branches_apart, log_likelihoods, make_batches

if TYPE_CHECKING:
    from evomerge.engines.base import TextRequest
    from evomerge.engines.transformers_engine import TransformersEngine

__all__ = ["TransformersBackend"]


@final
class TransformersBackend:
    """The live model of a `TransformersEngine`.

    The softmax runs in float32: in bfloat16 log-likelihoods have three digits, and different answers tie.

    Args:
        engine: holds the live model.
        chat_template: whether prompts are wrapped in one.

    Attributes:
        lm: lm-eval's `HFLM` on the live model.

    Raises:
        TaskError: a chat template is wanted and the tokenizer has none; or the model is no language model.
    """

    def __init__(self, engine: TransformersEngine, *, chat_template: bool) -> None:
        from lm_eval.models.huggingface import HFLM

        engine.require_language_model("lm-eval tasks")
        check_chat_template(engine.tokenizer, wanted=chat_template)
        self._engine = engine
        self._share_prompts = keeps_branches_apart(engine.model)
        self.lm: Any = HFLM(
            pretrained=engine.model,
            tokenizer=engine.tokenizer,
            batch_size=engine.config.batch_size,
            softmax_dtype="float32",
        )

    def scoring(self, pairs: Sequence[Pair]) -> Callable[[], list[tuple[float, bool]]]:
        """See `Backend.scoring`."""
        batches = make_batches(
            pairs,
            batch_size=self._engine.config.batch_size,
            max_length=self.lm.max_length,
            device=self._engine.device,
            share_prompts=self._share_prompts,
        )
        return lambda: log_likelihoods(self._engine.model, batches, len(pairs))

    def writing(self, requests: Sequence[TextRequest]) -> Callable[[], list[Written]]:
        """See `Backend.writing`."""
        batches = make_prompts(self.lm, requests)
        return lambda: generate(self.lm, batches, len(requests))
