"""A live vLLM engine; recipes are merged inside its workers, straight into the running model.

It is started once, with as many layers as the longest candidate has, and without weights: the first recipe brings them.
Architectures that are not known to bear that, and engines in which a check fails, get an engine anew for each
candidate, which is slow. Knows nothing of tasks, items or scores.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, final

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.engines.vllm_backend import VllmBackend, skeleton_of
from evomerge.engines.vllm_canary import TOLERANCE, answers_of, canary_texts, distance, expected_answers
from evomerge.engines.vllm_process import SWAPPABLE, continuations_of, logprobs_of, on_cpu, start, stop
from evomerge.errors import MergeError, require_installed
from evomerge.merging.executor import execute
from evomerge.merging.export import export_checkpoint, export_skeleton
from evomerge.merging.operators import lower
from evomerge.recipe import Hop, uniform

if TYPE_CHECKING:
    from types import TracebackType

    from evomerge.engines.vllm_process import Likelihood
    from evomerge.engines.vllm_worker import Opening
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import OutputDtype, Recipe

__all__ = ["VllmEngine", "VllmWatch"]

_SAME = 1e-3
"""Nats per token that two equal models may differ by, asked the same in the same order."""


@final
class VllmWatch:
    """Measures the time that vLLM takes to answer; entered around each question."""

    def __init__(self) -> None:
        self._started = 0.0
        self.seconds = 0.0

    def restart(self) -> None:
        """Forget what was seen so far."""
        self.seconds = 0.0

    def check_finite(self) -> None:
        """Nothing is left to judge: every answer was checked when it came."""

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.seconds += time.perf_counter() - self._started


@final
class VllmEngine:
    """A vLLM engine whose weights every `load` sets anew. One process holds one at a time.

    Example:
        >>> engine = VllmEngine(pool, Opening(pool=source, engine=VllmConfig(kind="vllm")))  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        1.0

    Args:
        pool: base and experts; the base gives the architecture.
        opening: the same pool as vLLM's workers open it, and memory, dtype, tensor parallelism.
        depth: most layers of a candidate; a deeper one restarts the engine. Left out: those of the models.
        gpu: share of a GPU that it may take.

    Attributes:
        pool: base and experts.
        llm: vLLM's `LLM`.
        tokenizer: the pool's choice.
        device, dtype: where the model lives and what it computes in.
        watch: time of its forward passes.
        in_place: whether they are written straight into the parameters.
        swaps: whether weights are exchanged in the live engine; else each candidate gets an engine of its own.

    Raises:
        ConfigError: vLLM does not start, or memory is too small.
        MissingExtraError: vLLM is not installed.
        PoolError: the models cannot be opened in vLLM's workers.
    """

    def __init__(self, pool: ModelPool, opening: Opening, *, depth: int | None = None, gpu: float = 1.0) -> None:
        require_installed("vllm", "vllm")
        stay_offline()
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(opening.engine.threads)  # vLLM lets nobody change it afterwards
        self.config = config = opening.engine
        self.pool, self._opening, self._gpu = pool, opening, gpu
        self.dtype: OutputDtype = pool.dtype if config.dtype == "pool" else config.dtype
        self.device = "cpu" if on_cpu() else "cuda"
        self.tokenizer = AutoTokenizer.from_pretrained(
            pool.tokenizer_folder, trust_remote_code=False, local_files_only=True
        )
        self.watch = VllmWatch()
        self.swaps = _is_swappable(pool.config)
        self.in_place = False
        self.llm: Any = None
        self._depth = max(depth or 0, pool.layers)
        self._loads = 0
        self._texts = canary_texts(skeleton_of(pool).config.get_text_config().vocab_size)
        self.load(uniform((pool.base,), layers=pool.layers, dtype=self.dtype))

    def backend(self, *, chat_template: bool) -> VllmBackend:
        """What benchmarks ask; see `VllmBackend`."""
        return VllmBackend(self, chat_template=chat_template)

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[Likelihood]]:
        """See `logprobs_of`."""
        return logprobs_of(self.llm, texts)

    def continuations(self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """See `continuations_of`."""
        return continuations_of(self.llm, prompts, asked)

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Make the live model the recipe's merge, whatever it was before.

        Args:
            recipe: what to merge.
            exact: from the models' own weights, even where `engine.deltas` is `int8`.

        Raises:
            MergeError: the recipe could not be turned into weights, or a check shows that the live ones are others.
        """
        started = time.perf_counter()
        if not self.swaps:
            self._replace(recipe)
            return LoadStats(seconds=time.perf_counter() - started, rewritten_share=1.0)
        if self.llm is None or recipe.depth > self._depth:
            self._start_empty(recipe.depth)
        share = self._write(recipe, exact=exact)
        due = self._loads % self.config.canary_every == 0
        if due and (fault := self._fault(recipe, exact=exact)):
            self._give_up_swapping(recipe, fault)
        self._loads += 1
        return LoadStats(seconds=time.perf_counter() - started, rewritten_share=share)

    def close(self) -> None:
        """End the engine and its processes."""
        if self.llm is not None:
            stop(self.llm)
            self.llm = None
            gc.collect()  # its memory, before the next engine asks how much is free

    def _start_empty(self, depth: int) -> None:
        """An engine with arbitrary weights, for candidates of so many layers."""
        self.close()
        self._depth = max(depth, self._depth)
        layers = self.pool.layers
        hops = [Hop(layer=min(t, layers - 1)) for t in range(self._depth)] if self._depth > layers else []
        with self._folder() as folder:
            export_skeleton(self.pool, folder, dtype=self.dtype, path=hops)
            self.llm = self._started(folder, dummy=True)
        (told, *_) = self._told("evomerge_open", self._opening.model_dump_json())
        self.in_place = bool(told["in_place"])
        self._loads = 0

    def _started(self, folder: Path, *, dummy: bool) -> Any:
        return start(folder, self.config, dtype=self.dtype, share=self._gpu, dummy=dummy, apart=not dummy)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        with TemporaryDirectory(prefix="evomerge-vllm-") as scratch:
            yield Path(scratch) / "model"

    def _write(self, recipe: Recipe, *, exact: bool, anew: bool = False) -> float:
        """Weights and nothing else: what was remembered of old ones is dropped.

        Returns:
            Share of the weights that were written.
        """
        (answer, *_) = self._told("evomerge_load", recipe.canonical(), exact, anew)
        if not self.llm.reset_prefix_cache():
            raise MergeError("expected vLLM to drop its cached prefixes; it refused, as if requests were running")
        return float(answer["written"])

    def _told(self, method: str, *arguments: str | bool) -> list[dict[str, Any]]:
        """What every worker of the engine answers.

        Raises:
            MergeError: one of them refused. If it was in the midst of exchanging weights, this engine is lost.
        """
        try:
            answers: list[dict[str, Any]] = self.llm.collective_rpc(method, args=arguments)
        except Exception:  # whatever vLLM may raise
            self.close()
            raise
        if refusals := [answer for answer in answers if "fault" in answer]:
            if not all(refusal["intact"] for refusal in refusals):
                self.close()
            raise MergeError(refusals[0]["fault"])
        return answers

    def _fault(self, recipe: Recipe, *, exact: bool) -> str:
        """How the live weights differ from all of them written anew, or from what an export would hold; else empty."""
        live = answers_of(self.llm, self._texts)
        self._write(recipe, exact=exact, anew=True)
        whole = answers_of(self.llm, self._texts)
        apart, off = distance(live, whole), distance(whole, self._expected(recipe)) if exact else 0.0
        told = f"{apart:.2g} nats per token from the same ones written anew, {off:.2g} from transformers"
        print(f"live weights: {told}")
        return "" if apart <= _SAME and off <= TOLERANCE[self.dtype] else told

    def _give_up_swapping(self, recipe: Recipe, fault: str) -> None:
        """Go on with an engine for each candidate.

        Raises:
            MergeError: other candidates were scored with weights that nobody has checked.
        """
        self.swaps = False
        told = (
            f"vLLM's live weights are not those of the recipe: {fault}; this worker starts an engine for each "
            "candidate from now on, which is slow"
        )
        if self._loads:
            raise MergeError(f"{told}; its last {self.config.canary_every} scores are in doubt")
        print(told)
        self._replace(recipe)

    def _expected(self, recipe: Recipe) -> list[float]:
        with self._folder() as folder:
            self._export(recipe, folder)
            return expected_answers(folder, self._texts, self.dtype)

    def _export(self, recipe: Recipe, folder: Path) -> None:
        plan = lower(recipe, self.pool)
        export_checkpoint(execute(plan, self.pool), self.pool, folder, dtype=recipe.dtype, path=recipe.path)

    def _replace(self, recipe: Recipe) -> None:
        """An engine of its own for one candidate."""
        self.close()
        with self._folder() as folder:
            self._export(recipe, folder)
            self.llm = self._started(folder, dummy=False)


def _is_swappable(config: Mapping[str, Any]) -> bool:
    """Whether weights may be exchanged in a live engine, and any layer may stand at any depth."""
    kinds = {*config.get("layer_types", ())}
    return (config.get("architectures") or [""])[0] in SWAPPABLE and len(kinds) < 2
