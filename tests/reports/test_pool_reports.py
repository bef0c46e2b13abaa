"""Tables and page of a pool's measurements."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.merging.kinship import Kinship, Products
from evomerge.recipe import DEPTH_ROLES, Role
from evomerge.reports import print_kinship, write_kinship

HOSTILE = "</script><script>alert(1)</script>"


def cell(size: int, scale: float) -> Products:
    gram = tuple(tuple(scale * (1.0 if i == j else 0.25) for j in range(size)) for i in range(size))
    return Products(base=100.0, gram=gram, shared=1000, conflicts=400)


def measured(*experts: str, layers: int = 3, without: Role = "embed") -> Kinship:
    places: list[tuple[Role, int | None]] = [(role, layer) for layer in range(layers) for role in DEPTH_ROLES]
    edges: list[tuple[Role, int | None]] = [("embed", None), ("head", None)]
    places += [edge for edge in edges if edge[0] != without]
    cells = {place: cell(len(experts), 1.0 + number) for number, place in enumerate(places)}
    return Kinship(experts=experts, dtype="bfloat16", cells=cells)


def printed(kinship: Kinship) -> str:
    stream = io.StringIO()
    print_kinship(kinship, Console(file=stream, width=80, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("experts", [("one",), ("math", "code"), ("a", "b", "c", "d", "e")])
def test_fits_80_columns_and_says_the_numbers(experts: tuple[str, ...]) -> None:
    text = printed(measured(*experts, layers=2))
    assert max(map(len, text.splitlines())) <= 80
    assert "no alarms" in text
    assert re.search(rf"^0 +40\.0 %( +14\.1){{{len(experts)}}} *$", text, flags=re.M)
    assert "embed" not in text
    if len(experts) > 1:
        assert "0.25" in text


def test_alarms_come_first_and_relatives_are_named() -> None:
    equal = measured("math", "code")
    gram = ((0.0, 0.0), (0.0, 4.0))
    zero = Kinship(
        experts=equal.experts,
        dtype="float32",
        cells={place: Products(base=100.0, gram=gram, shared=0, conflicts=0) for place in equal.cells},
    )
    assert printed(zero).startswith("alarm: math: equal to the base in every weight; remove it")
    same = {place: Products(base=100.0, gram=((1.0, 0.9), (0.9, 1.0)), shared=9, conflicts=1) for place in equal.cells}
    text = printed(Kinship(experts=equal.experts, dtype="float32", cells=same))
    assert "close relatives (cosine 0.5 or more): math, code" in text


@pytest.mark.parametrize("experts", [("one",), ("math", "code"), tuple(f"expert-{i}" for i in range(7))])
def test_the_page_is_whole_and_offline(tmp_path: Path, experts: tuple[str, ...]) -> None:
    out = write_kinship(measured(*experts), "mine", tmp_path / "deep" / "pool.html")
    page = out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["pool.html"]
    assert "<title>mine · evomerge pool</title>" in page
    block = re.search(r'<script type="application/json" id="evomerge-figures">(.*?)</script>', page, flags=re.S)
    assert block is not None
    tables = json.loads(block[1])
    assert tables.keys() == {"cosines", "changes", "conflicts", "pairs"}
    for name, table in tables.items():
        assert f'id="{name}"' in page
        assert len(table["values"]) == len(table["rows"])
        assert {len(row) for row in table["values"]} == {len(table["columns"])}
        low, high = table["range"]
        assert all(low <= value <= high for row in table["values"] for value in row)
    changes = tables["changes"]
    assert changes["rows"] == ["embed", "layer 0", "layer 1", "layer 2", "head"]
    assert len(changes["columns"]) == 3 * len(experts)
    assert changes["values"][0] == [0.0] * len(changes["columns"])
    assert changes["values"][1][0] == pytest.approx(0.1)
    assert not re.search(r'(src|href)="(?!data:)', page.split("<script>", maxsplit=1)[0])


def test_names_stay_text(tmp_path: Path) -> None:
    page = write_kinship(measured("math", HOSTILE), HOSTILE, tmp_path / "pool.html").read_text()
    assert HOSTILE not in page
    assert "[bold]" in printed(measured("[bold]math", "code"))
