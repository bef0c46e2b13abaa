"""A model that only a server holds; candidates are LoRA adapters that it is told to load by name.

The server speaks OpenAI's interface and what vLLM adds to it: token ids as prompts, log-probabilities of prompts, and
adapters that come and go. Several workers may share one: it answers their candidates in one batch. Knows nothing of
tasks, items or scores.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, TypeVar, final
from weakref import finalize

from evomerge.engines.base import LoadStats, stay_offline
from evomerge.engines.candidate_adapters import require_adapters, served_rank, write_adapter
from evomerge.engines.openai_client import Client, Reply
from evomerge.engines.vllm_backend import VllmBackend
from evomerge.engines.vllm_canary import check_adapters
from evomerge.engines.vllm_engine import VllmWatch
from evomerge.engines.vllm_process import finite
from evomerge.errors import DiskError, MergeError, RunError

if TYPE_CHECKING:
    from evomerge.config import OpenaiConfig
    from evomerge.engines.vllm_process import Likelihood
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import OutputDtype, Recipe

__all__ = ["OpenaiEngine"]

_T = TypeVar("_T")


@final
class OpenaiEngine:
    """A server's model; every `load` gives the server another adapter.

    Example:
        >>> engine = OpenaiEngine(pool, OpenaiConfig(kind="openai", url="http://127.0.0.1:8000"))  # doctest: +SKIP
        >>> engine.load(recipe).rewritten_share  # doctest: +SKIP
        0.0

    Args:
        pool: base and adapters; the server must hold the same base.
        config: address, key, folder.

    Attributes:
        config: the same.
        pool: base and adapters.
        tokenizer: the pool's choice.
        device: who answers, for example `vLLM 0.32.0`.
        dtype: what the server was said to compute in.
        most_tokens: of prompt and answer together.
        watch: time of the server's answers.

    Raises:
        DiskError: adapters cannot be written.
        MergeError: the server refuses an adapter, or ignores it.
        PoolError: an expert is no plain adapter.
        RunError: the server cannot be reached, or is none that can be used.
    """

    def __init__(self, pool: ModelPool, config: OpenaiConfig) -> None:
        stay_offline()
        require_adapters(pool)
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(config.threads)
        self.config, self.pool = config, pool
        self.dtype: OutputDtype = pool.dtype if config.dtype == "pool" else config.dtype
        self._client = Client(config)
        self._base, self.most_tokens = _served(self._client, config.model, pool)
        self.device = f"vLLM {_version(self._client)}"
        self.tokenizer = AutoTokenizer.from_pretrained(
            pool.tokenizer_folder, trust_remote_code=False, local_files_only=True
        )
        self.watch = VllmWatch()
        self._folder = _folder(config.folder)
        self._numbers = count()
        self._loaded: list[str] = []
        self.close = finalize(self, _unload, self._client, self._folder, self._loaded, leave=True)
        check_adapters(self)

    def backend(self, *, chat_template: bool) -> VllmBackend:
        """What benchmarks ask; see `VllmBackend`."""
        return VllmBackend(self, chat_template=chat_template)

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Have the server answer as the recipe's merge, unrounded, from now on.

        Args:
            recipe: a sum of adapters, or the base.
            exact: nothing is approximate here.

        Raises:
            MergeError: the candidate is no adapter, or the server refuses it.
            RunError: the server cannot be reached.
        """
        started = time.perf_counter()
        _unload(self._client, self._folder, self._loaded)
        name = f"{self._folder.name}-{next(self._numbers)}"  # a new one each time: prefixes are cached by name
        if write_adapter(recipe, self.pool, self._folder / name):
            self._announce(name)
        return LoadStats(seconds=time.perf_counter() - started, rewritten_share=0.0)

    def logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[Likelihood]]:
        """How likely each token but the first is, text by text.

        Raises:
            MergeError: the server refuses, or the model computes NaN.
            RunError: the server cannot be reached, or has forgotten the candidate.
        """

        def likelihoods(text: Sequence[int]) -> list[Likelihood]:
            asked = {"prompt": list(text), "prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0}
            found = self._complete(asked)["prompt_logprobs"][1:]
            every = [entry[str(token)] for token, entry in zip(text[1:], found, strict=True)]
            return [(finite(entry["logprob"]), entry["rank"] == 1) for entry in every]

        return self._at_once(likelihoods, texts)

    def continuations(self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Tokens that the model goes on with, prompt by prompt; raises as `logprobs` does."""

        def tokens(prompt: Sequence[int], settings: Mapping[str, Any]) -> list[int]:
            answer = self._complete({**settings, "prompt": list(prompt), "logprobs": 0, "return_token_ids": True})
            for logprob in answer["logprobs"]["token_logprobs"]:
                finite(logprob)
            return [int(token) for token in answer["token_ids"]]

        return self._at_once(tokens, prompts, asked)

    def _at_once(self, question: Callable[..., _T], *arguments: Sequence[Any]) -> list[_T]:
        """Answers in order; after a failure nothing more is asked."""
        with ThreadPoolExecutor(self.config.batch_size) as pool:
            try:
                return list(pool.map(question, *arguments))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise RunError(
                    f"{self.config.url}: expected log-probabilities of prompts and token ids, as vLLM gives them; got "
                    f"something else ({type(error).__name__}: {error}); use vLLM's own server"
                ) from error

    def _complete(self, asked: Mapping[str, Any]) -> Any:
        reply = self._client.ask("/v1/completions", {**asked, "model": (*self._loaded, self._base)[0]})
        if reply.status == 404 and self._loaded:
            raise RunError(
                f"{self.config.url}: the server no longer knows the candidate that it was given ({reply.fault}), as if "
                "it had been started anew; the same command goes on"
            )
        return _accepted(reply, "an answer", self.config.url)["choices"][0]

    def _announce(self, name: str) -> None:
        """Have the server read an adapter."""
        path, rank = self._folder / name, served_rank(self.pool)
        reply = self._client.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        if reply.status in (404, 405) and str(path) not in reply.fault:
            raise RunError(
                f"{self.config.url}: expected a server that loads adapters while it runs; got {reply.fault}; start it "
                "with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
            )
        if reply.status != 200:
            raise MergeError(
                f"{self.config.url}: expected the server to load an adapter from {path}; got {reply.fault}; it must "
                f"see that folder (engine.folder) and be started with --enable-lora --max-lora-rank {rank} or more"
            )
        self._loaded.append(name)


def _served(client: Client, wanted: str | None, pool: ModelPool) -> tuple[str, int]:
    """What the server calls the base, and the most tokens that it takes.

    Raises:
        RunError: it serves no such model, or several.
    """
    cards = _accepted(client.ask("/v1/models"), "a list of models", client.url)
    try:
        bases = {str(card["id"]): card for card in cards["data"] if not card.get("parent")}
    except (LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{client.url}: expected a list of models at /v1/models; got something else") from error
    name = wanted if wanted is not None or len(bases) != 1 else next(iter(bases))
    if name not in bases:
        got = ", ".join(bases) or "none"
        raise RunError(f"{client.url}: expected engine.model to be one of the models that it serves; it serves {got}")
    positions = pool.config.get("max_position_embeddings") or 2048
    return name, int(bases[name].get("max_model_len") or positions)


def _version(client: Client) -> str:
    reply = client.ask("/version")
    return str(reply.data.get("version", "?")) if isinstance(reply.data, dict) and reply.status == 200 else "?"


def _accepted(reply: Reply, expected: str, url: str) -> Any:
    if reply.status != 200:
        raise MergeError(f"{url}: expected {expected}; got {reply.fault}")
    return reply.data


def _folder(parent: Path | None) -> Path:
    """A new folder for adapters, with a name that no other worker has.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix="evomerge-", dir=parent))
    except OSError as error:
        raise DiskError(
            f"{parent}: expected a folder to write adapters in; got {error.strerror or error}; correct engine.folder"
        ) from error
    if parent is not None:
        os.chmod(folder, 0o755)  # the server may run as another user
    return folder


def _unload(client: Client, folder: Path, loaded: list[str], *, leave: bool = False) -> None:
    """Have the server forget adapters. Until then it may read their files again, to make room for others meanwhile."""
    while loaded:
        name = loaded.pop()
        client.tell("/v1/unload_lora_adapter", {"lora_name": name})
        shutil.rmtree(folder / name, ignore_errors=True)
    if leave:
        shutil.rmtree(folder, ignore_errors=True)
