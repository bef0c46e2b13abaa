"""Every command line and every Python example of the docs runs, in the order of its page."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from evomerge.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"evomerge run my.yaml --executor gpu --out /data/runs/mine"}
"""What needs a cluster with GPUs is only parsed."""
OWN_TESTS = {"extending.md", "fitness.md", "tutorial.md"}
"""Whose Python examples other tests run: plugins, scorers, the tutorial."""

Run = Callable[..., tuple[int, str, str]]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def lines_of(page: Path, program: str) -> list[str]:
    """Command lines without their comments; in blocks that show output, those behind a prompt."""
    found = []
    for language, text in blocks(page):
        for line in text.splitlines():
            shown = line.removeprefix("$ ") if language == "console" and line.startswith("$ ") else line
            if (language != "console" or shown != line) and shown.startswith(f"{program} "):
                found.append(shown.partition("  #")[0].strip())
    return found


def test_pages_without_commands_are_no_accident() -> None:
    with_commands = {page.name for page in PAGES if lines_of(page, "evomerge")}
    assert {"README.md", "cluster.md", "fitness.md", "how-to.md", "merging.md", "report.md"} <= with_commands


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "tutorial.md"], ids=lambda page: page.name)
def test_command_lines_run(page: Path, evomerge: Run, reader: Path) -> None:
    for name, text in yaml_files(page):
        (reader / name).write_text(text)
    for line in lines_of(page, "evomerge"):
        arguments = shlex.split(line)[1:]
        if line in ELSEWHERE:
            get_command(app).commands[arguments[0]].make_context(arguments[0], arguments[1:])  # type: ignore[attr-defined]
            continue
        if page.name == "README.md" and arguments[:2] in (["run", "mine.yaml"], ["init", "mine.yaml"]):
            arguments = at_the_beginning(arguments, reader)
        code, out, error = evomerge(*arguments)
        assert code == 0, f"{line}\n{out}{error}"


def at_the_beginning(arguments: list[str], folder: Path) -> list[str]:
    """The README's reader has no experiment yet; the run is a short one."""
    if arguments[0] == "init":
        (folder / "mine.yaml").unlink()
        (folder / "runs" / "mine").rename(folder / "runs" / "before")
        return arguments
    return [*arguments, "--set", "budget.evaluations=34"]


def yaml_files(page: Path) -> list[tuple[str, str]]:
    """Files that a page shows whole: their first line is their name."""
    shown = [(text.partition("\n")[0], text) for language, text in blocks(page) if language == "yaml"]
    return [(first.removeprefix("# "), text) for first, text in shown if re.fullmatch(r"# [\w-]+\.yaml", first)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_exist(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"(?:evomerge|'\.)\[([\w,]+)\]", page.read_text())
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {line.split()[1] for line in lines_of(page, "make")} | set(
        re.findall(r"`make ([a-z0-9-]+)", page.read_text())
    )
    assert named <= targets


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(language == "python" for language, _ in blocks(p)) and p.name not in OWN_TESTS],
    ids=lambda page: page.name,
)  # fmt: skip
def test_python_examples_run(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(reader / "cache"))
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), {})


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "reference").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
