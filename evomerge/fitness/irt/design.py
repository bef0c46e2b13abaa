"""Which items a candidate is asked next.

Masks are `[M, N]`, True where an item was (or is to be) asked. Knows nothing of engines, and of responses only what the
posterior holds.

Legend: M candidates, N items, D dimensions; `C` posterior covariance, `w_i = E[p_i (1 - p_i)] / phi_i` information,
`g` gradient of the mean score with respect to ability.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.ability import LACK_OF_FIT, Abilities
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.irt.link import unit_variance

__all__ = [
    "Mask",
    "Places",
    "audit_order",
    "audited",
    "audited_batch",
    "informative",
    "kmeans_anchors",
    "random_items",
    "strata_of",
    "stratified_items",
]

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.int64]]


def random_items(rng: np.random.Generator, items: int, count: int) -> Places:
    """Places of `count` items drawn without replacement, sorted.

    Raises:
        TaskError: more than there are.
    """
    return np.sort(rng.choice(items, _possible(count, items), replace=False))


def strata_of(easiness: Floats, count: int) -> Places:
    """Stratum of each item: equal parts by difficulty, `[N]`.

    Args:
        easiness: mean score of each item `[N]`.
        count: number of strata; fewer if there are fewer items.
    """
    rank = np.argsort(np.argsort(easiness, kind="stable"))
    return np.asarray(rank * min(count, len(easiness)) // len(easiness))


def stratified_items(rng: np.random.Generator, strata: Places, count: int) -> tuple[Places, Floats]:
    """A draw that gives every stratum its share: systematic over the items in order of stratum.

    Returns:
        Places of the items, sorted, and the inclusion probability of every item, `[N]`.

    Raises:
        TaskError: more items than there are.
    """
    size = len(strata)
    _possible(count, size)
    shuffled = rng.permutation(size)
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    at = (np.arange(count) + rng.random()) * (size / count)
    return np.sort(order[np.floor(at).astype(np.int64)]), np.full(size, count / size)


def kmeans_anchors(rng: np.random.Generator, features: Floats, count: int) -> tuple[Places, Floats]:
    """Anchor items (tinyBenchmarks, Polo et al., 2024): the item nearest to each of `count` k-means centres.

    Args:
        rng: for the start.
        features: what items are clustered by `[N, F]`: slopes beside difficulties, or calibrators' responses.
        count: anchors.

    Returns:
        Places of the anchors, and for each the share of items in its cluster; fewer than `count` if items coincide.

    Raises:
        TaskError: more anchors than items.
    """
    centres = _spread_out(rng, features, _possible(count, len(features)))
    for _ in range(50):
        nearest = _distances(features, centres).argmin(axis=1)
        members = nearest == np.arange(len(centres))[:, None]
        filled = members.any(axis=1)
        moved = np.where(filled[:, None], members @ features / np.maximum(members.sum(axis=1), 1)[:, None], centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    distance = _distances(features, centres)
    anchors = distance.argmin(axis=0)
    weights = np.bincount(anchors[distance.argmin(axis=1)], minlength=len(features)) / len(features)
    places = np.flatnonzero(weights)
    return places, weights[places]


def _spread_out(rng: np.random.Generator, features: Floats, count: int) -> Floats:
    """k-means++ start (Arthur and Vassilvitskii, 2007)."""
    chosen = [int(rng.integers(len(features)))]
    closest = _distances(features, features[chosen])[:, 0]
    while len(chosen) < count and closest.sum() > 0:
        chosen.append(int(rng.choice(len(features), p=closest / closest.sum())))
        closest = np.minimum(closest, _distances(features, features[chosen[-1:]])[:, 0])
    return features[chosen]


def _distances(a: Floats, b: Floats) -> Floats:
    """Squared distances `[len(a), len(b)]`; 0 up to rounding is 0."""
    square = (a**2).sum(axis=1)
    found = square[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    return np.where(found > 1e-9 * (1.0 + square[:, None]), found, 0.0)


def _possible(count: int, items: int) -> int:
    if not 0 < count <= items:
        raise TaskError(f"expected between 1 and {items} items to ask; got {count}; ask fewer, or add items")
    return count


def audit_order(rng: np.random.Generator, candidates: int, items: int) -> Places:
    """For each candidate an order of all items, uniform at random, `[M, N]`; its audit stratum is a beginning of it."""
    return np.argsort(rng.random((candidates, items)), axis=1)


def audited(order: Places, count: int) -> Mask:
    """Items of the audit stratum; each is in it with probability `count / N`, whatever else was asked."""
    mask = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :count], True, axis=1)
    return mask


def audited_batch(
    bank: ItemBank, abilities: Abilities, asked: Mask, order: Places, *, total: int, share: float = 0.2
) -> tuple[Mask, int]:
    """Ask up to `total` items in all: a random audit stratum, and the most informative items beside it.

    Args:
        bank: the items.
        abilities: current posterior, the prior before the first batch.
        asked: items asked so far.
        order: `audit_order` of the candidates, the same for all their batches.
        total: items per candidate after this batch.
        share: part of them that is audit.

    Returns:
        Items asked after this batch, and the number of audit items (see `audited`).

    Raises:
        TaskError: `total` is above the number of items.
    """
    count = round(share * _possible(total, len(bank.items)))
    mask = asked | audited(order, count)
    return informative(bank, abilities, mask, np.maximum(total - mask.sum(axis=1), 0)), count


def informative(bank: ItemBank, abilities: Abilities, asked: Mask, count: Places) -> Mask:
    """Add to each candidate the items that tell most about its mean score over all items.

    Greedy c-optimal design (Pronzato and Pazman, 2013): an answer to item i lowers the variance `g' C g` of the mean
    score by `w_i (g' C a_i)^2 / (1 + w_i a_i' C a_i)`, and that of the unasked rest by `phi_i V_i / N^2`. Inside a
    batch `C` is updated for each pick, which needs no responses.

    Args:
        bank: the items.
        abilities: current posterior.
        asked: items asked already `[M, N]`.
        count: how many to add to each candidate `[M]`.

    Returns:
        The mask with the picks added.
    """
    asked, covariance = asked.copy(), abilities.covariance.copy()
    mean, slope = abilities.expected(bank)
    information = slope / (bank.dispersion * LACK_OF_FIT)
    rest = bank.dispersion * unit_variance(bank.link, mean) / len(bank.items) ** 2
    rows = np.arange(len(asked))
    for picked in range(int(count.max(initial=0))):
        rows = rows[count[rows] > picked]
        spread = np.matmul(bank.slopes, covariance[rows])  # C a_i, [rows, N, D]
        gradient = np.where(asked[rows], 0.0, slope[rows]) @ bank.slopes / len(bank.items)
        gained = information[rows] * np.einsum("mnd,md->mn", spread, gradient) ** 2
        gained /= 1.0 + information[rows] * np.einsum("mnd,nd->mn", spread, bank.slopes)
        best = np.where(asked[rows], -np.inf, gained + rest[rows]).argmax(axis=1)
        asked[rows, best] = True
        ca, w = spread[np.arange(len(rows)), best], information[rows, best]
        shrink = w / (1.0 + w * np.einsum("md,md->m", ca, bank.slopes[best]))
        covariance[rows] -= shrink[:, None, None] * ca[:, :, None] * ca[:, None, :]
    return asked
