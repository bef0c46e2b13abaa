"""Whether space, algorithm and budget fit the pool and each other: all that is known before anything is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from evomerge.config import Experiment
from evomerge.errors import ConfigError, EvomergeError, Fault
from evomerge.opening import Lineup
from evomerge.population import Evaluation, Problem, build_algorithm
from evomerge.rng import stream
from evomerge.spaces import Genome, Models, Products, SearchSpace, build_space

__all__ = ["problem_of", "space_of"]

_TRIED = 64
"""Random recipes of a space that tell whether it changes a cost."""


def space_of(experiment: Experiment, lineup: Lineup, products: Products | None = None) -> SearchSpace:
    """The experiment's search space over a pool.

    Args:
        experiment: names the space.
        lineup: the pool's shape.
        products: scalar products of the models' weights, where they were measured.

    Raises:
        ConfigError: the space contradicts the pool, the algorithm cannot search it, or it leaves a cost as it is.
    """
    models = Models(
        base=lineup.base, experts=lineup.experts, layers=lineup.layers, dtype=lineup.dtype, products=products
    )
    with _built("space", experiment.space.kind):
        space = build_space(experiment.space, models, experiment.seed)
        space.decode(space.start)
    if misfit := experiment.algorithm.misfit(len(experiment.fitness.objectives), len(space.genes)):
        raise ConfigError("algorithm", [Fault(path="$.algorithm.kind", message=misfit)])
    with _built("algorithm", experiment.algorithm.kind):
        build_algorithm(experiment.algorithm, problem_of(experiment, space))
    _refuse_small_budget(experiment, space)
    _refuse_constant_costs(experiment, lineup, space)
    return space


def problem_of(experiment: Experiment, space: SearchSpace, earlier: Sequence[Evaluation] = ()) -> Problem:
    """What the experiment's algorithm is built for."""
    weights = tuple(objective.weight for objective in experiment.fitness.objectives)
    return Problem(space=space, weights=weights, seed=experiment.seed, earlier=earlier)


@contextmanager
def _built(key: str, kind: str) -> Iterator[None]:
    """Whatever goes wrong in the making of a kind, which may be a plugin's, is a fault of the experiment."""
    try:
        yield
    except EvomergeError:
        raise
    except Exception as error:
        message = f"the {key} {kind!r} cannot be made: {type(error).__name__}: {error}"
        raise ConfigError(key, [Fault(path=f"$.{key}.kind", message=message)]) from error


def _refuse_small_budget(experiment: Experiment, space: SearchSpace) -> None:
    """Some algorithms are of use only if they end."""
    needed = experiment.anchors + experiment.algorithm.least([len(gene.choices) for gene in space.genes])
    if experiment.budget.evaluations < needed:
        message = (
            f"{experiment.algorithm.kind} needs {needed:,} evaluations over {len(space.genes)} genes, anchors "
            f"included; got {experiment.budget.evaluations:,}; raise the budget, or search fewer genes or levels"
        )
        raise ConfigError("budget", [Fault(path="$.budget.evaluations", message=message)])


def _refuse_constant_costs(experiment: Experiment, lineup: Lineup, space: SearchSpace) -> None:
    """A cost that no recipe of the space changes is no objective and no constraint."""
    wanted = [measured for measured in experiment.fitness.measured if measured.cost is not None]
    if lineup.sizes is None or not wanted:
        return
    draws = stream(experiment.seed, "costs").random((_TRIED, len(space.genes)))
    recipes = [space.decode(space.start), *(space.decode(Genome(tuple(row))) for row in draws.tolist())]
    faults = []
    for measured in wanted:
        found = {lineup.sizes.of(recipe, measured.cost) for recipe in recipes if measured.cost is not None}
        if len(found) == 1:
            message = (
                f"{measured.name!r}: expected a space that changes the cost {measured.cost!r}; got {found.pop():,} for "
                f"{len(recipes)} recipes of it; search paths of free length, or leave the cost out"
            )
            faults.append(Fault(path="$.fitness", message=message))
    if faults:
        raise ConfigError("fitness", faults)
