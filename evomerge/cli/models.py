"""Commands about models: looking at a pool, merging once, writing a candidate of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli import completion
from evomerge.cli.options import (
    AdapterOption,
    CandidateOption,
    ExpertOption,
    RunArgument,
    TokenizerOption,
    load,
    named_paths,
    open_console,
)

__all__ = ["export", "merge", "pool"]


def pool(
    experiment: Annotated[
        str | None,
        typer.Argument(metavar="[EXPERIMENT]", help="Whose models to look at.", autocompletion=completion.experiments),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Instead of an experiment: folder of the base model.")] = None,
    expert: Annotated[list[str] | None, ExpertOption] = None,
    tokenizer: TokenizerOption = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write heat maps into an HTML file that opens offline.")
    ] = None,
) -> None:
    """Look at models before merging: how much each changes its base, cosines, sign conflicts, alarms."""
    from evomerge.merging.kinship import kinship
    from evomerge.merging.pool import ModelPool
    from evomerge.pools import open_pool
    from evomerge.reports import print_kinship, write_kinship

    experts = named_paths(expert or [])
    if (base is None or not experts) if experiment is None else (base or experts or tokenizer):
        raise typer.BadParameter("expected an experiment, or --base and --expert", param_hint="EXPERIMENT")
    if base is None:
        models = open_pool(load(str(experiment), None))
    else:
        models = ModelPool.open(base, experts, tokenizer=tokenizer)
    found = kinship(models)
    print_kinship(found, open_console())
    if html is not None:
        typer.echo(write_kinship(found, ", ".join(found.experts), html))


def export(
    run: RunArgument,
    candidate: CandidateOption = "knee",
    out: Annotated[Path | None, typer.Option(help="The new folder; RUN/export/CANDIDATE if left out.")] = None,
    adapter: AdapterOption = False,
) -> None:
    """Write one candidate as a model folder, with model card and mergekit recipe."""
    from evomerge.publish import export as write_model

    typer.echo(
        write_model(run, candidate, out, adapter=adapter, note=lambda line: typer.echo(f"note: {line}", err=True))
    )


def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mergekit YAML, or the recipe.json of an export.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model, where neither file nor run says.")
    ] = None,
    expert: Annotated[list[str] | None, ExpertOption] = None,
    *,
    tokenizer: TokenizerOption = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="A text (.txt, .jsonl) for all models, or for each by name: what omega and some transforms need.",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None, typer.Option(min=1, help="How many tokens of a text are used; as in the run, for the same merge.")
    ] = None,
    adapter: AdapterOption = False,
) -> None:
    """Merge once, without a search: what a mergekit YAML or an exported recipe says.

    A mergekit YAML holds the paths of its models. A recipe.json holds names only: inside its run folder
    (RUN/export/knee/recipe.json) the run knows the models; elsewhere, give --base and each --expert NAME=FOLDER.
    """
    from evomerge.config import CalibrationConfig
    from evomerge.merge import merge as merge_models
    from evomerge.publish import merge_again, run_around

    told = base or expert or tokenizer or calibration
    if file.suffix == ".json" and not told and (run := run_around(file)) is not None:
        typer.echo(merge_again(file, run, out, adapter=adapter))
        return
    folders = ({} if base is None else {"base": base}) | named_paths(expert or [])
    texts = None
    if calibration:
        tokens = {} if calibration_tokens is None else {"tokens": calibration_tokens}
        texts = CalibrationConfig(text=_texts(calibration), **tokens)
    typer.echo(merge_models(file, out, folders, tokenizer, calibration=texts, adapter=adapter))


def _texts(given: list[str]) -> Path | dict[str, Path]:
    if len(given) == 1 and (Path(given[0]).exists() or "=" not in given[0]):
        return Path(given[0])
    return named_paths(given, "--calibration", "FILE")
