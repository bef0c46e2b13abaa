from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evomerge.reports import Summary, summarize, write_report
from evomerge.reports.html import render
from evomerge.runs import RunStore

Make = Callable[..., Summary]
HOSTILE = "</script><script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """What a browser would see: elements, scripts, text, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def block(self, identity: str) -> Any:
        ids = [attributes.get("id") for tag, attributes in self.elements if tag == "script"]
        return json.loads(self.scripts[ids.index(identity)])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"goals": ("max",)},
        {"goals": ("max", "min", "max")},
        {"goals": ("max",) * 4},
        {"lift": -0.3},
        {"finished": False},
        {"searched": 0, "finished": False, "failures": ("NaN",)},
        {"experts": ("only",)},
    ],
)
def test_every_kind_of_run_gives_a_whole_page(summary: Make, fields: dict[str, Any]) -> None:
    found = summary(**fields)
    page = Page(render(found))
    assert page.open == []
    assert len(page.scripts) == 4
    assert page.block("evomerge-data") == json.loads(json.dumps(found.to_data()))
    drawn = {attributes.get("id") for tag, attributes in page.elements if attributes.get("class") == "plot"}
    assert drawn == set(page.block("evomerge-figures"))
    assert ("Nothing here is confirmed yet." in page.text) == (found.confirmation is None)


def test_nothing_is_fetched(summary: Make) -> None:
    page = Page(render(summary()))
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "data", "action", "style"} & attributes.keys()
    own = render(summary()).split("<script>")[0]
    assert "url(" not in own
    assert "@import" not in own


def test_hostile_names_and_reasons_stay_text(summary: Make) -> None:
    found = summary(experts=(HOSTILE, "<img src=x onerror=alert(1)>"), failures=(f"NaN in {HOSTILE}", "{{ 7 * 7 }}"))
    text = render(found)
    page = Page(text)
    assert len(page.scripts) == 4
    assert "<script>alert" not in text
    assert "<img" not in text
    assert f"NaN in {HOSTILE}" in page.text
    assert "{{ 7 * 7 }}" in page.text
    names = [candidate["name"] for candidate in page.block("evomerge-data")["candidates"]]
    assert HOSTILE in names


def test_numbers_stand_in_tables(summary: Make) -> None:
    found = summary(failures=("out of memory",))
    text = Page(render(found)).text
    knee = found.entries[found.picks["knee"]]
    assert knee.confirmed is not None
    assert found.confirmation is not None
    for measure in (knee.confirmed.mean, *knee.confirmed.each):
        assert f"{measure.mean:.3f} [{measure.low:.3f}, {measure.high:.3f}]" in text
    for gain in found.confirmation.gains:
        assert f"{gain.measure.mean:+.3f} [{gain.measure.low:+.3f}, {gain.measure.high:+.3f}]" in text
    weight = knee.recipe.parameter("weight").at("attention", 0)[0]
    for shown in (f"{weight:.3f}", "out of memory", "evomerge export", "seed", found.folder, "task_a"):
        assert shown in text


def test_write_report_replaces_the_old_one_whole(run: Callable[..., RunStore], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    store = run()
    assert write_report(store, out) == out
    first = out.read_text(encoding="utf-8")
    assert first == render(summarize(store))
    write_report(run(finished=False), out)
    assert out.read_text(encoding="utf-8") != first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert out.stat().st_size < 8 * 2**20
