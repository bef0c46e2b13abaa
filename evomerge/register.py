"""The candidates of a run: recorded before anything costly starts, compared with the record when a run is repeated.

Knows nothing of scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from evomerge.errors import StoreError
from evomerge.evaluator import Unsettled
from evomerge.population import Crossing
from evomerge.recipe import Recipe
from evomerge.runs import Candidate, Kind, RunStore
from evomerge.spaces import Genome, SearchSpace

__all__ = ["Register"]

SAME_GENOME = 1e-9
"""Replayed genes may differ this much from the recorded ones (other CPUs round differently); the record counts."""


class Register:
    """Gives candidates their numbers, and remembers whose children they are.

    Args:
        store: the open run.
        space: decodes genomes.
        live: whether new candidates may be recorded; else the record is only walked through.
    """

    def __init__(self, store: RunStore, space: SearchSpace, *, live: bool) -> None:
        self._store, self._space, self._live = store, space, live
        self._recorded = {(c.kind, c.generation, c.slot): c for c in store.candidates()}
        self._born: dict[Genome, int] = {}
        self._lineage: dict[str, dict[str, object]] = {}

    def of_kind(self, kind: Kind) -> list[Candidate]:
        """Every recorded candidate of a kind."""
        return [candidate for candidate in self._recorded.values() if candidate.kind == kind]

    def anchors(self, recipes: Mapping[str, Recipe]) -> list[Candidate]:
        """The anchors, by label."""
        return self._record("anchor", -1, 0, [(label, None, recipe) for label, recipe in recipes.items()])

    def asked(
        self, generation: int, genomes: Sequence[Genome], lineage: Sequence[Crossing | None], first: int = 0
    ) -> list[Candidate]:
        """What the algorithm proposed.

        Args:
            generation: which generation they belong to.
            genomes: in the order of their slots.
            lineage: where each comes from; empty if the algorithm does not cross.
            first: slot of the first.

        Raises:
            StoreError: other genes are recorded.
            Unsettled: they are not recorded, and may not be.
        """
        entries = [("", genome, self._space.decode(genome)) for genome in genomes]
        candidates = self._record("search", generation, first, entries)
        for genome, candidate in zip(genomes, candidates, strict=True):
            self._born.setdefault(genome, candidate.id)
        for candidate, crossing in zip(candidates, lineage, strict=False):
            if crossing is not None:
                parents = [self._born[crossing.first], self._born[crossing.second]]
                told = {"parents": parents, "split": crossing.split, "share": crossing.share}
                self._lineage[str(candidate.id)] = told
        return candidates

    def finalists(self, number: int, genomes: Sequence[Genome], most: int) -> list[Candidate]:
        """The algorithm's answer as candidates, best first, each recipe once.

        Args:
            number: of the answer, if a run gives more than one as its budget grows.
            genomes: best first.
            most: how many are wanted at most.
        """
        known = {c.recipe.digest: c for c in sorted(self._recorded.values(), key=lambda c: -c.id)}
        distinct: dict[str, tuple[str, Genome, Recipe]] = {}
        for genome in genomes:
            recipe = self._space.decode(genome)
            distinct.setdefault(recipe.digest, ("", genome, recipe))
        wanted = list(distinct.items())[:most]
        found = {digest: known[digest] for digest, _ in wanted if digest in known and known[digest].kind != "answer"}
        fresh = [entry for digest, entry in wanted if digest not in found]
        return [*self._record("answer", number, 0, fresh), *found.values()]

    def note_lineage(self) -> None:
        """Keep who the parents are of those that were crossed."""
        if self._lineage and self._live:
            self._store.set_meta("lineage", json.dumps(self._lineage))

    def _record(
        self, kind: Kind, generation: int, first: int, entries: Sequence[tuple[str, Genome | None, Recipe]]
    ) -> list[Candidate]:
        """Recorded candidates with their label, genome and recipe; recorded first if they are new."""
        candidates: list[Candidate] = []
        new: list[Candidate] = []
        for slot, (label, genome, recipe) in enumerate(entries, first):
            known = self._recorded.get((kind, generation, slot))
            if known is None:
                known = Candidate(
                    id=len(self._recorded) + len(new),
                    kind=kind,
                    label=label,
                    generation=generation,
                    slot=slot,
                    genome=None if genome is None else genome.values,
                    recipe=recipe,
                )
                new.append(known)
            else:
                self._compare(known, genome)
            candidates.append(known)
        if new and not self._live:
            raise Unsettled
        if new:
            self._store.add_candidates(new)
            self._recorded |= {(c.kind, c.generation, c.slot): c for c in new}
        return candidates

    def _compare(self, known: Candidate, genome: Genome | None) -> None:
        if genome is None or known.genome is None:
            return
        worst = max((abs(a - b) for a, b in zip(known.genome, genome.values, strict=False)), default=0.0)
        if len(known.genome) != len(genome.values) or worst > SAME_GENOME:
            raise StoreError(
                f"{self._store.folder}: candidate {known.id} of generation {known.generation} is recorded with other "
                f"genes than the algorithm asks for now (largest difference {worst:.3g}). The versions of cmaes or "
                f"pymoo may have changed since {self._store.meta('versions')}; install those, or start a new run."
            )
