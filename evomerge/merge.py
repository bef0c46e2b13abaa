"""One merge without a search: from a mergekit configuration, or a recipe that an export wrote, to a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from evomerge.config import CalibrationConfig, TransformersConfig
from evomerge.engines.calibration import calibrate
from evomerge.errors import ConfigError, Fault, require
from evomerge.merging.calibrated import Calibration, calibrated
from evomerge.merging.lora import is_adapter
from evomerge.merging.moments import require_moments
from evomerge.merging.pool import BASE, ModelPool
from evomerge.merging.vocabulary import mergekit_differences
from evomerge.recipe import Recipe
from evomerge.recipe.mergekit_read import read_mergekit
from evomerge.recipe.mergekit_yaml import to_mergekit
from evomerge.workers.candidate import quiet

__all__ = ["merge", "mergekit_text", "read_recipe", "write_merge"]

_MERGEKIT_FILE = "mergekit_config.yml"
_RECIPE_FILE = "recipe.json"

RecipeOf = Callable[[ModelPool], Recipe]


def merge(
    file: Path,
    out: Path,
    folders: Mapping[str, Path],
    tokenizer: str | None = None,
    *,
    calibration: CalibrationConfig | None = None,
    adapter: bool = False,
) -> Path:
    """Merge what a file says.

    Example:
        >>> merge(Path("ties.yml"), Path("merged"), {})  # doctest: +SKIP

    Args:
        file: a mergekit YAML, whose paths count from the current folder; or the `recipe.json` of an export.
        out: the new folder.
        folders: where models lie, by pool name (`base` is the base). A recipe names models only, so it needs all of
            them; a YAML needs those that it calls by a name of the hub.
        tokenizer: pool name of the model whose tokenizer the merged model takes; None: what a YAML says of it, or else
            all models must have the same.
        calibration: texts, for a recipe with `omega` or with transforms that ask for some.
        adapter: write a LoRA adapter on the base instead of a full model.

    Returns:
        The new folder.

    Raises:
        ConfigError: the file cannot be read or expressed, a model has no folder, or none of the texts that this merge
            needs, or an adapter cannot hold it.
        PoolError: the models cannot be merged with each other, or lack second moments that a transform needs.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    written, chosen, recipe_of = _read(file)
    models = {**written, **folders}
    if faults := [*_folder_faults(models), *_strangers(written, folders)]:
        raise ConfigError(str(file), faults)
    found = {name: folder for name, folder in models.items() if folder is not None}
    experts = {name: folder for name, folder in found.items() if name != BASE}
    pool = ModelPool.open(found[BASE], experts, tokenizer=tokenizer or chosen)
    recipe = recipe_of(pool)
    if calibration is not None:
        pool = calibrated(pool, _texts(pool, calibration, file))
    if faults := _text_faults(recipe, pool):
        raise ConfigError(str(file), faults)
    if "moments" in recipe.needs:
        require_moments(pool)
    with quiet(None):
        calibrate(pool, recipe.needs, TransformersConfig())
    write_merge(recipe, pool, out, adapter=adapter)
    return out


def _texts(pool: ModelPool, calibration: CalibrationConfig, file: Path) -> Calibration:
    texts = calibration.texts(pool.names)
    if strangers := sorted(texts.keys() - {*pool.names}):
        message = f"expected calibration texts for {', '.join(pool.names)}"
        raise ConfigError(str(file), [Fault(path=name, message=f"{message}; got {name!r}") for name in strangers])
    return Calibration.read(texts, calibration.tokens)


def _text_faults(recipe: Recipe, pool: ModelPool) -> list[Fault]:
    """What the recipe asks of models that have no text."""
    asked = {pool.base} if "importance" in recipe.needs else set()
    asked |= {*pool.experts} if recipe.needs & {"grams", "fisher"} else set()
    texts = {} if pool.calibration is None else pool.calibration.texts
    message = "expected a text that this model can be run over; got none; give it with --calibration FILE"
    return [Fault(path=name, message=message) for name in sorted(asked - texts.keys())]


def write_merge(recipe: Recipe, pool: ModelPool, out: Path, card: str | None = None, *, adapter: bool = False) -> None:
    """Write a recipe's model as a Hugging Face folder, with the recipe beside it in both forms.

    Args:
        recipe: what to merge.
        pool: the models that it names.
        out: the new folder.
        card: the model card, if there is one.
        adapter: write a LoRA adapter on the base instead of a full model.

    Raises:
        ConfigError: an adapter is asked for that cannot hold this merge.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    require("torch", "merge")
    from evomerge.merging.adapters import export_adapter
    from evomerge.merging.executor import execute
    from evomerge.merging.export import export_checkpoint
    from evomerge.merging.operators import lower

    plan = lower(recipe, pool)
    files = {
        _MERGEKIT_FILE: mergekit_text(recipe, pool, {name: str(pool.folder(name)) for name in pool.names}),
        _RECIPE_FILE: json.dumps(recipe.to_data(), indent=1) + "\n",
    }
    files |= {} if card is None else {"README.md": card}
    if adapter:
        export_adapter(plan, pool, out, extra_files=files)
    else:
        export_checkpoint(execute(plan, pool), pool, out, dtype=recipe.dtype, path=recipe.path, extra_files=files)


def mergekit_text(recipe: Recipe, pool: ModelPool, paths: Mapping[str, str]) -> str:
    """A recipe over a pool as a mergekit configuration, with comments on what that tool does otherwise.

    Args:
        recipe: what to merge.
        pool: the models that it names.
        paths: what to call each of them; an adapter is then called `base+adapter`, as mergekit has it.
    """
    adapted = {name: f"{paths[pool.base]}+{paths[name]}" for name in pool.experts if is_adapter(pool.folder(name))}
    paths = {**paths, **adapted}
    if not pool.changes_tokenizers:
        return to_mergekit(recipe, paths, pool.specs)
    notes = mergekit_differences(pool.models, pool.tokenizer, pool.base, recipe.models, recipe.base)
    return to_mergekit(recipe, paths, pool.specs, tokenizer=pool.tokenizer, notes=notes)


def _read(file: Path) -> tuple[Mapping[str, Path | None], str | None, RecipeOf]:
    """The folders that a file gives by pool name, whose tokenizer it chooses, and how it becomes a recipe."""
    if file.suffix == ".json":
        recipe = read_recipe(file)
        return dict.fromkeys((BASE, *recipe.models)), None, lambda pool: recipe
    config = read_mergekit(_text(file), str(file))
    folders = {name: Path(path).expanduser() for name, path in config.models.items()}
    return folders, config.tokenizer, lambda pool: config.recipe(pool.specs, dtype=pool.dtype)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [Fault(path="$", message=f"cannot be read: {error}")]) from error


def read_recipe(file: Path) -> Recipe:
    """The recipe that an export wrote.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    text = _text(file)
    try:
        return Recipe.from_data(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"expected a recipe as `evomerge export` writes it; got {type(error).__name__}: {error}"
        raise ConfigError(str(file), [Fault(path="$", message=message)]) from error


def _folder_faults(models: Mapping[str, Path | None]) -> list[Fault]:
    faults = []
    for name, folder in models.items():
        if folder is None or not folder.is_dir():
            got = "got none" if folder is None else f"nothing at {folder}"
            option = "--base FOLDER" if name == BASE else f"--expert {name}=FOLDER"
            faults.append(Fault(path=name, message=f"expected a model folder; {got}; give it with {option}"))
    return faults


def _strangers(written: Mapping[str, Path | None], folders: Mapping[str, Path]) -> list[Fault]:
    message = f"the file knows no such model; it has {', '.join(written)}"
    return [Fault(path=name, message=message) for name in folders if name not in written]
