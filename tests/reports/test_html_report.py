from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evomerge.reports import Summary, summarize, verdict, write_report
from evomerge.reports.data import to_data
from evomerge.reports.html import render
from evomerge.reports.summary import Measure
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
    assert len(page.scripts) == 3
    assert page.block("evomerge-data") == json.loads(json.dumps(to_data(found)))
    scatters = [attributes for _, attributes in page.elements if attributes.get("class") == "plot scatter"]
    count = len(found.objectives)
    assert len(scatters) == (0 if found.knee is None else max(1, count * (count - 1) // 2))
    assert any(attributes.get("id") == "cube" for _, attributes in page.elements) == (count == 3)
    unsure = found.knee is not None and found.confirmation is None
    assert ("Nothing here is confirmed yet." in page.text) == unsure


def test_nothing_is_fetched(summary: Make) -> None:
    page = Page(render(summary()))
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "data", "action", "style"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    own = render(summary()).split("<script>")[0]
    assert "url(" not in own
    assert "@import" not in own


def test_hostile_names_and_reasons_stay_text(summary: Make) -> None:
    found = summary(experts=(HOSTILE, "<img src=x onerror=alert(1)>"), failures=(f"NaN in {HOSTILE}", "{{ 7 * 7 }}"))
    text = render(found)
    page = Page(text)
    assert len(page.scripts) == 3
    assert "<script>alert" not in text
    assert "<img" not in text
    assert f"NaN in {HOSTILE}" in page.text
    assert "{{ 7 * 7 }}" in page.text
    names = [candidate["name"] for candidate in page.block("evomerge-data")["candidates"]]
    assert HOSTILE in names


def test_the_candidate_of_the_verdict_stands_in_the_first_table(summary: Make) -> None:
    found = summary(goals=("max",))
    assert found.confirmation is not None
    gains = tuple(
        replace(gain, measure=Measure(mean=0.5, low=0.4 if gain.candidate == 11 else -0.1, high=0.6, items=400))
        for gain in found.confirmation.gains
    )
    confirmation = replace(found.confirmation, gains=gains, knee=0, best={"a": 0})
    found = replace(found, confirmation=confirmation)
    assert verdict(found).candidate == 11
    first_table = Page(render(found)).text.split("Gains over the anchors")[0].split("95 % intervals")[1]
    assert "#11" in first_table
    assert "verdict" in first_table


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
    for shown in ("out of memory", "evomerge export", "seed", found.folder, "task_a"):
        assert shown in text


def test_write_report_replaces_the_old_one_whole(run: Callable[..., RunStore], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    found = summarize(run())
    assert write_report(found, out) == out
    first = out.read_text(encoding="utf-8")
    assert first == render(found)
    write_report(summarize(run(finished=False)), out)
    assert out.read_text(encoding="utf-8") != first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert out.stat().st_size < 2**18


def test_equal_failures_share_a_row(summary: Make) -> None:
    found = summary(failures=("NaN",) * 25 + ("out of memory",))
    page = Page(render(found))
    assert page.text.count("out of memory") == 2  # its reason, and its attempt
    assert "#31 and 5 more" in page.text
