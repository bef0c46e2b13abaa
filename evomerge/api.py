"""evomerge from Python: run an experiment, open a run, take a candidate.

Example:
    ::

        import evomerge

        run = evomerge.run("mine.yaml", changes=["budget.evaluations=100"])
        print(run.verdict.headline)
        for candidate in run.front:
            print(candidate.name, candidate.confirmed or candidate.estimated)
        folder = run.export("knee")

Everything here is a view of what the command line works with; a run that one of them began, the other can go on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config import Experiment, load_experiment, recorded_experiment, shipped_names
from evomerge.errors import StoreError
from evomerge.reports import Summary, Verdict, summarize, verdict, write_report
from evomerge.reports.summary import Entry, Scores
from evomerge.runs import RunStore
from evomerge.search import Progress

__all__ = ["Run", "open_run", "resolve", "run"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Run:
    """A run as it was when it was opened: open it again to see what has come since.

    Attributes:
        folder: the run folder.
        summary: all that reports know: every candidate, objectives, failures, cost.
    """

    folder: Path
    summary: Summary

    def __repr__(self) -> str:
        """One line, whatever the size of the run."""
        kind = "confirmed" if self.finished else "estimated"
        counts = f"{len(self.summary.entries)} candidates, {len(self.front)} on the {kind} front"
        return f"<Run {self.folder}: {self.summary.state}, {counts}>"

    @property
    def finished(self) -> bool:
        """Whether the finalists were confirmed on items that the search never saw."""
        return self.summary.confirmation is not None

    @property
    def verdict(self) -> Verdict:
        """What was found, and whether to believe it: `kind`, `headline`, `detail`."""
        return verdict(self.summary)

    @property
    def front(self) -> tuple[Entry, ...]:
        """The Pareto front: confirmed once the run has finished, estimated until then."""
        source = self.summary.confirmation or self.summary
        return tuple(self.summary.entries[candidate] for candidate in source.front)

    def candidate(self, choice: str | int = "knee") -> Entry:
        """One candidate, with its recipe and scores.

        Args:
            choice: `knee`, `best:OBJECTIVE`, an anchor (`base`, `uniform`, an expert) or a number.

        Raises:
            StoreError: there is no such candidate.
        """
        return self.summary.entries[self.summary.pick(str(choice))]

    def table(self) -> list[dict[str, Any]]:
        """A row for each scored candidate, anchors included, as `pandas.DataFrame` takes them.

        `status` says whether the numbers are `confirmed` or `estimated`; `mean` is the weighted mean of the objectives,
        of which higher is better.
        """
        objectives = [objective.name for objective in self.summary.objectives]
        return [
            {"candidate": entry.id, "name": entry.name, "kind": entry.kind, "status": status, "mean": scores.mean.mean}
            | {name: measure.mean for name, measure in zip(objectives, scores.each, strict=True)}
            for entry in self.summary.entries.values()
            for status, scores in _scores(entry)
        ]

    def report(self, out: Path | str | None = None) -> Path:
        """Write the HTML report; into the run folder if `out` is left out.

        Raises:
            MissingExtraError: Jinja2 is not installed.
        """
        return write_report(self.summary, self.folder / "report.html" if out is None else Path(out))

    def export(self, choice: str | int = "knee", out: Path | str | None = None, *, adapter: bool = False) -> Path:
        """Write one candidate as a Hugging Face folder, or as an adapter on the base; see `evomerge.publish.export`."""
        from evomerge.publish import export

        return export(self.folder, str(choice), None if out is None else Path(out), adapter=adapter)


def _scores(entry: Entry) -> list[tuple[str, Scores]]:
    """The better of what is known, if anything is."""
    if entry.confirmed is not None:
        return [("confirmed", entry.confirmed)]
    return [] if entry.estimated is None else [("estimated", entry.estimated)]


def open_run(folder: Path | str) -> Run:
    """A run folder, of a running, stopped or finished run. Needs no torch.

    Raises:
        StoreError: it is no run folder, or cannot be read.
    """
    with RunStore.read(Path(folder)) as store:
        return Run(folder=Path(folder), summary=summarize(store))


def run(
    experiment: Experiment | Path | str,
    folder: Path | str | None = None,
    changes: Sequence[str] = (),
    *,
    watch: Callable[[Progress], object] = lambda _: None,
) -> Run:
    """Run an experiment to its end, or go on with the run that is in the folder.

    An interrupt loses nothing that was scored: the same call goes on. With `executor: {kind: serial}` everything
    happens in this process.

    Args:
        experiment: an experiment file, a shipped name, a run folder, or what `load_experiment` gave.
        folder: the run folder; `runs/NAME` if left out.
        changes: as `--set` on the command line, for example `budget.evaluations=100`.
        watch: called after each settled candidate; `print` will do.

    Raises:
        EvomergeError: see `evomerge.errors`; the folder is left whole.
    """
    from evomerge.launch import launch
    from evomerge.stopping import Stop

    place, config = resolve(experiment, None if folder is None else Path(folder), changes)
    with closing(launch(config, place, Stop())) as steps:
        for progress in steps:
            watch(progress)
    return open_run(place)


def resolve(
    experiment: Experiment | Path | str, folder: Path | None, changes: Sequence[str] = ()
) -> tuple[Path, Experiment]:
    """The run folder and the experiment that a user means; see `run`.

    Raises:
        ConfigError: any fault in the experiment or the changes.
        StoreError: a run folder that cannot be read, or a folder without a run.
    """
    if isinstance(experiment, Experiment):
        config = recorded_experiment(experiment.model_dump(mode="json"), experiment.name, changes)
    elif folder is None and RunStore.exists(Path(experiment)):
        with RunStore.read(Path(experiment)) as store:
            return Path(experiment), recorded_experiment(store.experiment, str(experiment), changes)
    elif folder is None and Path(experiment).is_dir() and str(experiment) not in shipped_names("experiments"):
        raise StoreError(
            f"{experiment}: expected a run folder, an experiment file or a shipped name; got a folder without a run"
        )
    else:
        config = load_experiment(str(experiment), changes)
    return folder or Path("runs") / config.name, config
