"""The README's picture of a report: verdict, front, choice. `make picture`, after `make quickstart`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chromium import chromium, find_chromium

from evomerge.reports import summarize, write_report
from evomerge.runs import RunStore

PARTS = "header, nav, #verdict, #front > .legend, #front > .grid > :nth-child(-n + 2), #which .wishes, #recipe-view"
WIDTH = 1200


def main(run: Path, out: Path) -> None:
    """Photograph parts of the report of a run, in the order of the page."""
    program = find_chromium()
    if program is None:
        sys.exit("no chromium found; apt-get install chromium, or name one in EVOMERGE_CHROMIUM")
    with RunStore.read(run) as store:
        summary = summarize(store)
    with tempfile.TemporaryDirectory() as scratch, chromium(program) as browser:
        page = browser.page(width=WIDTH)
        page.open(write_report(summary, Path(scratch) / "report.html"))
        page.evaluate(
            f"(() => {{ const shown = [...document.querySelectorAll({PARTS!r})];"
            "for (const e of document.querySelectorAll('body *')) {"
            "if (!shown.some(s => s.contains(e) || e.contains(s))) e.style.display = 'none'; } })()"
        )
        page.resize(WIDTH, page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)"))
        page.evaluate("new Promise(done => setTimeout(done, 500))")
        page.screenshot(out)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path("runs/quickstart"), Path("docs/images/report.png"))
