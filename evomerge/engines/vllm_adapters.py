"""A vLLM engine in this process that keeps the base; each candidate is a LoRA adapter on it, and nothing is merged.

Knows nothing of tasks, items or scores.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, final
from weakref import finalize

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.engines.candidate_adapters import adapted_modules, require_adapters, served_rank, write_adapter
from evomerge.engines.vllm_backend import VllmBackend
from evomerge.engines.vllm_canary import check_adapters
from evomerge.engines.vllm_engine import VllmWatch
from evomerge.engines.vllm_process import continuations_of, logprobs_of, on_cpu, start, stop
from evomerge.errors import require_installed

if TYPE_CHECKING:
    from evomerge.config import VllmConfig
    from evomerge.engines.vllm_process import Likelihood
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import OutputDtype, Recipe

__all__ = ["VllmAdapters"]


@final
class VllmAdapters:
    """A vLLM engine; every `load` gives it another adapter.

    Example:
        >>> engine = VllmAdapters(pool, VllmConfig(kind="vllm", candidates="adapters"))  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        0.0

    Args:
        pool: base and adapters.
        config: memory, dtype, tensor parallelism.
        gpu: share of a GPU that it may take.

    Attributes:
        config: the same.
        pool: base and adapters.
        llm: vLLM's `LLM`.
        tokenizer: the pool's choice.
        device, dtype: where the model lives and what it computes in.
        watch: time of its forward passes.

    Raises:
        ConfigError: vLLM does not start, or memory is too small.
        MergeError: adapters do not do what they should.
        MissingExtraError: vLLM is not installed.
        PoolError: an expert is no plain adapter.
    """

    def __init__(self, pool: ModelPool, config: VllmConfig, *, gpu: float = 1.0) -> None:
        require_installed("vllm", "vllm")
        require_adapters(pool)
        stay_offline()
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(config.threads)  # vLLM lets nobody change it afterwards
        self.config, self.pool = config, pool
        self.dtype: OutputDtype = pool.dtype if config.dtype == "pool" else config.dtype
        self.device = "cpu" if on_cpu() else "cuda"
        self.tokenizer = AutoTokenizer.from_pretrained(
            pool.tokenizer_folder, trust_remote_code=False, local_files_only=True
        )
        self.watch = VllmWatch()
        self._folder = Path(mkdtemp(prefix="evomerge-adapters-"))  # on disk: a killed worker leaves it behind
        self._clean = finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        # without the list, vLLM wraps the output head as well, and prompts' log-probabilities are wrong or fail
        settings = {"max_lora_rank": served_rank(pool), "max_loras": 1, "lora_target_modules": adapted_modules(pool)}
        self.llm = start(pool.folder(pool.base), config, dtype=self.dtype, share=gpu, adapters=settings)
        self._adapter: Any = None
        self._loads = 0
        check_adapters(self)

    def backend(self, *, chat_template: bool) -> VllmBackend:
        """What benchmarks ask; see `VllmBackend`."""
        return VllmBackend(self, chat_template=chat_template)

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Answer as the recipe's merge, unrounded, from now on.

        Args:
            recipe: a sum of adapters, or the base.
            exact: nothing is approximate here.

        Raises:
            MergeError: the candidate is no adapter.
        """
        from vllm.lora.request import LoRARequest

        started = time.perf_counter()
        self._drop()
        self._loads += 1  # names and numbers are never used again: vLLM caches prefixes by them
        path = self._folder / f"candidate-{self._loads}"
        if write_adapter(recipe, self.pool, path):
            self._adapter = LoRARequest(path.name, self._loads, str(path))
        return LoadStats(seconds=time.perf_counter() - started, rewritten_share=0.0)

    def logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[Likelihood]]:
        """See `logprobs_of`."""
        return logprobs_of(self.llm, texts, self._adapter)

    def continuations(self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """See `continuations_of`."""
        return continuations_of(self.llm, prompts, asked, self._adapter)

    def close(self) -> None:
        """End the engine and its processes."""
        stop(self.llm)
        self._clean()
        gc.collect()

    def _drop(self) -> None:
        """Forget the candidate before."""
        if self._adapter is not None:
            self.llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            shutil.rmtree(self._adapter.lora_path, ignore_errors=True)
            self._adapter = None
