"""A transformers model made from a pool's base.

Knows nothing of recipes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.errors import PoolError
from evomerge.merging.depth import model_class
from evomerge.merging.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.merging.pool import ModelPool

__all__ = ["build_live"]


def build_live(pool: ModelPool, device: str, dtype: str) -> tuple[Any, Any, bool]:
    """The base model in the shape and with the tokenizer of the merged one; and whether it is causal.

    Raises:
        PoolError: transformers cannot build it.
    """
    import torch
    from transformers import AutoConfig

    folder = pool.folder(pool.base)
    try:
        config = AutoConfig.for_model(**pool.config)
        kind, causal = model_class(config)
        model = kind.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # embeddings have the rows of the chosen vocabulary
        )
        tokenizer = _tokenizer(pool.tokenizer_folder, needed=causal)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise PoolError(
            f"{folder}: expected a causal language model that the installed transformers knows, with its tokenizer; "
            f"got {type(error).__name__}: {error}; models that bring their own code are not run"
        ) from error
    return model.to(device).eval().requires_grad_(False), tokenizer, causal


def _tokenizer(folder: Path, *, needed: bool) -> Any:
    from transformers import AutoTokenizer

    if not needed and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
