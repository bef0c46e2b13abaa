"""Are our merges the same as mergekit's? Makes a tiny random family in fp32, merges it here and there, and compares.

    python experiments/benchmarks/mergekit_parity.py [--mergekit-python .venv-mergekit/bin/python]

mergekit runs in an environment of its own (`make mergekit-env`) and replays the YAML that `evomerge export` writes. Of
elements whose magnitude ties with others at a trim threshold, mergekit keeps an arbitrary few: they are counted, not
compared. The size of a difference is counted in fp32 values between the two results (ulp).

Spherical operators, SCE and nearswap are another matter: their coefficients come from sums over whole tensors or from
quotients, ours in fp64 or not at all, mergekit's in its working dtype, and weights that nearly cancel magnify what
differs. So mergekit works in fp64 there, and a difference is counted in fp32 steps of the largest weight that went in.
(With mergekit in fp32 it is up to 8 such steps.)
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from table import Row, conclude
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from evomerge.merging.executor import execute
from evomerge.merging.keep_rules import Band, Trim
from evomerge.merging.operators import lower
from evomerge.merging.plan import MergePlan, TensorPlan, Vote
from evomerge.merging.pool import ModelPool
from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, OptionValue, Recipe, options_of
from evomerge.recipe.mergekit_yaml import inexpressible, to_mergekit

TARGET_ULP = 1
TARGET_STEPS = 3
LAYERS = 3
EXPERTS = ("one", "two", "three")

REPLAY = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
for source in sys.argv[1:]:
    config = MergeConfiguration.model_validate(yaml.safe_load(open(source)))
    run_merge(config, source + ".merged", options=options)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How one recipe fared.

    Attributes:
        elements: number of elements compared.
        exempt: elements not compared, because they tie at a trim threshold.
        different: elements that are not equal.
        worst_ulp: largest difference.
        target_ulp: largest difference allowed.
    """

    recipe: str
    elements: int
    exempt: int
    different: int
    worst_ulp: float
    target_ulp: int = TARGET_ULP


def measure(mergekit_python: Path) -> list[Parity]:
    """Merge with both tools and compare every tensor.

    Args:
        mergekit_python: the interpreter of an environment that has mergekit.

    Raises:
        subprocess.CalledProcessError: mergekit failed; its output says why.
    """
    with tempfile.TemporaryDirectory(prefix="mergekit-parity-") as name:
        place = Path(name)
        pool = make_pool(place)
        in_double = make_selective_recipes() | make_spherical_recipes()
        recipes = make_recipes() | in_double
        files = {title: place / f"{number}.yaml" for number, title in enumerate(recipes)}
        for title, recipe in recipes.items():
            text = replayable(title, recipe, pool)
            double = text.replace("\ndtype: float32", "\ndtype: float64")
            files[title].write_text(double if title in in_double else text)
        subprocess.run([mergekit_python, "-c", REPLAY, *map(str, files.values())], check=True, capture_output=True)
        return [
            compare(
                title,
                lower(recipe, pool),
                pool,
                load_file(f"{files[title]}.merged/model.safetensors"),
                in_steps=title in in_double,
            )
            for title, recipe in recipes.items()
        ]


def replayable(title: str, recipe: Recipe, pool: ModelPool) -> str:
    """The recipe as mergekit reads it."""
    if reasons := inexpressible(recipe):
        raise ValueError(f"{title}: mergekit cannot replay this: {reasons}")
    return to_mergekit(recipe, {model: str(pool.folder(model)) for model in pool.names}, pool.specs)


def make_pool(place: Path) -> ModelPool:
    """A Llama with random weights and experts that differ from it by a tenth of their spread, all in fp32."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    base = LlamaForCausalLM(config)
    for name in ("base", *EXPERTS):
        model = LlamaForCausalLM(config)
        for new, old in zip(model.parameters(), base.parameters(), strict=True):
            new.data = old.data if name == "base" else old.data + 0.002 * torch.randn_like(old)
        model.save_pretrained(place / name)
        vocabulary = {f"<{token}>": token for token in range(64)}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
        PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<0>").save_pretrained(place / name)
    return ModelPool.open(place / "base", {name: place / name for name in EXPERTS})


def make_recipes() -> dict[str, Recipe]:
    """By title; every parameter differs from layer to layer and from role to role."""
    positive, signed, density, scale = (0.1, 1.0), (-0.6, 1.0), (0.1, 0.9), (0.5, 1.2)
    ranges = {"weight": signed, "density": density, "lambda": scale}
    return {
        "linear": make_recipe("linear", {"weight": positive}),
        "linear, not normalized": make_recipe("linear", {"weight": signed}, normalize=False),
        "task arithmetic": make_recipe("task_arithmetic", ranges),
        "task arithmetic, normalized": make_recipe("task_arithmetic", {**ranges, "weight": positive}, normalize=True),
        "ties": make_recipe("ties", {**ranges, "weight": positive}),
        "ties, signed weights": make_recipe("ties", ranges),
        "ties, sum": make_recipe("ties", ranges, aggregate="sum"),
        "ties of one": make_recipe("ties", {**ranges, "weight": positive}, sources=EXPERTS[:1]),
        "average by a metric": make_recipe("metric_average", {"metric": (0.5, 3.0), "power": (-2.0, 2.0)}),
        "average by a decay": make_recipe("decay_average", {"power": (0.3, 3.0)}),
        **make_sparse_recipes(ranges | {"gamma": (0.0, 0.2), "epsilon": (0.0, 0.3)}),
    }


def make_sparse_recipes(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Recipe]:
    """The same for operators that drop outliers, and for those that drop at random, where they drop nothing."""
    positive, whole = {**ranges, "weight": (0.1, 1.0)}, {**ranges, "density": (1.0, 1.0)}
    return {
        "breadcrumbs": make_recipe("breadcrumbs", ranges),
        "breadcrumbs, normalized": make_recipe("breadcrumbs", positive, normalize=True),
        "breadcrumbs ties": make_recipe("breadcrumbs_ties", ranges),
        "breadcrumbs ties, weighted mean": make_recipe("breadcrumbs_ties", positive, aggregate="weighted_mean"),
        "dare ties, whole": make_recipe("dare_ties", whole),
        "della, whole": make_recipe("della", whole),
        "della linear, whole": make_recipe("della_linear", whole),
        "ram": make_recipe("ram", {"epsilon": (0.0, 0.002)}),
        "ram plus": make_recipe("ram_plus", {"epsilon": (0.0, 0.002), "r": (0.0, 1.0), "alpha": (0.0, 1.0)}),
    }


def make_selective_recipes() -> dict[str, Recipe]:
    """The same for operators that select and round at other places than mergekit."""
    return {
        "sce": make_recipe("sce", {"select_topk": (0.05, 0.9)}),
        "sce, whole": make_recipe("sce", {"select_topk": (1.0, 1.0)}),
        "nearswap": make_recipe("nearswap", {"t": (0.0, 0.004)}, sources=EXPERTS[:1]),
    }


def make_spherical_recipes() -> dict[str, Recipe]:
    """The same for operators whose coefficients come from scalar products."""
    weights, deltas = {"weight": (0.1, 1.0)}, {"weight": (0.1, 1.0), "lambda": (1.0, 1.0)}
    return {
        "slerp": make_recipe("slerp", {"t": (0.0, 1.0)}, sources=EXPERTS[:1]),
        **{
            f"{operator}, per {per}": make_recipe(operator, deltas, sources=EXPERTS[:2], per=per)
            for operator in ("nuslerp", "nuslerp_delta")
            for per in ("tensor", "row", "column")
        },
        "multislerp": make_recipe("multislerp", weights),
        "multislerp_delta": make_recipe("multislerp_delta", deltas),
        "multislerp_delta, signed weights": make_recipe("multislerp_delta", {**deltas, "weight": (-0.3, 1.0)}),
        "karcher": make_recipe("karcher", {"weight": (1.0, 1.0)}),
        "model stock": make_recipe("model_stock", deltas),
        "model stock, per row": make_recipe("model_stock", deltas, per="row"),
    }


def make_recipe(
    operator: str,
    ranges: Mapping[str, tuple[float, float]],
    *,
    sources: Sequence[str] = EXPERTS,
    **options: OptionValue,
) -> Recipe:
    """A recipe in the mergekit preset, its parameters drawn at random."""
    table = OPERATORS[operator]
    rng = np.random.default_rng(1)
    parameters = []
    for name in sorted(table.parameters):
        width = len(sources) if table.parameters[name].scope == "source" else 1
        depths = {role: LAYERS if role in DEPTH_ROLES else 1 for role in ROLES}
        draws = {role: rng.uniform(*ranges[name], size=(depth, width)).tolist() for role, depth in depths.items()}
        parameters.append((name, Field.of(draws)))
    return Recipe(
        operator=operator,
        options=options_of(table, "mergekit", **options),
        base="base" if table.needs_base else None,
        sources=tuple(sources),
        parameters=tuple(parameters),
        dtype="float32",
    )


def compare(
    title: str, plan: MergePlan, pool: ModelPool, theirs: Mapping[str, torch.Tensor], *, in_steps: bool
) -> Parity:
    """Our tensors against mergekit's.

    Args:
        title: of the recipe.
        plan: of the recipe.
        pool: the models.
        theirs: mergekit's tensors.
        in_steps: count differences in steps of the largest weight.
    """
    ours = dict(execute(plan, pool))
    if ours.keys() != theirs.keys():
        raise ValueError(f"{title}: the tools wrote different tensors: {sorted(ours.keys() ^ theirs.keys())}")
    compared = {tensor.name: ~ambiguous(tensor, pool) for tensor in plan.tensors}
    distance = partial(steps_between, pool) if in_steps else ulps_between
    apart = torch.cat([distance(name, ours[name], theirs[name])[mask] for name, mask in compared.items()])
    return Parity(
        recipe=title,
        elements=len(apart),
        exempt=sum(int((~mask).sum()) for mask in compared.values()),
        different=int((apart > 0).sum()),
        worst_ulp=float(apart.max()),
        target_ulp=TARGET_STEPS if in_steps else TARGET_ULP,
    )


def ulps_between(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How many fp32 values lie between two tensors."""
    return (ulps(ours) - ulps(theirs)).abs()


def steps_between(pool: ModelPool, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The same in fp32 steps of the largest magnitude among inputs and result."""
    magnitudes = torch.stack([ours.abs(), *(pool.tensor(model, name).abs() for model in pool.names)])
    steps = torch.ldexp(torch.ones_like(ours), torch.frexp(magnitudes.amax(0)).exponent - 24)
    return (ours - theirs).abs() / steps


def ambiguous(tensor: TensorPlan, pool: ModelPool) -> torch.Tensor:
    """Elements that tie with others at a threshold of some source, or nearly so in variance; bool, in its shape."""
    found = torch.zeros(tensor.shape, dtype=torch.bool)
    terms = getattr(tensor.kernel, "terms", ())
    for term in terms:
        x = pool.tensor(term.source, tensor.name) - pool.tensor(pool.base, tensor.name)
        cuts = (term.keep.inner, term.keep.outer) if isinstance(term.keep, Band) else (term.keep,)
        for cut in cuts:
            tied = x.abs() == (cut.threshold if isinstance(cut, Trim) else math.nan)
            found |= tied if int(tied.sum()) > 1 else torch.zeros_like(tied)
    if isinstance(tensor.kernel, Vote) and tensor.kernel.select is not None:
        spread = torch.stack([pool.tensor(term.source, tensor.name).double() for term in terms]).var(0, unbiased=False)
        found |= (spread / tensor.kernel.select.threshold - 1).abs() < 1e-6
    return found


def ulps(values: torch.Tensor) -> torch.Tensor:
    """Integers that count fp32 values upwards from zero."""
    bits = values.contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def main() -> None:
    """Print one row per recipe; exit 1 on a miss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit-python", type=Path, default=Path(".venv-mergekit/bin/python"))
    python = parser.parse_args().mergekit_python
    if not python.exists():
        parser.error(f"{python}: no such interpreter; make the environment with `make mergekit-env`")
    try:
        found = measure(python)
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"mergekit failed:\n{error.stderr.decode()}")
    rows = [
        Row(
            name=parity.recipe,
            target=f"<= {parity.target_ulp} ulp",
            measured=f"{parity.worst_ulp:.3g} ulp; {parity.different}/{parity.elements} differ, {parity.exempt} exempt",
            met=parity.worst_ulp <= parity.target_ulp,
        )
        for parity in found
    ]
    conclude("parity with mergekit, fp32", rows)


if __name__ == "__main__":
    main()
