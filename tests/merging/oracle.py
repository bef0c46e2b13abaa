"""Random families and recipes, and how far fp32 arithmetic may be from the oracle; shared by the tests of executors."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from evomerge.merging import masks
from evomerge.merging.executor import execute
from evomerge.merging.keep_rules import Prune
from evomerge.merging.operators import lower
from evomerge.merging.plan import Consensus, Copy, Delta, Isotropic, Linear, Overlap, TensorPlan, Term, Vote, Winner
from evomerge.merging.reference import reference_merge
from evomerge.recipe import Field, Operator, OutputDtype, Parameter, Recipe, options_of

MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
DTYPES: tuple[OutputDtype, ...] = ("bfloat16", "float16", "float32")

DENSITIES = st.one_of(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.sampled_from([0.0, 1.0]))
WEIGHTS = st.one_of(st.floats(0.05, 2), st.floats(-2, -0.05), st.sampled_from([0.0, 1.0, -1.0, 0.1, 0.2, 0.3]))
SCALES = st.sampled_from([1.0, 0.7, -1.3, 0.0])
SHAPES = st.lists(st.lists(st.integers(1, 12), max_size=3).map(tuple), min_size=1, max_size=3)


@st.composite
def families(draw: st.DrawFn) -> dict[str, dict[str, torch.Tensor]]:
    """A base and one to three experts: stored dtypes differ, and many elements are the base's own."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    names = [f"layers.0.mlp.{i}" for i in range(3)]
    stored = st.sampled_from(list(MANTISSA))
    base = {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in zip(names, draw(SHAPES), strict=False)
    }
    base_dtype = draw(stored)
    family = {"base": {name: theta.to(base_dtype) for name, theta in base.items()}}
    for expert in ["one", "two", "three"][: draw(st.integers(1, 3))]:
        dtype, spread = draw(stored), draw(st.sampled_from([1e-3, 1e-2]))
        family[expert] = {
            name: torch.where(
                torch.rand(theta.shape, generator=generator) < 0.3,
                theta.float(),
                theta.float() + spread * torch.randn(theta.shape, generator=generator),
            ).to(dtype)
            for name, theta in family["base"].items()
        }
    return family


def values_of(name: str, parameter: Parameter) -> st.SearchStrategy[float]:
    """Values of a parameter: ends and middle of what is searched, for commoner parameters more than that."""
    common = {"weight": WEIGHTS, "density": DENSITIES, "lambda": SCALES}
    inside = st.floats(parameter.low, parameter.high)
    drawn = common.get(name, st.one_of(inside, inside, inside, st.sampled_from([parameter.low, parameter.high])))
    return drawn.map(lambda value: max(value, parameter.minimum))


@st.composite
def recipes(draw: st.DrawFn, operator: Operator, experts: tuple[str, ...]) -> Recipe:
    """Any recipe of an operator for models of one layer."""
    sources = experts[: operator.max_sources]
    fields = {}
    for name, parameter in sorted(operator.parameters.items()):
        width = len(sources) if parameter.scope == "source" else 1
        row = draw(st.lists(values_of(name, parameter), min_size=width, max_size=width))
        fields[name] = Field.constant(row, 1)
    return Recipe(
        operator=operator.name,
        options=options_of(
            operator, "paper", **{name: draw(st.sampled_from(legal)) for name, legal in operator.options.items()}
        ),
        base="base" if operator.needs_base else None,
        sources=sources,
        parameters=tuple(fields.items()),
        mask_seed=draw(st.integers(0, 99)),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def assert_equals_the_oracle(recipe: Recipe, pool: Any, block: int) -> None:
    """The executor's tensors are the oracle's, rounded once."""
    plan = lower(recipe, pool)
    exact = dict(reference_merge(recipe, pool))
    merged = dict(execute(plan, pool, block=block))
    assert merged.keys() == exact.keys()
    for tensor in plan.tensors:
        out, expected = merged[tensor.name], exact[tensor.name]
        assert (out.dtype, out.shape) == (getattr(torch, recipe.dtype), expected.shape)
        assert bool(out.isfinite().all())
        if recipe.dtype == "float16":
            expected = expected.clamp(-65504, 65504)
        allowed = half_ulp(torch.maximum(out.double().abs(), expected.abs()), out.dtype) + tolerance(tensor, pool)
        assert bool(((out.double() - expected).abs() <= allowed).all())


def assert_same_in_any_blocks(recipe: Recipe, pool: Any, block: int) -> None:
    """The size of blocks changes no bit."""
    plan = lower(recipe, pool)
    whole = dict(execute(plan, pool))
    for name, values in execute(plan, pool, block=block):
        assert torch.equal(*(theta.reshape(-1).view(torch.uint8) for theta in (values, whole[name])))


def assert_nearly_rounded(recipe: Recipe, pool: Any) -> None:
    """Of many elements, one in a thousand is off by one unit in the last place, none by more.

    Where base and changes cancel, that unit is less than what fp32 can tell apart.
    """
    plan = lower(recipe, pool)
    ((name, out),) = execute(plan, pool)
    expected = dict(reference_merge(recipe, pool))[name].to(out.dtype)
    assert float((out != expected).double().mean()) <= 0.001
    apart = (out.double() - expected.double()).abs()
    unit = 2 * half_ulp(torch.maximum(out.abs(), expected.abs()), out.dtype)
    assert bool((apart <= unit + tolerance(plan.tensors[0], pool)).all())


def large_family(*, shape: tuple[int, int] = (1000, 400)) -> dict[str, dict[str, torch.Tensor]]:
    """A base and three experts in bf16, of one tensor that is larger than any table or block."""
    generator = torch.Generator().manual_seed(1)
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    family = {"base": base}
    for expert in ("one", "two", "three"):
        family[expert] = (base.float() + 0.002 * torch.randn(shape, generator=generator)).bfloat16()
    return {model: {"layers.0.mlp.w": theta} for model, theta in family.items()}


def tolerance(plan: TensorPlan, pool: Any) -> torch.Tensor:
    """What fp32 sums may be off: a few units of 2^-24 of the sum of all magnitudes that went into them."""
    theta = {model: pool.tensor(model, plan.name).double() for model in ("base", *plan.sources)}
    base = theta["base"].abs()

    def changes(terms: tuple[Term, ...], gains: tuple[float, ...]) -> torch.Tensor:
        pairs = zip(terms, gains, strict=True)
        parts = (gain * share_of(term, base) * (theta[term.source] - theta["base"]).abs() for term, gain in pairs)
        return torch.as_tensor(sum(parts, 0 * base))

    match plan.kernel:
        case Copy(source=source):
            size = base + theta[source].abs()
        case Linear(terms=terms, divisor=divisor):
            size = sum((share_of(term, base) / abs(divisor) * theta[term.source].abs() for term in terms), 0 * base)
        case Delta(terms=terms, divisor=divisor, scale=scale):
            size = base + abs(scale / divisor) * changes(terms, (1.0,) * len(terms))
        case Vote(terms=terms, gains=gains, shares=shares, scale=scale):
            size = base + abs(scale) * changes(terms, gains) / smallest_divisor(shares)
        case Consensus(terms=terms, scale=scale) | Winner(terms=terms, scale=scale):
            size = base + abs(scale) * changes(terms, (1.0,) * len(terms))
        case Overlap(terms=terms, gains=gains):
            size = base + changes(terms, gains)
        case Isotropic(terms=terms, scale=scale):
            size = base + abs(scale) * conditioned(
                sum((term.weight * (theta[term.source] - theta["base"]) for term in terms), 0 * base),
                changes(terms, (1.0,) * len(terms)),
                base * sum(abs(term.weight) for term in terms),
            )
    return torch.as_tensor(size * (len(theta) + 8) * 2.0**-24)


def share_of(term: Term, like: torch.Tensor) -> torch.Tensor:
    """The largest that a source's value is multiplied with, element by element."""
    factors = np.ones(1) if term.factors is None else term.factors.within(0, like.numel()).reshape(like.shape)
    inverse = isinstance(term.keep, Prune) and term.keep.inverse
    gain = inverse_probability(term.keep) if inverse else 1.0  # type: ignore[arg-type]
    return torch.from_numpy(abs(term.weight * gain * factors))


def inverse_probability(rule: Prune) -> float:
    """Of the elements that are kept least often, but for those that never are."""
    first, step = masks.ramp(rule.density, rule.epsilon)
    return 1 / (first or step or 1.0)


def conditioned(change: torch.Tensor, size: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How much more than its own rounding a flattened matrix is off: its singular values may be small.

    Args:
        change: the matrix, or a stack of them.
        size: the magnitudes that went into it.
        weights: the magnitudes whose rounding sets the least singular value that counts.
    """
    grown = torch.empty_like(change)
    for place in product(*map(range, change.shape[:-2])):
        s = torch.linalg.svdvals(change[place])
        noise = float(weights[place].norm()) * sum(side**-0.5 for side in change.shape[-2:])
        cut = 2.0**-23 * max(float(change[place].norm()), noise)
        near = bool(((s > cut / 4) & (s < cut * 4)).any())  # may count or not
        least = cut if near else min(s[s > cut].tolist(), default=1.0)
        grown[place] = 2 * float(size[place].norm()) * (1 + float(s.mean()) / least)
    return grown


def smallest_divisor(shares: tuple[float, ...]) -> float:
    """The smallest that a vote may divide by."""
    sums = [abs(float(sum(torch.tensor(s)))) for n in range(1, len(shares) + 1) for s in combinations(shares, n)]
    return min([1.0, *filter(None, sums)])


def half_ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance between neighbouring numbers of a dtype."""
    exponent = torch.frexp(values.double()).exponent
    ones = torch.ones(values.shape, dtype=torch.float64)
    return torch.ldexp(ones, exponent - 2 - MANTISSA[dtype]).clamp(min=SMALLEST[dtype] / 2)
