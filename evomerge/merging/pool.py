"""`ModelPool`: the base and its experts, proven fit to be merged, read tensor by tensor through memory maps.

Adapters, other vocabularies and other names of the same tensor are dealt with here: whoever reads a pool sees models of
one shape. Knows nothing of recipes. A pool pickles as its headers and reopens its files on the other side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from evomerge.errors import PoolError
from evomerge.merging.calibrated import Calibration
from evomerge.merging.checkpoint import Checkpoint, Model, TensorInfo
from evomerge.merging.content import Content, scan
from evomerge.merging.digests import change_of, content_of, digest_of, parts_of
from evomerge.merging.homology import (
    Terms,
    carried_by,
    faults_between,
    faults_within,
    saying_whether_tied,
    weights_of,
)
from evomerge.merging.layout import TensorKey, aligned, is_buffer, layout_of
from evomerge.merging.lora import Adapter, is_adapter
from evomerge.merging.variants import variant_tensor
from evomerge.merging.vocabulary import Translated, config_in, translated
from evomerge.recipe import OutputDtype, Role
from evomerge.recipe.transform_table import VARIANT_MARK

if TYPE_CHECKING:
    import torch

__all__ = ["BASE", "ModelPool", "TensorSpec"]

BASE = "base"
"""The pool name of the base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor of the architecture that a pool shares.

    Attributes:
        shape: row-major, the same in every model.
        dtype: torch's name of the dtype that the base stores; an expert may store another.
        role, layer: where it lives (see `layout.classify`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    layer: int | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPool:
    """A base model and experts that were fine-tuned from it.

    Attributes:
        models: the models by pool name, base first.
        specs: every weight, sorted by name. A tied output head is not among them: it is its embedding.
        carried: tensors that every merge takes from the base as they are: constants that its files hold beside the
            weights (masks, position ids), and towers of a multimodal base that an expert lacks.
        layers: number of layers.
        dtype: of the base's weights; the one that takes most bytes, if they differ.
        digest: 32 hexadecimal digits over names, configurations, tokenizers and every byte of the weights.
        contents: of each model, 32 hexadecimal digits over all that decides its tensors in this pool.
        changes: of each model, 32 hexadecimal digits over the files of its weights alone.
        config: content of the merged model's `config.json`, dtype aside.
        tokenizer: pool name of the model whose tokenizer, special tokens and chat template the merged model takes.
        calibration: the texts that models are run over, for what merging asks of their activations and gradients.
    """

    models: Mapping[str, Model]
    specs: tuple[TensorSpec, ...]
    carried: tuple[TensorSpec, ...]
    layers: int
    dtype: OutputDtype
    digest: str
    contents: Mapping[str, str]
    changes: Mapping[str, str]
    config: Mapping[str, Any]
    base: str = BASE
    tokenizer: str = BASE
    calibration: Calibration | None = None

    @classmethod
    def open(cls, base: Path, experts: Mapping[str, Path], *, tokenizer: str | None = None) -> ModelPool:
        """Open models and prove that they can be merged with each other.

        Reads headers, configurations and tokenizers; then every byte once, for the digest and for NaN weights (kept in
        a cache, so that the next opening is quick).

        Example:
            >>> pool = ModelPool.open(Path("llama"), {"math": Path("llama-math"), "code": Path("llama-code")})
            ... # doctest: +SKIP

        Args:
            base: folder of the base model.
            experts: folders of the experts, by pool name: models, or LoRA adapters on the base.
            tokenizer: pool name of the model whose tokenizer the merged model takes; rows of embeddings and output
                heads are then matched by the text of their tokens. None: all models must read and write text alike.

        Raises:
            PoolError: every fault of every model, each with the tensor or file and both values.
        """
        models, faults = _open_all(base, experts)
        if tokenizer not in (None, BASE, *experts):
            faults.append(f"expected a tokenizer of one of the models {[BASE, *experts]}; got {tokenizer!r}")
        elif BASE in models and (tokenizer is None or tokenizer in models):
            faults += _inhomogeneities(models, Terms.of(models, tokenizer))
        contents = _scan_all(models.values(), faults)
        faults += _nonfinite(models, contents)
        if faults:
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            raise PoolError("\n  ".join([f"these models cannot be merged: {count}", *faults]))
        return cls._of(models, contents, tokenizer)

    @classmethod
    def _of(cls, models: Mapping[str, Model], contents: Mapping[Path, Content], tokenizer: str | None) -> ModelPool:
        terms = Terms.of(models, tokenizer)
        parts = {name: parts_of(model, contents) for name, model in models.items()}
        dtype = _majority(weights_of(models[BASE], terms).values())
        chosen = tokenizer or BASE
        config = config_in(models[BASE], models[chosen]) if chosen != BASE else models[BASE].config
        config = saying_whether_tied(config, terms)
        if tokenizer is not None:
            models = translated(models, tokenizer, BASE)
        base = models[BASE]
        keys = layout_of(base.tensors)
        layers = [key.layer for key in keys.values() if key.layer is not None]
        if not layers:
            raise PoolError(
                f"{base.folder}: expected tensors in layers, like 'model.layers.0.mlp.up_proj.weight'; "
                f"got {[*base.tensors][:5]}; this architecture is not known"
            )
        return cls(
            models=models,
            specs=_specs(weights_of(base, terms), keys),
            carried=_specs(carried_by(base, terms), keys),
            layers=1 + max(layers),
            dtype=dtype,
            digest=digest_of(parts, tokenizer),
            contents={name: content_of(name, parts, tokenizer, base=BASE) for name in parts},
            changes={name: change_of(model, contents) for name, model in models.items()},
            config=config,
            tokenizer=chosen,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Every pool name: the base, then the experts in the order they were given."""
        return tuple(self.models)

    @property
    def experts(self) -> tuple[str, ...]:
        """The pool names of the experts, in the order they were given."""
        return tuple(name for name in self.models if name != self.base)

    @property
    def changes_tokenizers(self) -> bool:
        """Whether some model of the pool gets another tokenizer, or other rows for its tokens, than it came with."""
        return self.tokenizer != self.base or any(isinstance(model, Translated) for model in self.models.values())

    @property
    def tokenizer_folder(self) -> Path:
        """Where the merged model's tokenizer lives."""
        return self.models[self.tokenizer].tokenizer_folder

    def tensor(self, model: str, name: str) -> torch.Tensor:
        """One tensor of one model, in the shape of its spec; do not write to it.

        Memory-mapped, in the dtype that this model stores. Made anew by each call where a LoRA adapter changes it (in
        fp32, see `lora`) and where rows move to another vocabulary (in the widest dtype involved, see `vocabulary`).
        A variant such as `math~star:40` is built when it is first asked for (see `variants`).

        Args:
            model: a pool name, or that of a variant.
            name: the name of a spec; of the base, also that of a carried tensor.

        Raises:
            KeyError: no such model or tensor.
        """
        return self.models[model].tensor(name) if model in self.models else variant_tensor(self, model, name)

    def folder(self, model: str) -> Path:
        """Where a model lives.

        Raises:
            KeyError: no such model.
        """
        return self.models[model].folder


def _open_all(base: Path, experts: Mapping[str, Path]) -> tuple[dict[str, Model], list[str]]:
    models: dict[str, Model] = {}
    faults = []
    if BASE in experts:
        faults.append(f"an expert cannot be named {BASE!r}, the name of the base model; rename it")
    if marked := [name for name in experts if VARIANT_MARK in name]:
        faults.append(
            f"expected names of experts without {VARIANT_MARK!r}, which marks variants; got {marked}; rename them"
        )
    try:
        root = Checkpoint.open(base)
        models[BASE] = root
    except (PoolError, OSError) as error:
        root = None
        faults.append(f"{BASE}: {error}")
    for name, folder in experts.items():
        try:
            if name != BASE and (expert := _open_expert(folder, root)) is not None:
                models[name] = expert
        except (PoolError, OSError) as error:
            faults.append(f"{name}: {error}")
    return models, faults


def _open_expert(folder: Path, base: Checkpoint | None) -> Model | None:
    """An expert whose tensors bear the base's names; None for an adapter whose base cannot be read."""
    if is_adapter(folder):
        return None if base is None else Adapter.open(folder, base)
    expert = Checkpoint.open(folder)
    return expert if base is None else expert.renamed(aligned(expert.tensors, base.tensors))


def _inhomogeneities(models: Mapping[str, Model], terms: Terms) -> list[str]:
    faults = [fault for name, model in models.items() for fault in faults_within(name, model, terms)]
    for name, model in models.items():
        if name != BASE:
            faults += faults_between(models[BASE], name, model, terms)
    return faults


def _scan_all(models: Iterable[Model], faults: list[str]) -> dict[Path, Content]:
    files = sorted({file for model in models for file in model.files})
    with ThreadPoolExecutor() as threads:
        running = {file: threads.submit(scan, file) for file in files}
    contents = {}
    for file, future in running.items():
        try:
            contents[file] = future.result()
        except PoolError as error:
            faults.append(str(error))
    return contents


def _nonfinite(models: Mapping[str, Model], contents: Mapping[Path, Content]) -> list[str]:
    return [
        f"{name}: tensor {tensor}: expected finite weights; got {count} NaN or infinite; train or download it again"
        for name, model in models.items()
        for tensor, count in _nonfinite_in(model, contents).items()
    ]


def _nonfinite_in(model: Model, contents: Mapping[Path, Content]) -> dict[str, int]:
    """How many weights are not finite, by the name that the file has for their tensor; constants may be anything."""
    counts = {name: n for file in model.files if file in contents for name, n in contents[file].nonfinite.items()}
    constants = {info.name for info in model.tensors.values() if is_buffer(info.name, info.shape)}
    return {name: count for name, count in counts.items() if name not in constants}


def _specs(tensors: Mapping[str, TensorInfo], keys: Mapping[str, TensorKey]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, shape=tensor.shape, dtype=tensor.dtype, role=keys[name].role, layer=keys[name].layer)
        for name, tensor in sorted(tensors.items())
    )


def _majority(tensors: Iterable[TensorInfo]) -> OutputDtype:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.stop - tensor.start
    return cast("OutputDtype", sizes.most_common(1)[0][0])
