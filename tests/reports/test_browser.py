"""The report in a real browser: it opens alone, without a complaint, and everything on it answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.reports import Summary, summarize, write_report
from evomerge.runs import RunStore

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "artifacts" / "report"
HOSTILE = "</script><script>window.broken = 1</script>"
IMAGE = '<img src="x" onerror="window.broken = 1">'

_spec = importlib.util.spec_from_file_location("chromium", ROOT / "experiments" / "benchmarks" / "chromium.py")
assert _spec is not None
assert _spec.loader is not None
chromium: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chromium)

PROGRAM = chromium.find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium found: the report was not opened in a browser; apt-get install chromium"
)

Make = Callable[..., Summary]
DRAWN = """new Promise(done => {
  let looks = 500;
  const look = () => [...charts.values()].some(one => one.stale) && looks-- ? setTimeout(look, 20) : done(looks);
  setTimeout(look, 50);
})"""
"""Waits until every chart is drawn, 10 seconds at most."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.chromium(PROGRAM) as started:
        yield started


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """The page of a summary in a window that shows all of it."""

    def opened_(summary: Summary, width: int = 1200, dark: bool = False) -> Any:
        file = write_report(summary, tmp_path / "report.html")
        page = browser.page(width=width, dark=dark)
        page.open(file)
        for _ in range(2):  # charts that are drawn change the height
            page.resize(width, page.evaluate("document.body.scrollHeight"))
            page.evaluate(DRAWN)
        assert page.requests == [file.as_uri()]
        assert page.complaints == []
        return page

    return opened_


def text(page: Any, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def set_slider(page: Any, selector: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {value};"
        "e.dispatchEvent(new Event('input')); })()"
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("two-objectives", {}),
        ("one-objective", {"goals": ("max",)}),
        ("three-objectives", {"goals": ("max", "min", "max"), "failures": ("out of memory",)}),
        ("unfinished", {"finished": False}),
        ("no-gain", {"lift": -0.3, "goals": ("max", "min")}),
        ("nothing-scored", {"searched": 0, "finished": False, "failures": ("NaN",)}),
        ("paths", {"paths": True}),
    ],
)
def test_every_kind_of_run_opens_alone_and_draws(
    summary: Make, opened: Callable[..., Any], name: str, fields: dict[str, Any]
) -> None:
    page = opened(summary(**fields))
    empty = page.evaluate("[...document.querySelectorAll('.plot')].filter(e => !e.querySelector('svg, canvas')).length")
    assert empty == 0
    page.screenshot(PICTURES / f"{name}.png")


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_telephone_in_both_schemes(summary: Make, opened: Callable[..., Any], dark: bool) -> None:
    page = opened(summary(goals=("max", "min", "max")), width=400, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    red, *_ = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red < 64) == dark
    page.screenshot(PICTURES / f"telephone-{'dark' if dark else 'light'}.png")


def test_a_click_selects_everywhere(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary()
    assert found.confirmation is not None
    other = next(entry.id for entry in found.finalists if entry.id not in found.picks.values())
    page = opened(found)
    x, y = page.point(f".mark[data-candidate='{other}'] circle")
    page.click(x, y)
    assert f"#{other}" in text(page, "#recipe-view")
    assert text(page, "#choice") == found.export_command(other)
    assert page.evaluate("document.getElementById('choose-candidate').value") == str(other)
    assert page.evaluate(f"document.querySelector('.pick[data-candidate=\"{other}\"]').ariaPressed") == "true"
    assert text(page, "#against-parents").count("task_a") == len(found.parents)


def test_hovering_shows_the_recipe(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary()
    knee = found.entries[found.picks["knee"]]
    page = opened(found)
    page.move(*page.point(f".mark[data-candidate='{knee.id}'] path"))
    assert page.evaluate("document.getElementById('tip').hidden") is False
    assert knee.description in text(page, "#tip")
    assert "null" not in text(page, "#tip")


def test_the_keyboard_selects_and_compares(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary()
    first, second = found.finalists[0].id, found.finalists[1].id
    page = opened(found)
    page.evaluate(f"document.querySelector('.mark[data-candidate=\"{first}\"]').focus()")
    page.press("Enter")
    assert f"#{first}" in text(page, "#recipe-view")
    page.evaluate(
        f"(() => {{ const e = document.getElementById('choose-other'); e.value = '{second}';"
        "e.dispatchEvent(new Event('change')); })()"
    )
    assert text(page, "#comparison h3").startswith(f"#{second}")
    a, b = (found.entries[i].recipe.parameter("weight").at("embed", None)[0] for i in (first, second))
    assert page.evaluate("document.querySelector('#comparison .heat').textContent") == f"{b - a:.3f}"


def test_sliders_rank_the_front_again(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary(goals=("max", "max"))
    assert found.confirmation is not None
    page = opened(found)
    for objective, other in (("a", "b"), ("b", "a")):
        set_slider(page, f"input[aria-label='weight of {objective}']", "100")
        set_slider(page, f"input[aria-label='weight of {other}']", "0")
        best = found.confirmation.best[objective]
        assert text(page, ".ranking tbody .pick") == found.entries[best].name
        assert text(page, "#choice") == found.export_command(best)


def test_levels_come_before_weights(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary(goals=("max", "min"))
    assert found.confirmation is not None
    page = opened(found)
    set_slider(page, "input[aria-label='weight of a']", "100")
    set_slider(page, "input[aria-label='weight of b']", "0")
    set_slider(page, "input[aria-label='b at most']", "document.querySelector(\"[aria-label='b at most']\").min")
    assert text(page, ".ranking tbody .pick") == found.entries[found.confirmation.best["b"]].name
    missed = page.evaluate("[...document.querySelectorAll('.ranking tbody tr')].map(e => e.lastChild.textContent)")
    assert missed[0] == "none"
    assert set(missed[1:]) <= {"none", "b"}
    assert missed == sorted(missed, reverse=True)


def test_a_range_on_an_axis_filters(summary: Make, opened: Callable[..., Any]) -> None:
    page = opened(summary())
    page.evaluate("document.querySelector('#parallel .control').focus()")
    for _ in range(8):
        page.press("ArrowUp")
    kept, total = (int(word) for word in text(page, "#kept").split() if word.isdigit())
    assert 0 < kept < total == 8
    assert page.evaluate("document.querySelectorAll('.scatter .mark.dim').length") == total - kept
    page.press("Escape")
    assert text(page, "#kept") == ""


def test_the_table_of_candidates_sorts_and_searches(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary()
    page = opened(found)
    page.evaluate("document.getElementById('candidates').open = true; new Promise(done => setTimeout(done, 50))")
    rows = "[...document.querySelectorAll('#candidates tbody tr')].map(e => e.firstChild.textContent)"
    assert page.evaluate(rows) == [entry.name for entry in found.entries.values()]
    page.evaluate("document.querySelectorAll('#candidates .sort')[2].click()")
    means = {e.name: e.estimated.mean.mean for e in found.entries.values() if e.estimated is not None}
    assert [means[name] for name in page.evaluate(rows)] == sorted(means.values())
    page.evaluate(
        "(() => { const e = document.querySelector('#candidates input'); e.value = 'sort as it is';"
        "e.dispatchEvent(new Event('input')); })()"
    )
    assert page.evaluate(rows) == ["sort"]


def test_paths_and_lineage_are_drawn(run: Callable[..., RunStore], opened: Callable[..., Any]) -> None:
    folder = run(paths=True).folder
    with RunStore.open(folder) as store:
        store.set_meta("lineage", json.dumps({"8": {"parents": [4, 5]}, "11": {"parents": [8, 6]}}))
    with RunStore.read(folder) as store:
        page = opened(summarize(store))
    page.evaluate("select(11)")
    strip = page.evaluate("[...document.querySelectorAll('.strip tr')].map(r => [...r.cells].map(c => c.textContent))")
    assert strip[1] == ["layer of", "the merge", "the merge", "the merge", "the merge", "rev"]
    assert strip[2] == ["layer", "0", "0", "1", "2", "3"]
    assert strip[3] == ["scale", "1", "1", "1", "1", "0.500"]
    names = page.evaluate("[...document.querySelectorAll('#lineage .mark')].map(e => e.ariaLabel.split(' ')[0])")
    assert names == ["#4", "#5", "#6", "#8", "#11"]
    assert page.evaluate("document.querySelectorAll('#lineage .edge').length") == 4


def test_what_the_algorithm_tells_of_itself_is_drawn(run: Callable[..., RunStore], opened: Callable[..., Any]) -> None:
    folder = run().folder
    told = [{"sigma, a": 0.3, "sigma, b": 0.2, "restarts": 0.0}, {"sigma, a": 0.1, "restarts": 1.0}]
    with RunStore.open(folder) as store:
        for generation, state in enumerate(told):
            store.note("algorithm", generation, state)
    with RunStore.read(folder) as store:
        page = opened(summarize(store))
    lines = "[...document.querySelectorAll('#states .plot')].map(e => e.querySelectorAll('path.line').length)"
    assert page.evaluate(lines) == [2, 1], "those that begin with one word are drawn together"
    assert page.evaluate("[...document.querySelectorAll('#states .name')].map(e => e.textContent)") == [
        "a",
        "b",
        "restarts",
    ]
    rows = "[...document.querySelectorAll('#states + details tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    assert page.evaluate(rows) == [["8", "0.300", "0.200", "0.000"], ["12", "0.100", "–", "1.000"]]


def test_hostile_names_stay_text(summary: Make, opened: Callable[..., Any]) -> None:
    found = summary(experts=(HOSTILE, IMAGE), failures=(f"NaN in {HOSTILE} {IMAGE}",), name="made-up")
    page = opened(found)
    expert = next(entry for entry in found.anchors if entry.name == IMAGE)
    page.move(*page.point(f".mark[data-candidate='{expert.id}'] path"))
    assert IMAGE in text(page, "#tip")
    page.evaluate(f"select({expert.id}); select({found.finalists[0].id}, true)")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert HOSTILE in text(page, "#run")
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
