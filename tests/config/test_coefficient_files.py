"""Files of coefficients: what they may hold, where they may stand, and faults with lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.config import (
    Coefficient,
    Experiment,
    ParameterSpaceConfig,
    RoutingSpaceConfig,
    load_experiment,
    load_space,
    recorded_experiment,
    shipped_folder,
)
from evomerge.errors import ConfigError

TABLE = "layer,role,expert,value\n0,,rev,0.25\n1,mlp,rev,1e-1\n,embed,rev,0\n"
RECORDS = [
    {"layer": 0, "expert": "rev", "value": 0.25},
    {"layer": 1, "role": "mlp", "expert": "rev", "value": 0.1},
    {"role": "embed", "expert": "rev", "value": 0.0},
]
READ = tuple(Coefficient.model_validate(record) for record in RECORDS)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment with a space in a folder of its own, and a table beside that space."""
    source = shipped_folder("experiments")
    data = yaml.safe_load((source / "quickstart.yaml").read_text())
    data["pool"] = {
        "base": str(source / "quickstart/models/base"),
        "experts": {"rev": str(source / "quickstart/models/rev")},
    }
    space = yaml.safe_load((shipped_folder("search_spaces") / "task_arithmetic.yaml").read_text())
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "mine.yaml").write_text(yaml.safe_dump({**space, "start_from": "found.csv"}))
    (tmp_path / "spaces" / "found.csv").write_text(TABLE)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**data, "space": "spaces/mine.yaml"}))
    return tmp_path / "mine.yaml"


def start_of(loaded: Experiment) -> tuple[Coefficient, ...]:
    assert isinstance(loaded.space, ParameterSpaceConfig)
    return loaded.space.start_from


def test_a_path_counts_from_the_file_it_stands_in(experiment: Path, tmp_path: Path) -> None:
    assert start_of(load_experiment(str(experiment))) == READ
    space = load_space(str(tmp_path / "spaces" / "mine.yaml"))
    assert isinstance(space, ParameterSpaceConfig)
    assert space.start_from == READ
    (tmp_path / "two.json").write_text(json.dumps(RECORDS[:2]))
    assert start_of(load_experiment(str(experiment), ["space.start_from=two.json"])) == READ[:2]


@pytest.mark.parametrize(
    ("name", "text"),
    [("f.json", json.dumps(RECORDS, indent=2)), ("f.yaml", yaml.safe_dump(RECORDS)), ("f.csv", "\ufeff" + TABLE)],
)
def test_every_kind_of_file_says_the_same(experiment: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert start_of(load_experiment(str(experiment), [f"space.start_from={name}"])) == READ


def test_the_merge_of_a_routing_space_takes_a_file_too(experiment: Path, tmp_path: Path) -> None:
    merge = load_space(str(tmp_path / "spaces" / "mine.yaml")).model_dump(mode="json") | {"start_from": "found.csv"}
    (tmp_path / "spaces" / "routing.yaml").write_text(yaml.safe_dump({"kind": "routing", "merge": merge}))
    space = load_space(str(tmp_path / "spaces" / "routing.yaml"))
    assert isinstance(space, RoutingSpaceConfig)
    assert space.merge is not None
    assert space.merge.start_from == READ
    assignments = ["space=spaces/routing.yaml", "algorithm={kind: graft}"]
    assert load_experiment(str(experiment), assignments).space == space


def test_a_run_remembers_the_numbers_and_not_the_file(experiment: Path, tmp_path: Path) -> None:
    record = load_experiment(str(experiment)).model_dump(mode="json")
    (tmp_path / "spaces" / "found.csv").unlink()
    assert start_of(recorded_experiment(record, "run")) == READ


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "layer,role,expert,value\n0,,rev,0.2\n1,,rev,much\n",
            "start_from[1].value (line 3, {file}): expected a number",
        ),
        ("layer,role,expert,value\n0,,rev,\n", "start_from[0].value (line 2, {file}): required, but missing"),
        ("layer,role,expert,weight\n0,,rev,1\n", "start_from[0].weight (line 2, {file}): unknown key"),
        ("layer,role,expert,value\n0.5,,rev,1\n", "start_from[0].layer (line 2, {file}): expected a whole number"),
        (
            "layer,role,expert,value\n,mlp,rev,1\n",
            "expected a layer, or the role embed or head; got layer None, role mlp",
        ),
        (
            "layer,role,expert,value\n1,head,rev,1\n",
            "expected a layer, or the role embed or head; got layer 1, role head",
        ),
        ("layer,role,expert,value\n1,mpl,rev,1\n", "did you mean 'mlp'?"),
        ("layer,expert,value,parameter\n1,rev,1,density\n", "values of searched parameters ['weight']; got 'density'"),
    ],
)
def test_faults_name_the_file_and_the_line(experiment: Path, tmp_path: Path, table: str, expected: str) -> None:
    file = tmp_path / "spaces" / "found.csv"
    file.write_text(table)
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(experiment))
    assert expected.format(file=file) in str(caught.value)


def test_a_missing_file_is_one_fault_among_all(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(experiment), ["space.start_from=none.csv", "seed=much"])
    assert [fault.path for fault in caught.value.faults] == ["$.space.start_from", "$.seed"]
    assert str(tmp_path / "none.csv") in str(caught.value)
    (tmp_path / "spaces" / "found.csv").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_space(str(tmp_path / "spaces" / "mine.yaml"))
