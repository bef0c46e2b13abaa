"""Response matrices for the fitness benchmark: real ones where a folder has them, else a simulator of the same shape.

A folder holds `oll_gsm8k.npz` and `oll_arc.npz`, each with `responses` (0/1, models x items) and `models` (hub names).
Merges are recognised by their names (of the models in both files, 470 of 2717, mixtures of experts among them); the
pseudo-parents of a merge are the two other models that agree with it most on the *other* benchmark.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.design import Places

__all__ = ["Merges", "Stress", "folder", "merges_of", "simulated_merges", "simulated_stress", "stress_of"]

TESTS = 250
PROMOTED = 20
MERGED = re.compile(
    r"slerp|ties|dare|merg|frank|breadcrumb|linear|soup|blend|task.?arith|stock|passthrough|fusion|moe|mix(?!tral)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Merges:
    """Test merges, and calibrators that hold no merge.

    Attributes:
        calibrators: `[M, N]`.
        tests: `[250, N]`.
        parents: for each test, the rows of its parents among the calibrators `[250, 2]`.
    """

    calibrators: Floats
    tests: Floats
    parents: Places


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stress:
    """Calibrators that score below one half, and candidates above 65 %, some of which may be promoted."""

    calibrators: Floats
    strong: Floats

    def split(self, seed: int) -> tuple[Floats, Floats]:
        """Test candidates and promoted ones, which share none."""
        order = np.random.default_rng(seed).permutation(len(self.strong))
        return self.strong[order[:TESTS]], self.strong[order[TESTS : TESTS + PROMOTED]]


def folder() -> Path | None:
    """Where the real matrices are: `EVOMERGE_RESPONSES`, or beside the repository; None if nowhere."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "responses"
    place = Path(os.environ.get("EVOMERGE_RESPONSES", beside))
    return place if (place / "oll_gsm8k.npz").exists() and (place / "oll_arc.npz").exists() else None


def _read(path: Path) -> tuple[Floats, dict[str, int]]:
    with np.load(path, allow_pickle=False) as file:
        return file["responses"].astype(np.float64), {str(name): row for row, name in enumerate(file["models"])}


def merges_of(place: Path, benchmark: str) -> Merges:
    """The test merges of `gsm8k` or `arc`; one split, drawn once."""
    target, rows = _read(place / f"oll_{benchmark}.npz")
    other, other_rows = _read(place / f"oll_{'arc' if benchmark == 'gsm8k' else 'gsm8k'}.npz")
    names = sorted(set(rows) & set(other_rows))
    target, other = target[[rows[name] for name in names]], other[[other_rows[name] for name in names]]
    merged = np.array([bool(MERGED.search(name)) for name in names])
    tests = np.random.default_rng(0).permutation(np.flatnonzero(merged))[:TESTS]
    agreement = other[tests] @ other[~merged].T + (1 - other[tests]) @ (1 - other[~merged]).T
    parents = np.argsort(-agreement, axis=1, kind="stable")[:, :2]
    return Merges(calibrators=target[~merged], tests=target[tests], parents=parents)


def stress_of(place: Path) -> Stress:
    """Weak calibrators and strong candidates on GSM8K, of all models."""
    responses, _ = _read(place / "oll_gsm8k.npz")
    score = responses.mean(axis=1)
    return Stress(calibrators=responses[score < 0.5], strong=responses[score > 0.65])


def _simulate(rng: np.random.Generator, theta: Floats, items: int) -> Floats:
    """Right-or-wrong answers; slopes and difficulties spread as fits of the real matrices are."""
    slopes = rng.normal(0.0, 0.9, (items, theta.shape[1]))
    slopes[:, 0] = rng.lognormal(0.7, 0.4, items)
    eta = theta @ slopes.T - rng.normal(0.4, 1.9, items)
    return (rng.random(eta.shape) < 1.0 / (1.0 + np.exp(-eta))).astype(np.float64)


def simulated_merges(items: int) -> Merges:
    """Children of pairs of similar calibrators: their mean, with heavy-tailed distance."""
    rng = np.random.default_rng(0)
    calibrators = rng.normal(0.0, (1.1, 0.6, 0.5, 0.5, 0.5), (2300, 5))
    first = rng.integers(len(calibrators), size=TESTS)
    second = np.argsort(((calibrators[first][:, None] - calibrators) ** 2).sum(axis=2), axis=1)[:, 3]
    parents = np.stack([first, second], axis=1)
    away = 0.25 * rng.standard_normal((TESTS, 5)) / np.sqrt(rng.chisquare(3, (TESTS, 1)) / 3)
    answers = _simulate(rng, np.concatenate([calibrators, calibrators[parents].mean(axis=1) + away]), items)
    return Merges(calibrators=answers[: len(calibrators)], tests=answers[len(calibrators) :], parents=parents)


def simulated_stress(items: int) -> Stress:
    """As `stress_of`, from the simulator."""
    rng = np.random.default_rng(1)
    answers = _simulate(rng, rng.normal(0.0, (1.1, 0.6, 0.5, 0.5, 0.5), (4500, 5)), items)
    score = answers.mean(axis=1)
    return Stress(calibrators=answers[score < 0.5], strong=answers[score > 0.65])
