"""Operators that need whole matrices, and see them as maps: what they make of one tensor at a time, in memory.

`mean(S) U V^T` of a matrix `U S V^T` needs no singular value decomposition: with the short side in front, `U V^T` is
the polar factor `Q` and `sum(S) = <Q, matrix>`. On a CPU it comes from the eigenvalues of the matrix times its
transpose, in fp64, several times faster than iterating; on an accelerator, from a Newton-Schulz iteration in fp32,
which is nothing but matrix products. Both give the same to rounding.

Singular values that the rounding of fp32 alone could have made count as zero, and their directions stay as the base
has them: the polar factor would give noise the strength of the signal. They are those up to `2^-23 max(|D|, n |W|)`,
`|.|` Frobenius norms, D the sum of task vectors, W the base's weights, and `n = (rows^-1/2 + columns^-1/2) sum |w_k|`
what a random matrix of rounding errors of W comes to. Knows nothing of models or recipes.

Legend: `X` a matrix `[short, long]`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch

from evomerge.merging.plan import Isotropic

__all__ = ["EPSILON", "flattened", "isotropic", "newton_schulz"]

EPSILON = 2.0**-23
"""Distance between neighbouring numbers of fp32, relative to them."""

_LIFT = (3.4445, -4.7750, 2.0315)
"""`a X + b X X^T X + c (X X^T)^2 X`: triples small singular values, and keeps large ones between 0.6 and 1.2."""
_LIFTS = 14  # from 2^-23 to order one

_POLISH = (15 / 8, -10 / 8, 3 / 8)
"""The same, converging to one cubically."""
_POLISHES = 6


def isotropic(kernel: Isotropic, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Run an `Isotropic`, one matrix after the other along leading axes.

    Args:
        kernel: what to compute.
        inputs: stored values by source, in their shape, of any float dtype, all on one device.

    Returns:
        fp32, in the shape of the inputs.
    """
    base = inputs[kernel.base]
    merged = torch.empty(base.shape, device=base.device)
    for place in itertools.product(*map(range, base.shape[:-2])):
        merged[place] = _isotropic(kernel, {source: values[place] for source, values in inputs.items()})
    return merged


def _isotropic(kernel: Isotropic, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    base = inputs[kernel.base].float()
    change = torch.zeros_like(base)
    for term in kernel.terms:
        change.add_(inputs[term.source].float() - base, alpha=term.weight)
    spread = sum(size**-0.5 for size in base.shape) * sum(abs(term.weight) for term in kernel.terms)
    return torch.add(base, flattened(change, EPSILON * spread * float(base.norm())), alpha=kernel.scale)


def flattened(change: torch.Tensor, noise: float) -> torch.Tensor:
    """A matrix with all its singular values set to their mean, `mean(S) U V^T` (Marczak et al. 2025, eq. 5).

    Args:
        change: fp32, of any shape `[rows, columns]`.
        noise: singular values up to this, or up to 2^-23 of the matrix's Frobenius norm, stay zero.

    Returns:
        fp32, on the same device.
    """
    norm = float(change.norm())
    cut = max(noise, EPSILON * norm)
    if norm <= cut:
        return torch.zeros_like(change)
    wide = change if change.shape[0] <= change.shape[1] else change.T
    found = None if wide.device.type == "cpu" else _by_iteration(wide, cut)
    found = _by_eigenvalues(wide, cut) if found is None else found
    return found if wide is change else found.T


def _by_eigenvalues(change: torch.Tensor, cut: float) -> torch.Tensor:
    wide = change.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    singular = squares.clamp_(min=0).sqrt_()
    kept = singular > cut
    vectors, singular = vectors[:, kept], singular[kept]
    flat: torch.Tensor = vectors * (singular.sum() / len(change) / singular) @ (vectors.T @ wide)
    return flat.float()


def _by_iteration(change: torch.Tensor, cut: float) -> torch.Tensor | None:
    """None where some singular values count as zero, which an iteration cannot tell from small ones."""
    factor = newton_schulz(change)
    stretch = factor @ change.T  # V^T is gone: what is left is symmetric, with the singular values as eigenvalues
    stretch = (stretch + stretch.T) / 2
    total = float(stretch.trace())
    stretch.diagonal().sub_(cut)
    all_count = int(torch.linalg.cholesky_ex(stretch).info) == 0
    return factor * (total / len(change)) if all_count else None


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The polar factor of a matrix of full rank: the nearest one with orthonormal rows.

    A quintic iteration (Jordan et al. 2024) lifts all singular values to order one, then another polishes until rows
    are orthonormal to the rounding of fp32.

    Args:
        matrix: fp32 `[short, long]`, not zero.
    """
    factor: torch.Tensor = matrix / matrix.norm()  # singular values in (0, 1]
    one = torch.eye(len(matrix), device=matrix.device)
    for step in range(_LIFTS + _POLISHES):
        a, b, c = _LIFT if step < _LIFTS else _POLISH
        square = factor @ factor.T
        if float((square - one).norm()) <= EPSILON * math.sqrt(matrix.numel()):
            break
        factor = torch.addmm(factor, torch.addmm(square, square, square, beta=b, alpha=c), factor, beta=a)
    return factor
