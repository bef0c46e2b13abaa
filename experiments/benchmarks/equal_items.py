"""What a search finds for the same number of answers, by how they are spent; on the tiny family of the quickstart.

Three ways, each with the same budget of search items: one fixed random subset, a fresh draw per generation, and chosen
items with a race. What is compared is the hypervolume of the front on items that no search saw.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean, stdev

from table import QUICK, Row

from evomerge.config import load_experiment
from evomerge.launch import launch
from evomerge.pareto import hypervolume
from evomerge.reports import Summary, summarize
from evomerge.runs import RunStore
from evomerge.stopping import Stop

SEEDS = range(2 if QUICK else 10)
ITEMS = 4_000 if QUICK else 16_000
COMMON = ["budget.evaluations=2000", f"budget.items={ITEMS}", "fitness.items.search=24"]
ARMS = {
    "fixed subset": ["fitness.items.draw=fixed"],
    "fresh draws": ["fitness.items.draw=fresh"],
    "irt and race": [
        "fitness.estimator={kind: irt, universe: 96, promote: 1}",
        "fitness.race={kind: open, rounds: 3}",
    ],
}


def run(settings: list[str], seed: int) -> Summary:
    """One search of the quickstart with some settings changed, and its confirmation."""
    experiment = load_experiment("quickstart", ["executor={kind: serial}", *settings, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        for _ in launch(experiment, Path(folder, "run"), Stop()):
            pass
        with RunStore.read(Path(folder, "run")) as store:
            return summarize(store)


def confirmed_front(summary: Summary) -> list[list[float]]:
    """Confirmed scores of the front's members, one for each objective."""
    if summary.confirmation is None:
        raise RuntimeError(f"{summary.name}: expected a confirmed run; got none")
    members = [summary.entries[number].confirmed for number in summary.confirmation.front]
    return [[measure.mean for measure in scores.each] for scores in members if scores is not None]


def confirmed_volume(summary: Summary) -> float:
    """Volume that the confirmed front dominates, from a score of 0 in every objective, as a share of all there is."""
    costs = [[-score for score in row] for row in confirmed_front(summary)]
    return hypervolume(costs, [0.0] * len(summary.objectives))


def equal_items() -> list[Row]:
    """The ways side by side: means over paired seeds, and the paired difference of the last to the first."""
    volumes: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in SEEDS:
        for name, settings in ARMS.items():
            volumes[name].append(confirmed_volume(run([*COMMON, *settings], seed)))
    rows = [
        Row(name=f"hypervolume, {ITEMS:,} items, {name}", target="-", measured=f"{fmean(found):.4f}", met=None)
        for name, found in volumes.items()
    ]
    fixed, *others = ARMS
    for name in others:
        gained = [a - b for a, b in zip(volumes[name], volumes[fixed], strict=True)]
        half = 1.96 * stdev(gained) / len(gained) ** 0.5
        text = f"{fmean(gained):+.4f} +- {half:.4f} over {len(gained)} seeds"
        rows.append(Row(name=f"{name} over {fixed}", target="reported", measured=text, met=None))
    return rows


if __name__ == "__main__":
    from table import conclude

    conclude("equal items", equal_items())
