"""Imports point downwards, and the login-node commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "evomerge"

LAYER = {
    "": 0,
    "errors": 0,
    "rng": 0,
    "lasting": 0,
    "secrecy": 0,
    "shipped": 0,
    "yaml_lines": 0.5,
    "recipe": 1,
    "config": 2,
    "outcome": 3,
    "pareto": 3,
    "spaces": 3,
    "population": 4,
    "merging": 4,
    "fitness": 4,
    "engines": 5,
    "workers": 6,
    "runs": 6,
    "reports": 7,
    "trackers": 7.5,
    "stopping": 8,
    "opening": 8.1,
    "blame": 8,
    "evaluator": 8.1,
    "guard": 8.1,
    "artefact": 8.15,
    "fitting": 8.15,
    "pools": 8.2,
    "register": 8.15,
    "loop": 8.16,
    "generations": 8.17,
    "steady": 8.17,
    "search": 8.2,
    "watching": 8.3,
    "launch": 8.3,
    "merge": 8.1,
    "banks": 8.4,
    "plan": 8.4,
    "probe": 8.5,
    "publish": 8.4,
    "replay": 8.4,
    "questions": 8.3,
    "starter": 8.4,
    "api": 8.5,
    "doctor": 8.4,
    "cli": 9,
    "__main__": 10,
}
HEAVY = {"torch", "transformers", "vllm", "lm_eval", "ray"}
CALL = """
def call(*arguments):
    import sys
    from evomerge.cli import main
    sys.argv = ["evomerge", *arguments]
    try:
        main()
    except SystemExit:
        pass
"""
MAY_BE_HEAVY = {"merging", "engines", "workers"}
FACADE = PACKAGE / "__init__.py"
"""Names what lies above it for type checkers, and imports that when it is asked for."""


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Pairs of imported module and whether it is imported when the file is."""
    tree = ast.parse(path.read_text())
    eager = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in eager
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in eager) for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    assert own in LAYER, f"{path}: give the new room {own!r} a layer"
    for module, eager in imports(path):
        if path == FACADE and not eager:
            continue
        parts = module.split(".")
        if parts[0] == "evomerge":
            other = parts[1] if len(parts) > 1 else ""
            assert other == own or LAYER[other] < LAYER[own], f"{path} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    heavy = [(module, eager) for module, eager in imports(path) if module.split(".")[0] in HEAVY]
    allowed = room(path) in MAY_BE_HEAVY | {"doctor"}
    assert allowed or not heavy, f"{path} may not import {heavy}"


@pytest.mark.parametrize(
    "code",
    [
        "import evomerge.cli, evomerge.launch, evomerge.replay, evomerge.plan",
        "import evomerge; evomerge.run, evomerge.open_run, evomerge.load_experiment",
        "import evomerge.reports, evomerge.runs, evomerge.population, evomerge.fitness, evomerge.spaces",
        "call('--help')",
        "call('check', 'quickstart')",
        "call('plan', 'quickstart')",
    ],
)
def test_login_node_commands_import_nothing_heavy(code: str) -> None:
    code = CALL + code + f"\nimport sys\nprint('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1:] == ["heavy: []"], result.stdout + result.stderr
