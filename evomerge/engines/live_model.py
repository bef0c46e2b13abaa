"""A transformers model made from a pool's base, and which of its parameters is which of the pool's tensors.

Knows nothing of recipes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evomerge.errors import PoolError
from evomerge.merging.depth import model_class
from evomerge.merging.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from evomerge.merging.pool import ModelPool

__all__ = ["build_live", "live_parameters"]


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


def live_parameters(model: Any, pool: ModelPool) -> Mapping[str, torch.nn.Parameter]:
    """The live parameter of every tensor in the pool.

    Raises:
        PoolError: a tensor without a parameter, a parameter without a tensor, or two different shapes.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    specs = {spec.name: spec for spec in pool.specs}
    live |= {stored: live[name] for stored, name in _renamed(model, specs.keys() - live.keys()) if name in live}
    faults = [f"tensor {name}: the model has no such parameter" for name in specs.keys() - live.keys()]
    for name in specs.keys() & live.keys():
        if tuple(live[name].shape) != specs[name].shape:
            faults.append(f"tensor {name}: shape {list(specs[name].shape)}, but {list(live[name].shape)} in the model")
    covered = {id(live[name]) for name in specs.keys() & live.keys()}  # tied parameters are one object
    faults += [f"parameter {name}: no such tensor" for name in live if id(live[name]) not in covered]
    if faults:
        raise PoolError(
            f"{pool.folder(pool.base)}: its weights do not fit the model that its config.json describes\n  "
            + "\n  ".join(sorted(faults))
        )
    return {name: live[name] for name in specs}


def _renamed(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Stored names of tensors, and those of the parameters that transformers reads them into.

    transformers 5 gave the parameters of some architectures other names than their files have.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 keeps the names
        return
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    weights = model.state_dict()
    for name in stored:
        yield name, rename_source_key(name, rules, [], model.base_model_prefix, weights)[0]
