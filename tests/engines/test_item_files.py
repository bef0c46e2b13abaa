import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.engines.item_files import read_rows, rows_of

ROWS = [{"prompt": str(number // 2), "answer": "a\nb"} for number in range(6)]
LINES = "\n".join(map(json.dumps, ROWS))


def rows(folder: Path, files: Any, split: str = "test", source: str = "json", **more: Any) -> int | None:
    content = {"dataset_path": source, "dataset_kwargs": {"data_files": files}, "test_split": split, **more}
    found = rows_of(folder / "task.yaml", content)
    return None if found is None else len(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("items.jsonl", LINES + "\n\n"),
        ("items.json", json.dumps(ROWS, indent=1)),
        ("items.csv", "prompt,answer\n" + '1,"a\nb"\n' * 6),
    ],
)
def test_rows_of_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    source = "csv" if name.endswith("csv") else "json"
    assert rows(tmp_path, {"test": name, "train": "other"}, source=source) == 6
    assert rows(tmp_path, {"test": [name, name]}, source=source) == 12
    assert rows(tmp_path, name, split="train", source=source) == 6


def test_equal_rows_are_equal_in_any_order_of_their_keys(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1, "b": 2}\n{"b": 2, "a": 1}\n')
    one, other = read_rows(tmp_path / "items.jsonl") or ()
    assert one == other


def test_what_only_lm_eval_can_tell_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(LINES)
    (tmp_path / "broken.jsonl").write_text("{")
    here = {"test": "items.jsonl"}
    assert rows(tmp_path, here) == 6
    assert rows(tmp_path, here, split="test[:3]") is None
    assert rows(tmp_path, here, source="org/set") is None
    assert rows(tmp_path, here, process_docs="mine.py") is None
    for name in ("*.jsonl", "https://x.org/items.jsonl", "broken.jsonl"):
        assert rows(tmp_path, {"test": name}) is None
    assert rows(tmp_path, {"test": []}) is None
    kwargs = {"data_files": here, "field": "data"}
    content = {"dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
    assert rows_of(tmp_path / "task.yaml", content) is None
