"""Starting and stopping vLLM, and asking it tokens. Knows nothing of recipes, tasks or weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.engines.vllm_worker import EXTENSION
from evomerge.errors import ConfigError, Fault, MergeError

if TYPE_CHECKING:
    from evomerge.config import VllmConfig

__all__ = ["SWAPPABLE", "Likelihood", "continuations_of", "finite", "logprobs_of", "on_cpu", "start", "stop"]

Likelihood = tuple[float, bool]
"""Of a token: its log-probability in nats, and whether it is the likeliest one."""

SWAPPABLE = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Architectures whose weights may be exchanged in a live engine: dense, with one norm in front of each module. Others
keep copies in layouts of their own, which exchanging is known to corrupt for some of them."""

_GIB = 1 << 30

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other workers share the cores
}


def start(
    folder: Path,
    config: VllmConfig,
    *,
    dtype: str,
    share: float,
    dummy: bool = False,
    apart: bool = False,
    adapters: Mapping[str, Any] | None = None,
) -> Any:
    """A vLLM engine.

    Args:
        folder: of a model; for a dummy, its configuration and tokenizer are enough.
        config: of the engine.
        dtype: what it computes in.
        share: of a GPU that the worker may take.
        dummy: start with arbitrary weights.
        apart: in a process of its own, which leaves nothing behind; else in this one, which starts faster.
        adapters: vLLM's settings for LoRA; None if there are no adapters.

    Raises:
        ConfigError: vLLM refuses to start.
    """
    for name, value in {**_ENVIRONMENT, "OMP_NUM_THREADS": str(config.threads)}.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(apart))
    from vllm import LLM, envs

    envs.disable_envs_cache()  # it remembers what the engine before this one was told
    cache = config.kv_cache_gib or (1.0 if on_cpu() else None)
    try:
        return LLM(
            str(folder),
            dtype=dtype,
            seed=0,
            load_format="dummy" if dummy else "auto",
            max_model_len=config.max_model_len,
            max_num_seqs=config.batch_size,
            gpu_memory_utilization=config.gpu_memory_utilization * share,
            kv_cache_memory_bytes=None if cache is None else int(cache * _GIB),
            tensor_parallel_size=config.tensor_parallel_size,
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            enforce_eager=config.enforce_eager or on_cpu(),
            worker_extension_cls=EXTENSION,
            **({} if adapters is None else {"enable_lora": True, **adapters}),
        )
    except (ValueError, RuntimeError, OSError) as error:
        message = f"vLLM did not start: {error}; see docs/vllm.md for what it needs"
        raise ConfigError("engine", [Fault(path="$.engine", message=message)]) from error


def stop(llm: Any) -> None:
    """End an engine and its processes."""
    llm.llm_engine.engine_core.shutdown()


def on_cpu() -> bool:
    """Whether this vLLM is built for a CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def finite(logprob: float) -> float:
    """The same.

    Raises:
        MergeError: it is NaN.
    """
    if math.isnan(logprob):
        raise MergeError("expected finite logits; got NaN: the merged weights overflow; narrow their search range")
    return logprob


def logprobs_of(llm: Any, texts: Sequence[Sequence[int]], adapter: Any = None) -> list[list[Likelihood]]:
    """How likely each token of some texts is, given those before it.

    Args:
        llm: vLLM's `LLM`.
        texts: token ids.
        adapter: vLLM's `LoRARequest`; None for the model as it is.

    Returns:
        For each text, for each token but the first, its log-probability in nats and whether it is the likeliest one.

    Raises:
        MergeError: the model computes NaN.
    """
    from vllm import SamplingParams

    asked = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=0.0, detokenize=False)
    prompts = [{"prompt_token_ids": list(text)} for text in texts]
    answers = llm.generate(prompts, asked, use_tqdm=False, lora_request=adapter)
    return [
        [
            (finite(found[token].logprob), found[token].rank == 1)
            for token, found in zip(text[1:], answer.prompt_logprobs[1:], strict=True)
        ]
        for text, answer in zip(texts, answers, strict=True)
    ]


def continuations_of(
    llm: Any, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]], adapter: Any = None
) -> list[list[int]]:
    """Token ids that a model goes on with.

    Args:
        llm: vLLM's `LLM`.
        prompts: token ids.
        asked: for each, settings of vLLM's `SamplingParams`.
        adapter: as for `logprobs_of`.

    Raises:
        MergeError: the model computes NaN.
    """
    from vllm import SamplingParams

    sampling = [SamplingParams(logprobs=0, **settings) for settings in asked]
    told = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    answers = [answer.outputs[0] for answer in llm.generate(told, sampling, use_tqdm=False, lora_request=adapter)]
    for answer in answers:
        for token, found in zip(answer.token_ids, answer.logprobs, strict=True):
            finite(found[token].logprob)
    return [list(answer.token_ids) for answer in answers]
