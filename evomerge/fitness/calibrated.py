"""One measured metric in a search with few items: everybody's answers, the bank that reads them, and its audit.

Decides when a bank is fitted again. Knows nothing of how items are chosen, nor of objectives' directions.

Legend: N items of a task that scores speak of (its universe); rows `[N]`, NaN where not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.config import Metric
from evomerge.errors import TaskError
from evomerge.fitness.assessment import Check
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    PROMOTED_WEIGHT,
    Audit,
    ItemBank,
    Residuals,
    audit_of,
    dimensions_for,
    fit_bank,
)
from evomerge.fitness.items import ItemSplit
from evomerge.rng import stream

__all__ = ["CalibratedMetric", "calibrated", "universe"]

_GROWTH = 1.25
"""A bank is fitted again when it could hold this many times the full rows: a fit costs more and changes less each
time."""


def universe(split: ItemSplit, task: str, size: int, seed: int, banks: Sequence[ItemBank] = ()) -> tuple[int, ...]:
    """The items that scores on a task speak of, sorted: as many as `size` of the search's, which all banks hold.

    Raises:
        TaskError: banks that share fewer than 2 of the search's items.
    """
    pool = split.pool[task]
    for bank in banks:
        pool = tuple(sorted(set(pool).intersection(bank.items)))
    if banks and len(pool) < 2:
        raise TaskError(
            f"task {task!r}: expected an item bank with at least 2 of the search's {len(split.pool[task])} items; got "
            f"{len(pool)}; fit the bank on more items of this task"
        )
    drawn = stream(seed, "universe", task).choice(pool, min(size, len(pool)), replace=False)
    return tuple(sorted(drawn.tolist()))


@dataclass(kw_only=True, slots=True, eq=False)
class CalibratedMetric:
    """Every candidate's row, and the bank that reads them.

    Attributes:
        config: what is measured.
        items: the universe.
        digest: content digest of the task.
        bank: None before anything was answered.
        calibration: responses from outside that the bank is fitted to beside the rows `[M, N]`; None if it came without
            any, and then stays as it is.
        rows: by candidate.
        checks: what the audit said, by generation.
    """

    config: Metric
    items: tuple[int, ...]
    digest: str
    bank: ItemBank | None
    calibration: Floats | None
    rows: dict[int, Floats] = field(default_factory=dict)
    checks: dict[int, Check] = field(default_factory=dict)
    _fitted: int = 0
    _residuals: dict[int, Residuals] = field(default_factory=dict)

    def stacked(self, candidates: Sequence[int]) -> Floats:
        """Their rows `[M, N]`; empty ones for those that answered nothing."""
        nothing = np.full(len(self.items), np.nan)
        return np.stack([self.rows.get(i, nothing) for i in candidates])

    def learn(self, candidate: int, answers: Mapping[int, float]) -> None:
        """Keep all that a candidate has answered, by item."""
        self.rows[candidate] = np.array([answers.get(item, np.nan) for item in self.items])

    def refit(self, generation: int) -> None:
        """Fit the bank if that is due: to what is known from outside and to all rows, from the last fit on.

        Raises:
            TaskError: scores outside of [0, 1] under a bank of probabilities that cannot be fitted again.
        """
        full = sum(not np.isnan(row).any() for row in self.rows.values())
        if not self.rows or not self._due(full):
            return
        if self.calibration is None:
            raise TaskError(
                f"task {self.config.task!r}: expected scores in [0, 1], as the item bank holds; got others of "
                f"{self.config.metric!r}; fit a bank that keeps its responses"
            )
        if self._residuals and (audit := audit_of([*self._residuals.values()])).flagged:
            self.checks[generation] = Check(z=audit.z, remedy="refit")
        self._residuals.clear()
        self._fitted, self.bank = full, self._fit(self.calibration)

    def audit(self, generation: int, residuals: Residuals) -> Audit:
        """What all candidates since the last fit say of the bank; a single generation seldom settles it.

        Args:
            generation: the candidates' own.
            residuals: of this generation's candidates.
        """
        self._residuals[generation] = residuals
        audit = audit_of([*self._residuals.values()])
        if generation not in self.checks or self.checks[generation].remedy != "refit":
            self.checks[generation] = Check(z=audit.z, remedy=audit.remedy(promoted=0))
        return audit

    def _due(self, full: int) -> bool:
        if self.bank is None:
            return True
        if self.bank.link == "logistic" and any(((row < 0.0) | (row > 1.0)).any() for row in self.rows.values()):
            return True
        if self.calibration is None or full == self._fitted:
            return False
        flagged = bool(self._residuals) and audit_of([*self._residuals.values()]).flagged
        return flagged or full >= _GROWTH * self._fitted

    def _fit(self, calibration: Floats) -> ItemBank:
        """Without responses from outside, dimensions follow full rows: few chosen answers do not tell them apart."""
        own = np.stack(list(self.rows.values()))
        full = ~np.isnan(own).any(axis=1)
        outside = len(calibration)
        weights = np.where(full, PROMOTED_WEIGHT if outside else 1.0, 1.0)
        return fit_bank(
            np.concatenate([calibration, own]),
            task=self.config.task,
            metric=self.config.metric,
            items=self.items,
            digest=self.digest,
            weights=np.concatenate([np.ones(outside), weights]),
            dimensions=None if outside else dimensions_for(int(full.sum())),
            start=self.bank,
        )


def calibrated(
    measured: Sequence[Metric],
    split: ItemSplit,
    *,
    size: int,
    digests: Mapping[str, str],
    banks: Sequence[ItemBank],
    seed: int,
) -> list[CalibratedMetric]:
    """Each metric with its universe, and its bank if there is one.

    Args:
        measured: all that objectives and constraints read.
        split: what may be asked.
        size: most items of a universe.
        digests: content digest of every task.
        banks: at most one per task and metric; all others are calibrated on the fly.
        seed: run seed.

    Raises:
        TaskError: a bank that belongs to nothing measured, two of one metric, or one of other items and prompts.
    """
    by_metric = _by_metric(banks, measured)
    for bank in banks:
        bank.check(bank.task, digests[bank.task])
    items = {task: universe(split, task, size, seed, [b for b in banks if b.task == task]) for task in split.pool}
    found = []
    for config in measured:
        given = by_metric.get((config.task, config.metric))
        narrowed = None if given is None else given.narrowed(items[config.task])
        found.append(
            CalibratedMetric(
                config=config,
                items=items[config.task],
                digest=digests[config.task],
                bank=narrowed,
                calibration=np.empty((0, len(items[config.task]))) if narrowed is None else narrowed.responses,
            )
        )
    return found


def _by_metric(banks: Sequence[ItemBank], measured: Sequence[Metric]) -> dict[tuple[str, str], ItemBank]:
    wanted = sorted({(config.task, config.metric) for config in measured})
    found: dict[tuple[str, str], ItemBank] = {}
    for bank in banks:
        key = (bank.task, bank.metric)
        if key not in wanted:
            raise TaskError(
                f"estimator.banks: expected banks of {', '.join(f'{t} ({m})' for t, m in wanted)}; got one of "
                f"{bank.task!r} ({bank.metric}); leave it out"
            )
        if key in found:
            raise TaskError(f"estimator.banks: expected one bank of {bank.task!r} ({bank.metric}); got two; keep one")
        found[key] = bank
    return found
