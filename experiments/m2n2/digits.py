"""M2N2 from scratch: a small classifier of handwritten digits bred by merging and mutation alone, without gradients.

After Abrantes et al. 2025 (arXiv 2508.16204), whose networks classify MNIST: here scikit-learn's digits, 64 pixels, and
a network of one hidden layer. The archive starts from random networks. Compared, at equal forward passes over all
training images: M2N2; M2N2 without competition (`alpha = 0`) and without attraction; and a diagonal CMA-ES.

    python experiments/m2n2/digits.py --mutation 0.2

Legend: P parameters, n networks of the archive, m images; `S[x, j]` 1 where network x is right about image j.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import numpy as np
from cmaes import SepCMA
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits

from evomerge.population.m2n2 import attraction, competition
from evomerge.rng import stream

Floats = NDArray[np.float64]

PIXELS, HIDDEN, CLASSES = 64, 16, 10
PARAMETERS = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
ARCHIVE = 20
MUTATION = 0.01
TEST = 597


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Pixels `[m, 64]`, 0 to 1, and the digits that they show `[m]`."""

    pixels: Floats
    digits: NDArray[np.int64]


def images() -> tuple[Images, Images]:
    """1,200 images to train on and 597 to test on, always the same."""
    pixels, digits = load_digits(return_X_y=True)
    order = stream(0, "digits").permutation(len(digits))
    test, train = order[:TEST], order[TEST:]
    return (
        Images(pixels=pixels[train] / 16.0, digits=digits[train]),
        Images(pixels=pixels[test] / 16.0, digits=digits[test]),
    )


def logits(parameters: Floats, pixels: Floats) -> Floats:
    """What a network says, `[m, 10]`: one hidden layer of tanh units."""
    split = (PIXELS + 1) * HIDDEN
    first, second = parameters[:split].reshape(PIXELS + 1, HIDDEN), parameters[split:].reshape(HIDDEN + 1, CLASSES)
    hidden = np.tanh(pixels @ first[:-1] + first[-1])
    said: Floats = hidden @ second[:-1] + second[-1]
    return said


def answers(parameters: Floats, data: Images) -> Floats:
    """1 for every image that a network gets right, `[m]`."""
    right: Floats = (logits(parameters, data.pixels).argmax(axis=1) == data.digits).astype(np.float64)
    return right


def initial(random: np.random.Generator) -> Floats:
    """A random network, scaled by the number of inputs."""
    first = random.standard_normal((PIXELS + 1, HIDDEN)) / PIXELS**0.5
    second = random.standard_normal((HIDDEN + 1, CLASSES)) / HIDDEN**0.5
    return np.concatenate([first.ravel(), second.ravel()])


def crossed(one: Floats, other: Floats, random: np.random.Generator) -> Floats:
    """A child: on the sphere between its parents, `w` left of a random split and `1 - w` right of it (section 3)."""
    split, share = int(random.integers(len(one))), float(random.random())
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    by_place = np.where(np.arange(len(one)) < split, share, 1.0 - share)
    if angle < 1e-6:
        return one * (1.0 - by_place) + other * by_place
    child: Floats = (np.sin((1.0 - by_place) * angle) * one + np.sin(by_place * angle) * other) / np.sin(angle)
    return child


def drawn(random: np.random.Generator, chances: Floats) -> int:
    """An index, in proportion to its chance; any where all chances are zero."""
    total = chances.sum()
    return int(random.choice(len(chances), p=chances / total if total > 0.0 else None))


def bred(data: Images, passes: int, seed: int, mutation: float, *, alpha: float, attracted: bool) -> Floats:
    """M2N2, steady state: the network of the archive that is right most often after so many forward passes."""
    random = stream(seed, "m2n2 digits")
    archive = np.array([initial(random) for _ in range(ARCHIVE)])
    solved = np.array([answers(member, data) for member in archive])
    capacity = np.ones(len(data.digits))
    for _ in range(passes - ARCHIVE):
        taken = competition(solved, capacity, alpha=alpha)
        one = drawn(random, taken.mean(axis=1))
        wanted = attraction(taken, one) if attracted else taken.mean(axis=1)
        other = drawn(random, np.where(np.arange(ARCHIVE) == one, 0.0, wanted))
        child = crossed(archive[one], archive[other], random) + mutation * random.standard_normal(PARAMETERS)
        archive, solved = np.vstack([archive, child]), np.vstack([solved, answers(child, data)])
        worst = int(competition(solved, capacity, alpha=alpha).mean(axis=1).argmin())
        archive, solved = np.delete(archive, worst, axis=0), np.delete(solved, worst, axis=0)
    return np.array(archive[solved.mean(axis=1).argmax()])


def adapted(data: Images, passes: int, seed: int, _: float) -> Floats:
    """A diagonal CMA-ES on the cross entropy, from a random network: its mean after so many forward passes."""
    optimizer = SepCMA(mean=initial(stream(seed, "cma digits")), sigma=0.1, seed=seed)
    rows = np.arange(len(data.digits))
    for _ in range(passes // optimizer.population_size):
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        said = [logits(network, data.pixels) for network in asked]
        losses = [float(np.mean(np.logaddexp.reduce(values, axis=1) - values[rows, data.digits])) for values in said]
        optimizer.tell(list(zip(asked, losses, strict=True)))
    return np.array(optimizer.mean)


ARMS: dict[str, Callable[[Images, int, int, float], Floats]] = {
    "M2N2": partial(bred, alpha=1.0, attracted=True),
    "M2N2 without competition": partial(bred, alpha=0.0, attracted=True),
    "M2N2 without attraction": partial(bred, alpha=1.0, attracted=False),
    "neither": partial(bred, alpha=0.0, attracted=False),
    "CMA-ES, diagonal, on the cross entropy": adapted,
}


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.3f} +- {half:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print accuracy on the test images for every way to search."""
    parser = argparse.ArgumentParser(description="Breed a classifier of digits.")
    parser.add_argument("--passes", type=int, default=20_000, metavar="N", help="default: 20000")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3; 2 at least")
    parser.add_argument("--mutation", type=float, default=MUTATION, metavar="SD", help=f"default: {MUTATION}")
    options = parser.parse_args(arguments)
    train, test = images()
    print(f"{options.passes} forward passes, {options.seeds} seeds\n")
    print("| search | right on unseen images | CPU s a run |\n|---|---|---|")
    for name, search in ARMS.items():
        began = time.process_time()
        found = [
            float(answers(search(train, options.passes, seed, options.mutation), test).mean())
            for seed in range(options.seeds)
        ]
        seconds = (time.process_time() - began) / options.seeds
        print(f"| {name} | {interval(found)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
