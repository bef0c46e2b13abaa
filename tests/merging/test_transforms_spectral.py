"""STAR, TSV-M and LoRE against textbook versions in numpy's fp64 singular value decomposition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.transforms import spectral
from evomerge.merging.transforms.spectral import lore, star, tsv_m

Array = npt.NDArray[np.float64]

SHAPES = [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1), (1, 1)]


def taus(rows: int, columns: int, experts: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"e{k}": 1e-3 * torch.randn(rows, columns, generator=generator) for k in range(experts)}


def arrays(deltas: dict[str, torch.Tensor]) -> list[Array]:
    return [delta.double().numpy() for delta in deltas.values()]


def assert_close(made: dict[str, torch.Tensor], wanted: list[Array], tolerance: float = 1e-6) -> None:
    for one, other in zip(made.values(), wanted, strict=True):
        scale = max(1e-3, float(np.abs(other).max()))
        np.testing.assert_allclose(one.double().numpy(), other, rtol=0, atol=tolerance * scale)


def plain_star(tau: Array, percent: float) -> Array:
    u, s, vt = np.linalg.svd(tau, full_matrices=False)
    rank = 1
    while s[:rank].sum() < percent / 100 * s.sum() - 1e-12 * s.sum():
        rank += 1
    return np.asarray((u[:, :rank] * s[:rank] * s.sum() / s[:rank].sum()) @ vt[:rank])


def plain_tsv_m(taus: list[Array], rank: int) -> list[Array]:
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    sides = []
    for side in ([u[:, :rank] for u, _, _ in parts], [vt[:rank].T for _, _, vt in parts]):
        p, _, qt = np.linalg.svd(np.concatenate(side, axis=1), full_matrices=False)
        sides.append(np.split(p @ qt, len(taus), axis=1))
    return [u @ np.diag(s[:rank]) @ v.T for u, (_, s, _), v in zip(sides[0], parts, sides[1], strict=True)]


def plain_lowered(matrix: Array, threshold: float) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u @ np.diag(np.maximum(s - threshold, 0)) @ vt)


def plain_lore(taus: list[Array], share: float) -> list[Array]:
    mean = sum(taus) / len(taus)
    mu = share * max(float(np.linalg.norm(tau - mean, 2)) for tau in taus)
    deltas = [np.zeros_like(tau) for tau in taus]
    for _ in range(2000):
        common = sum(tau - delta for tau, delta in zip(taus, deltas, strict=True)) / len(taus)
        deltas = [plain_lowered(tau - common, mu) for tau in taus]
    return [delta + common / len(taus) for delta in deltas]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [1, 40, 83, 100])
def test_star_is_a_truncated_svd_scaled_to_its_nuclear_norm(shape: tuple[int, int], percent: float) -> None:
    deltas = taus(*shape)
    assert_close(star(deltas, percent), [plain_star(tau, percent) for tau in arrays(deltas)])


def test_star_keeps_the_nuclear_norm_and_cuts_the_rank() -> None:
    (tau,) = taus(20, 30, experts=1).values()
    made = star({"e": tau}, 40)["e"]
    before, after = torch.linalg.svdvals(tau.double()), torch.linalg.svdvals(made)
    assert after.sum() == pytest.approx(float(before.sum()))
    rank = int((after > 1e-6 * after[0]).sum())
    assert before[: rank - 1].sum() < 0.4 * before.sum() <= before[:rank].sum()


def test_star_at_a_hundred_percent_changes_nothing() -> None:
    deltas = taus(12, 8)
    assert_close(star(deltas, 100), arrays(deltas))


def test_star_of_a_deficient_rank_stays_in_its_row_and_column_space() -> None:
    (left,), (right,) = taus(8, 2, experts=1).values(), taus(2, 11, experts=1, seed=1).values()
    low = {"e": left @ right * 1e3}
    assert_close(star(low, 100), arrays(low))
    assert torch.linalg.matrix_rank(star(low, 40)["e"], rtol=1e-6) == 1


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (3, 5)])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_tsv_m_turns_leading_directions_apart(shape: tuple[int, int], experts: int) -> None:
    deltas = taus(*shape, experts=experts)
    assert_close(tsv_m(deltas, 1.0), plain_tsv_m(arrays(deltas), rank=min(shape) // experts))


def test_tsv_m_of_one_expert_keeps_its_share_of_the_rank() -> None:
    deltas = taus(8, 10, experts=1)
    u, s, vt = np.linalg.svd(arrays(deltas)[0])
    assert_close(tsv_m(deltas, 1.0), arrays(deltas))
    assert_close(tsv_m(deltas, 0.5), [u[:, :4] * s[:4] @ vt[:4]])


def test_directions_of_different_experts_do_not_overlap() -> None:
    one, other = tsv_m(taus(10, 14, experts=2), 1.0).values()
    assert float((one.T @ other).abs().max()) < 1e-15
    assert float((one @ other.T).abs().max()) < 1e-15


def test_tsv_m_is_linear_in_the_singular_values() -> None:
    """Weights of experts are weights of their singular values: what makes a transform of the weighted merge."""
    deltas = taus(10, 14, experts=2)
    doubled = tsv_m({"e0": deltas["e0"], "e1": 2 * deltas["e1"]}, 1.0)
    assert_close(doubled, [tau.numpy() for tau in (tsv_m(deltas, 1.0)["e0"], 2 * tsv_m(deltas, 1.0)["e1"])])


def test_tsv_m_of_equal_experts_sums_to_one_of_them_cut_to_its_rank() -> None:
    (tau,) = taus(6, 9, experts=1).values()
    made = tsv_m({"one": tau, "same": tau}, 1.0)
    u, s, vt = np.linalg.svd(tau.double().numpy(), full_matrices=False)
    assert_close(made, [u[:, :3] * s[:3] @ vt[:3] / 2] * 2)


def test_an_unchanged_expert_leaves_the_directions_of_others_alone() -> None:
    deltas = taus(8, 12, experts=2) | {"base": torch.zeros(8, 12)}
    made = tsv_m(deltas, 1.0)
    alone = plain_tsv_m(arrays(taus(8, 12, experts=2)), rank=2)
    assert_close(made, [*alone, np.zeros((8, 12))])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_lore_ends_where_thousands_of_turns_do(shape: tuple[int, int], share: float) -> None:
    deltas = taus(*shape)
    assert_close(lore(deltas, share), plain_lore(arrays(deltas), share), tolerance=0.01)


def low_rank(rows: int, columns: int, experts: int) -> dict[str, torch.Tensor]:
    """Few directions that matter, and many that hardly do: what fine-tuning leaves."""
    generator = torch.Generator().manual_seed(1)
    sizes = 1e-3 * 0.8 ** torch.arange(min(rows, columns))
    made = {}
    for k in range(experts):
        left, right = (torch.linalg.qr(torch.randn(n, len(sizes), generator=generator))[0] for n in (rows, columns))
        made[f"e{k}"] = left * sizes @ right.T
    return made


@pytest.mark.parametrize("share", [1e-20, 1e-4, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_lore_by_leading_directions_is_lore(share: float, scale: float) -> None:
    """Where it ends is a fixed point of whole turns in fp64, whatever the way there."""
    deltas = {name: scale * delta for name, delta in low_rank(40, 60, experts=4).items()}
    made = arrays(lore(deltas, share))
    taus = arrays(deltas)
    common, own = plain_parts(dict(zip(deltas, map(torch.from_numpy, made), strict=True)), deltas)
    mu = share * max(float(np.linalg.norm(tau - np.mean(taus, axis=0), 2)) for tau in taus)
    turned = np.mean([tau - plain_lowered(tau - common, mu) for tau in taus], axis=0)
    assert np.linalg.norm(turned - common) <= 2e-3 * np.linalg.norm(common)
    for one, tau in zip(own, taus, strict=True):
        wanted = plain_lowered(tau - common, mu)
        assert np.linalg.norm(one - wanted) <= 5e-3 * np.linalg.norm(tau)


def test_leading_directions_save_nearly_all_turns_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    whole = spectral._lowered

    def counted(matrix: torch.Tensor, threshold: float) -> torch.Tensor:
        turns.append(matrix)
        return whole(matrix, threshold)

    monkeypatch.setattr(spectral, "_lowered", counted)
    lore(low_rank(40, 60, experts=3), 0.05)
    assert len(turns) <= 3 * 2


def test_lore_lowers_its_objective_below_that_of_the_average() -> None:
    deltas = taus(10, 12)
    made = plain_parts(lore(deltas, 0.3), deltas)
    mean = np.mean(arrays(deltas), axis=0)
    assert objective(*made, arrays(deltas), 0.3) < objective(mean, [0 * mean] * 3, arrays(deltas), 0.3)


def test_lore_with_the_largest_threshold_is_the_average() -> None:
    deltas = taus(5, 8)
    assert_close(lore(deltas, 1.0), [np.mean(arrays(deltas), axis=0) / 3] * 3)


def plain_parts(made: dict[str, torch.Tensor], deltas: dict[str, torch.Tensor]) -> tuple[Array, list[Array]]:
    """`m` and every `D_k` from every `C_k = D_k + m / K` and `K m = sum (tau_k - D_k)`."""
    total, count = sum(arrays(made)), len(made)
    common = (sum(arrays(deltas)) - total) / (count - 1) if count > 1 else total
    return np.asarray(common), [one - common / count for one in arrays(made)]


def objective(common: Array, own: list[Array], taus: list[Array], share: float) -> float:
    mean = sum(taus) / len(taus)
    mu = share * max(float(np.linalg.norm(tau - mean, 2)) for tau in taus)
    return float(
        sum(
            0.5 * np.linalg.norm(common + d - t) ** 2 + mu * np.linalg.norm(d, "nuc")
            for d, t in zip(own, taus, strict=True)
        )
    )


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    experts=st.integers(1, 4),
    rank=st.integers(0, 3),
    scale=st.sampled_from([1e-12, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_whatever_the_task_vectors_the_result_is_finite(
    *, rows: int, columns: int, experts: int, rank: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        f"e{k}": scale * torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
        for k in range(experts)
    }
    for transform, number in ((star, 40.0), (tsv_m, 1.0), (lore, 0.1)):
        for made in transform(deltas, number).values():
            assert made.shape == (rows, columns)
            assert made.isfinite().all()
            assert float(made.abs().max()) <= 1e3 * max(float(tau.norm()) for tau in deltas.values())
