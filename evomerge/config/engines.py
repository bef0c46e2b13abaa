"""What a user may write about the live model that candidates are written into.

Knows nothing of machines: whether a device exists, and whether a model fits it, shows when the engine starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from evomerge.config.base import Finite, Strict

__all__ = ["EngineConfig", "TransformersConfig", "VllmConfig", "transformers_config"]


class _Engine(Strict):
    dtype: Literal["pool", "bfloat16", "float16", "float32"] = "pool"
    """Dtype of weights and arithmetic; `pool` is the models' own."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads per worker."""
    residency: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where base and experts are kept: in the GPU's memory, in page-locked host memory, or in mapped files; `auto`
    takes the first that fits. On a CPU they are mapped."""
    deltas: Literal["exact", "int8"] = "exact"
    """`int8`: the search merges 8-bit task vectors, which take less memory; what is confirmed or exported is exact. For
    operators that add task vectors."""


class TransformersConfig(_Engine):
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


class VllmConfig(_Engine):
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

    @property
    def device(self) -> Literal["auto"]:
        """As transformers would be told."""
        return "auto"


def _kind(given: Any) -> Any:
    return given.get("kind", "transformers") if isinstance(given, dict) else getattr(given, "kind", None)


EngineConfig = Annotated[
    Annotated[TransformersConfig, Tag("transformers")] | Annotated[VllmConfig, Tag("vllm")], Discriminator(_kind)
]


def transformers_config(config: TransformersConfig | VllmConfig) -> TransformersConfig:
    """Settings for a transformers model, where the live one may be another engine's."""
    if isinstance(config, TransformersConfig):
        return config
    return TransformersConfig(dtype=config.dtype, threads=config.threads)
