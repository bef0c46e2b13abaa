"""What a user may write about the live model that candidates are written into.

Knows nothing of machines: whether a device exists, and whether a model fits it, shows when the engine starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from evomerge.config.base import Finite, Strict
from evomerge.secrecy import names_a_secret

__all__ = ["EngineConfig", "OpenaiConfig", "TransformersConfig", "VllmConfig", "transformers_config"]


class _Engine(Strict):
    dtype: Literal["pool", "bfloat16", "float16", "float32"] = "pool"
    """Dtype of weights and arithmetic; `pool` is the models' own."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads per worker."""
    shard_size: Annotated[int, Field(ge=1)] | None = None
    """Items of a candidate that are answered at a time: workers that would fall idle take over shards of what others
    are at. Left out: a candidate's items are one worker's. Part of the run, because padding can flip near-ties."""

    @property
    def serves_adapters(self) -> bool:
        """Whether candidates are LoRA adapters on the live base, instead of weights in its place."""
        return False


class _Merging(_Engine):
    """Settings of those that make weights."""

    residency: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where base and experts are kept: in the GPU's memory, in page-locked host memory, or in mapped files; `auto`
    takes the first that fits. On a CPU they are mapped."""
    deltas: Literal["exact", "int8"] = "exact"
    """`int8`: the search merges 8-bit task vectors, which take less memory; what is confirmed or exported is exact. For
    operators that add task vectors."""


class TransformersConfig(_Merging):
    """A transformers model in the worker's process."""

    kind: Literal["transformers"] = "transformers"
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` takes a GPU if there is one."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Requests per forward pass; fixed, because padding can flip near-ties."""

    @model_validator(mode="after")
    def _a_cpu_maps_models(self) -> Self:
        if self.device == "cpu" and self.residency not in ("auto", "mapped"):
            raise ValueError(f"residency: expected auto or mapped on a CPU; got {self.residency!r}")
        return self


class VllmConfig(_Merging):
    """A vLLM engine, started once per worker; it takes the device that its build of vLLM is for."""

    kind: Literal["vllm"]
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Requests that run at once (vLLM's `max_num_seqs`)."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Most tokens of prompt and answer together; left out: as many as the model has positions. Keys and values of one
    such text must fit the memory."""
    gpu_memory_utilization: Annotated[Finite, Field(gt=0, le=1)] = 0.8
    """Share of a GPU, of the part that the worker may take, for weights, activations, keys and values; what is left
    holds base and experts where `residency` puts them there."""
    kv_cache_gib: Annotated[Finite, Field(gt=0)] | None = None
    """Memory for keys and values; left out: on a GPU what its share leaves, on a CPU 1."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share one model; give the worker as many (`executor.gpus`)."""
    enforce_eager: bool = False
    """Leave out compilation and CUDA graphs: a quicker start, slower answers. A CPU always leaves them out."""
    canary_every: Annotated[int, Field(ge=1)] = 200
    """Candidates between two checks of the live weights against a model built anew; the first one is always checked."""
    candidates: Literal["weights", "adapters"] = "weights"
    """`adapters`: the engine keeps the base, and each candidate is a LoRA adapter on it; nothing is merged. For pools
    of adapters and operators whose merges are adapters, too."""

    @property
    def serves_adapters(self) -> bool:
        """See `_Engine.serves_adapters`."""
        return self.candidates == "adapters"

    @property
    def device(self) -> Literal["auto"]:
        """As transformers would be told."""
        return "auto"


class OpenaiConfig(_Engine):
    """A vLLM server, which holds the base; candidates are LoRA adapters that it is told to load.

    It speaks OpenAI's interface and some additions to it. `dtype` is the one that it was started with.
    """

    kind: Literal["openai"]
    url: str
    """Where it listens, for example `http://127.0.0.1:8000`."""
    model: str | None = None
    """What the server calls the base; left out: the only model that it serves."""
    folder: Path | None = None
    """A folder that the server sees under the same path, for adapters; left out: a temporary one of this machine."""
    api_key: str | None = None
    """The environment variable that holds the key, if the server wants one. The key itself is written nowhere."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Requests of a worker that run at once."""
    timeout_seconds: Annotated[Finite, Field(gt=0)] = 600.0
    """How long one answer may take."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an address such as http://127.0.0.1:8000; got {parts.scheme or 'no scheme'}")
        if parts.username is not None or parts.query or parts.fragment or parts.port == 0:
            raise ValueError("expected scheme, host and path alone; put a key into an environment variable: api_key")
        return url.rstrip("/").removesuffix("/v1")

    @field_validator("folder")
    @classmethod
    def _is_absolute(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_absolute():
            raise ValueError(f"expected an absolute path, the same for the server; got {folder}")
        return folder

    @field_validator("api_key")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not (name.isidentifier() and names_a_secret(name)):
            raise ValueError(
                "expected the name of an environment variable that holds the key, with API_KEY, TOKEN or SECRET in it, "
                "so that its value is kept out of logs; got something else; do not write keys into files"
            )
        return name

    @model_validator(mode="after")
    def _keys_are_not_sent_in_the_clear(self) -> Self:
        parts = urlsplit(self.url)
        if self.api_key is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"url: expected https where a key is sent; got http to {parts.hostname}")
        return self

    @property
    def device(self) -> str:
        """Where the model is."""
        return self.url

    @property
    def deltas(self) -> Literal["exact"]:
        """Nothing is merged."""
        return "exact"

    @property
    def serves_adapters(self) -> bool:
        """See `_Engine.serves_adapters`."""
        return True


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _kind(given: Any) -> Any:
    return given.get("kind", "transformers") if isinstance(given, dict) else getattr(given, "kind", None)


EngineConfig = Annotated[
    Annotated[TransformersConfig, Tag("transformers")]
    | Annotated[VllmConfig, Tag("vllm")]
    | Annotated[OpenaiConfig, Tag("openai")],
    Discriminator(_kind),
]


def transformers_config(config: TransformersConfig | VllmConfig | OpenaiConfig) -> TransformersConfig:
    """Settings for a transformers model, where the live one may be another engine's."""
    if isinstance(config, TransformersConfig):
        return config
    return TransformersConfig(dtype=config.dtype, threads=config.threads)
