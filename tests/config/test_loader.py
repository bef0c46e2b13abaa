from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import dump, find, load_experiment, load_fitness, load_space, shipped_folder, shipped_names
from evomerge.errors import ConfigError
from evomerge.yaml_lines import parse

GOOD: dict[str, Any] = {
    "version": 1,
    "name": "trial",
    "pool": {"base": "base", "experts": {"a": "a", "b": "b"}},
    "space": {
        "kind": "parameter",
        "operator": {"name": "ties", "preset": "mergekit"},
        "knots": 4,
        "genes": {"weight": {"low": 0, "high": 1}, "density": {"low": 0.2, "high": 1.0, "knots": 1}},
    },
    "fitness": {
        "tasks": ["tasks"],
        "objectives": [{"name": "one", "task": "one"}],
        "items": {"search": 8, "confirm": 16},
    },
    "algorithm": {"kind": "nsga2", "population": 8},
    "budget": {"evaluations": 32},
}


def edited(*changes: tuple[str, Any]) -> dict[str, Any]:
    """GOOD with some dotted keys changed (None removes)."""
    data: dict[str, Any] = json.loads(json.dumps(GOOD))
    for dotted, value in changes:
        *parents, last = dotted.split(".")
        target = data
        for key in parents:
            target = target[key]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "a", "b", "tasks"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(folder: Path, data: Any, name: str = "trial.yaml") -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return str(path)


def faults(name: str, *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(name, assignments)
    return str(caught.value)


def test_paths_are_absolute_and_the_dump_reads_back(folder: Path) -> None:
    experiment = load_experiment(write(folder, GOOD))
    assert experiment.pool.base == folder / "base"
    assert experiment.fitness.tasks == (folder / "tasks",)
    elsewhere = folder / "deep"
    elsewhere.mkdir()
    again = load_experiment(write(elsewhere, dump(experiment)))
    assert again == experiment


def test_every_fault_is_reported_at_once_with_its_line(folder: Path) -> None:
    text = yaml.safe_dump(
        edited(("algorithm.popluation", 9), ("budget.evaluations", "many"), ("pool.base", "nowhere"), ("name", None)),
        sort_keys=False,
    )
    name = write(folder, text)
    message = faults(name)
    lines = text.splitlines()
    line = lines.index("  popluation: 9") + 1
    assert f"$.algorithm.popluation (line {line}): unknown key; did you mean 'population'?" in message
    line = lines.index("  evaluations: many") + 1
    assert f"$.budget.evaluations (line {line}): expected a whole number; got 'many'" in message
    assert "$.name" in message
    assert "required, but missing" in message
    assert message.startswith(f"{name}: 3 faults")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("version", 2, "$.version (line 1): expected 1; got 2"),
        ("name", "../escape", "$.name"),
        ("pool.experts", {}, "$.pool.experts"),
        ("pool.experts", {"base": "a"}, "'base' means something else"),
        ("pool.base", "nowhere", "$.pool.base (line 4): expected a model folder; nothing at"),
        ("space.operator.name", "tise", "expected an operator"),
        ("space.operator.preset", "papr", "did you mean 'paper'?"),
        ("space.genes.wieght", {}, "ties has the parameters"),
        ("space.genes.weight", {"low": 1, "high": 0}, "low < high"),
        ("space.genes.density", {"low": -1, "high": 1}, "0.0 <= low < high <= 1.0"),
        ("space.knots", 0, "$.space.knots"),
        ("space.knots", "layers", "$.space.knots"),
        ("space.groups", {"one": ["attention"]}, "exactly one group"),
        ("space.fixed", {"weight": 1.0}, "got ['weight'] twice"),
        ("fitness.objectives", [], "$.fitness.objectives"),
        ("fitness.objectives", [{"name": "x", "task": "a"}, {"name": "x", "task": "b"}], "must be distinct"),
        ("fitness.items.search", 1, "$.fitness.items.search"),
        ("fitness.confirm", {"level": 1.5}, "$.fitness.confirm.level"),
        ("algorithm.kind", "nsga4", "did you mean 'nsga"),
        ("algorithm.kind", "nsga3", "nsga3 needs at least 2 objectives; got 1"),
        ("algorithm", {"population": 8}, "the key 'kind' is missing"),
        ("budget.evaluations", 3, "$.budget.evaluations (line 35): expected at least 12, for "),
        ("budget.evaluations", True, "expected a whole number; got True"),
        ("seed", -1, "$.seed"),
        ("engine", {"device": "gpu"}, "$.engine.device"),
        ("engine", {"device": "cpu", "residency": "pinned"}, "$.engine.residency (line "),
        ("engine", {"deltas": "int8"}, "int8 takes an operator that adds task vectors, one of task_arithmetic, "),
        ("executor", {"kind": "ray", "workers": 0}, "$.executor.workers"),
        ("executor", {"kind": "ray", "cpus": float("inf")}, "$.executor.cpus"),
        ("executor", {"kind": "ray", "job_timeout_seconds": float("nan")}, "$.executor.job_timeout_seconds"),
        ("pool.experts", {"uniform": "a"}, "'uniform' means something else"),
    ],
)
def test_each_fault_names_its_place(folder: Path, key: str, value: Any, expected: str) -> None:
    assert expected in faults(write(folder, edited((key, value))))


def test_nested_files_name_themselves_in_their_faults(folder: Path) -> None:
    write(folder, edited()["space"] | {"knots": "x"}, "space.yaml")
    fitness = edited()["fitness"] | {"objectvies": 1}
    write(folder, fitness, "fit.yaml")
    message = faults(write(folder, edited(("space", "space.yaml"), ("fitness", "fit.yaml"))))
    assert "$.space.knots" in message
    assert f"{folder / 'space.yaml'}" in message
    assert f"{folder / 'fit.yaml'}): unknown key; did you mean 'objectives'?" in message
    assert "did you mean" in faults(write(folder, edited(("space", "task_arithmetics"))))


def test_paths_in_nested_files_start_at_that_file(folder: Path) -> None:
    (folder / "fits" / "here").mkdir(parents=True)
    write(folder / "fits", GOOD["fitness"] | {"tasks": ["here"]}, "fit.yaml")
    experiment = load_experiment(write(folder, edited(("fitness", "fits/fit.yaml"))))
    assert experiment.fitness.tasks == (folder / "fits" / "here",)


def test_set_changes_values_and_is_named_in_faults(folder: Path) -> None:
    name = write(folder, GOOD)
    experiment = load_experiment(name, ["budget.evaluations=99", "executor.kind=ray", "space.knots=1", "seed=1e0"[:6]])
    assert experiment.budget.evaluations == 99
    assert experiment.executor.kind == "ray"
    message = faults(name, "budget.evaluations=lots", "name", "version.deeper.key=1")
    assert "$.budget.evaluations (--set budget.evaluations=lots): expected a whole number; got 'lots'" in message
    assert "--set name: expected key.key=value" in message
    assert "only keys of mappings" in message


def test_another_kind_starts_from_its_own_defaults(folder: Path) -> None:
    name = write(folder, edited(("executor", {"kind": "ray", "workers": 3})))
    assert load_experiment(name, ["executor.kind=serial"]).executor.kind == "serial"
    same = load_experiment(name, ["executor.kind=ray", "executor.gpus=1"])
    assert (same.executor.kind, same.executor.workers, same.executor.gpus) == ("ray", 3, 1.0)  # type: ignore[union-attr]
    assert load_experiment(name, ["algorithm.kind=cma", "algorithm.population=9"]).algorithm.population_at(0) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\na: 2", "$.a (line 1): the key stands twice"),
        ("1: x", "keys must be text"),
        ("yes: x", "keys must be text"),
        ("a: !!python/object:os.system x", "cannot be read"),
        ("&a [*a]", "contains itself"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("just text", "expected a mapping"),
        ("", "expected a mapping"),
    ],
)
def test_broken_yaml_is_one_clear_message(folder: Path, text: str, expected: str) -> None:
    assert expected in faults(write(folder, text))


def test_a_file_that_is_no_text_or_not_there(folder: Path) -> None:
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in faults(str(folder / "binary.yaml"))
    assert "did you mean 'quickstart'?" in faults("quickstrat")


def test_exponents_are_numbers() -> None:
    assert parse("a: 1e-3\nb: -2.5E4\nc: 1e\n", "x").data == {"a": 1e-3, "b": -2.5e4, "c": "1e"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc:{}[]-#'\"\n !&*", max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
        max_leaves=8,
    )
)
def test_plain_data_survives(data: Any) -> None:
    assert parse(yaml.safe_dump(data), "x").data == data


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse(text, "x")
    except ConfigError:
        return


def test_every_shipped_file_loads() -> None:
    assert "quickstart" in shipped_names("experiments")
    for name in shipped_names("search_spaces"):
        load_space(name)
    for name in shipped_names("fitness"):
        load_fitness(name)
    assert find("quickstart", "experiments") == shipped_folder("experiments") / "quickstart.yaml"
    assert load_experiment("quickstart").name == "quickstart"


def test_config_is_light() -> None:
    code = (
        "import sys, evomerge.config; print(sorted({'torch','ray','transformers','lm_eval','vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
