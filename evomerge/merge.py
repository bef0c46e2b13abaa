"""One merge without a search: from a mergekit configuration, or a recipe that an export wrote, to a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from evomerge.errors import ConfigError, Fault, require
from evomerge.merging.pool import BASE, ModelPool
from evomerge.recipe import Recipe
from evomerge.recipe.mergekit_read import read_mergekit
from evomerge.recipe.mergekit_yaml import to_mergekit

__all__ = ["merge", "write_merge"]

_MERGEKIT_FILE = "mergekit_config.yml"
_RECIPE_FILE = "recipe.json"

RecipeOf = Callable[[ModelPool], Recipe]


def merge(file: Path, out: Path, folders: Mapping[str, Path]) -> Path:
    """Merge what a file says.

    Example:
        >>> merge(Path("ties.yml"), Path("merged"), {})  # doctest: +SKIP

    Args:
        file: a mergekit YAML, whose paths count from the current folder; or the `recipe.json` of an export.
        out: the new folder.
        folders: where models lie, by pool name (`base` is the base). A recipe names models only, so it needs all of
            them; a YAML needs those that it calls by a name of the hub.

    Returns:
        The new folder.

    Raises:
        ConfigError: the file cannot be read or expressed, or a model has no folder.
        PoolError: the models cannot be merged with each other.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    written, recipe_of = _read(file)
    models = {**written, **folders}
    if faults := [*_folder_faults(models), *_strangers(written, folders)]:
        raise ConfigError(str(file), faults)
    found = {name: folder for name, folder in models.items() if folder is not None}
    pool = ModelPool.open(found[BASE], {name: folder for name, folder in found.items() if name != BASE})
    write_merge(recipe_of(pool), pool, out)
    return out


def write_merge(recipe: Recipe, pool: ModelPool, out: Path, card: str | None = None) -> None:
    """Write a recipe's model as a Hugging Face folder, with the recipe beside it in both forms.

    Args:
        recipe: what to merge.
        pool: the models that it names.
        out: the new folder.
        card: the model card, if there is one.

    Raises:
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    require("torch", "merge")
    from evomerge.merging.executor import execute
    from evomerge.merging.export import export_checkpoint
    from evomerge.merging.operators import lower

    files = {
        _MERGEKIT_FILE: to_mergekit(recipe, {name: str(pool.folder(name)) for name in pool.names}, pool.specs),
        _RECIPE_FILE: json.dumps(recipe.to_data(), indent=1) + "\n",
    }
    files |= {} if card is None else {"README.md": card}
    export_checkpoint(execute(lower(recipe, pool), pool), pool, out, dtype=recipe.dtype, extra_files=files)


def _read(file: Path) -> tuple[Mapping[str, Path | None], RecipeOf]:
    """The folders that a file gives by pool name, and how it becomes a recipe."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [Fault(path="$", message=f"cannot be read: {error}")]) from error
    if file.suffix == ".json":
        recipe = _recipe(file, text)
        return dict.fromkeys((BASE, *recipe.models)), lambda pool: recipe
    config = read_mergekit(text, str(file))
    folders = {name: Path(path).expanduser() for name, path in config.models.items()}
    return folders, lambda pool: config.recipe(pool.specs, dtype=pool.dtype)


def _recipe(file: Path, text: str) -> Recipe:
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
