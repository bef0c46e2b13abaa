from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import masks

SEEDS = st.integers(0, 2**63 - 1)
MANY = 200_000


def splitmix64(seed: int, index: int) -> int:
    """The published algorithm, one number at a time."""
    word = 2**64 - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def drawn(seed: int, index: int) -> float:
    """The definition, one number at a time."""
    primes = (1_048_573, 1_048_571)
    places = (seed % primes[0] + index) % primes[0], (seed // primes[0] + index) % primes[1]
    return sum((splitmix64(table, place) & 0x7FFFFF) / 2**23 for table, place in enumerate(places)) % 1


@given(SEEDS, st.integers(0, 10**12), st.integers(1, 9))
def test_draws_are_sums_of_two_cyclic_tables(seed: int, start: int, count: int) -> None:
    assert masks.uniform(seed, start, count).tolist() == [drawn(seed, i) for i in range(start, start + count)]


def test_the_tables_are_of_the_published_numbers() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, index) for index in range(3)] == known


def test_runs_of_any_length_are_drawn() -> None:
    whole = masks.uniform(5, 0, 2 * masks.RUN + 100)
    for start in (masks.RUN - 3, 2 * masks.RUN):
        assert torch.equal(masks.uniform(5, start, 100), whole[start : start + 100])


def test_a_long_tensor_does_not_repeat_itself() -> None:
    for period in (1_048_573, 1_048_571):
        pair = torch.stack([masks.uniform(5, start, MANY) for start in (0, period)])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(MANY)


def test_golden_values_never_change() -> None:
    seed = masks.tensor_seed(3, "expert", "tensor")
    assert masks.uniform(seed, 0, 2).mul(2**23).tolist() == [3918208.0, 1865496.0]


@given(SEEDS, st.integers(0, 50), st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_does_not_depend_on_where_a_block_starts(seed: int, start: int, count: int, density: float) -> None:
    whole = masks.uniform(seed, 0, start + count)
    assert torch.equal(masks.uniform(seed, start, count), whole[start:])
    assert torch.equal(masks.keep(seed, density, start, count).bool(), whole[start:] < density)


CENTRES = st.floats(0, 1).flatmap(lambda d: st.tuples(st.just(d), st.floats(0, min(d, 1 - d))))


@given(SEEDS, st.integers(0, 50), st.one_of(CENTRES, st.sampled_from([(0.5, 0.5), (0.0, 0.0), (1.0, 0.0)])))
def test_levels_have_densities_of_their_own(seed: int, start: int, window: tuple[float, float]) -> None:
    density, epsilon = window
    levels = torch.arange(256, dtype=torch.int32)
    numbers = masks.uniform(seed, start, len(levels))
    densities = density - epsilon + 2 * epsilon * levels.double() / 255
    kept = masks.keep_by_level(seed, density, epsilon, levels, start).bool()
    sure = (numbers - densities).abs() > 4e-5
    assert torch.equal(kept[sure], (numbers < densities)[sure])


@given(CENTRES)
def test_limits_of_levels_are_exact_in_single_precision(window: tuple[float, float]) -> None:
    density, epsilon = window
    assert epsilon - 4e-5 < masks.window(epsilon) <= epsilon
    assert masks.window(masks.window(epsilon)) == masks.window(epsilon)
    units = masks.level_limits(*masks.ramp(density, epsilon), torch.arange(256)).double() / masks.GRAIN
    assert torch.equal(units, units.round())
    assert set(units.diff().tolist()) == {2 * masks.window(epsilon) / 255 / masks.GRAIN}
    middle = (masks.limit(density) - masks.window(epsilon)) / masks.GRAIN
    assert units[0] == middle >= 0


@given(SEEDS, st.integers(0, 50), st.integers(1, masks.STEPS - 1), st.floats(0, 0.5))
def test_bins_tell_what_masks_of_all_densities_keep(seed: int, start: int, k: int, epsilon: float) -> None:
    density = k / masks.STEPS
    assert torch.equal(masks.bins(seed, start, 300) < k, masks.keep(seed, density, start, 300).bool())
    epsilon, levels = min(epsilon, density, 1 - density), torch.arange(300, dtype=torch.int32) % 256
    kept = masks.keep_by_level(seed, density, epsilon, levels, start).bool()
    assert torch.equal(masks.bins(seed, start, 300, epsilon, levels) < k, kept)


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.5, 0.9])
def test_keeps_its_density(density: float) -> None:
    seed = masks.tensor_seed(3, "expert", "tensor")
    kept = float(masks.keep(seed, density, 0, MANY).double().mean())
    assert abs(kept - density) <= 4 * math.sqrt(density * (1 - density) / MANY)


def test_numbers_are_uniform() -> None:
    numbers = masks.uniform(masks.tensor_seed(3, "expert", "tensor"), 0, MANY)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers.float(), bins=64, min=0, max=1)
    chi_squared = float(((counts - MANY / 64) ** 2 / (MANY / 64)).sum())
    assert chi_squared < 63 + 4 * math.sqrt(2 * 63)


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, "a", "t"), (0, "b", "t")), ((0, "a", "t"), (0, "a", "u")), ((0, "a", "t"), (1, "a", "t"))],
    ids=["source", "tensor", "mask seed"],
)
def test_masks_are_independent(one: tuple[int, str, str], other: tuple[int, str, str]) -> None:
    pair = torch.stack([masks.uniform(masks.tensor_seed(*key), 0, MANY) for key in (one, other)])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(MANY)


def test_neighbours_are_independent() -> None:
    numbers = masks.uniform(masks.tensor_seed(0, "a", "t"), 0, MANY + 2)
    for lag in (1, 2):
        pair = torch.stack([numbers[:MANY], numbers[lag : MANY + lag]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(MANY)
