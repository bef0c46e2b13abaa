"""Secrets of the environment get into no log, no record and no report."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import pytest

from evomerge.secrecy import Redacting, redacted
from evomerge.workers.base import one_line

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"
KEY = "s3cr3t-value-of-a-key"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("GREETING", "hello world and more")


def test_values_of_secret_variables_are_named_instead() -> None:
    assert redacted(f"GET /?k={KEY} said hello world and more, true") == (
        "GET /?k=[MY_API_KEY] said hello world and more, true"
    )


def test_what_looks_like_a_hub_token_goes_whatever_it_is_called() -> None:
    assert redacted(f"Bearer {TOKEN}.") == "Bearer [hub token]."
    assert redacted("hf_transfer is installed") == "hf_transfer is installed"
    assert redacted("at hf_oauth_" + "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.x-1. Next") == "at [hub token]. Next"
    assert redacted(f"a_{TOKEN}") == "a_[hub token]"


def test_secrets_are_known_in_other_clothes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILE_API_KEY", "key+from/a=file\n")
    monkeypatch.setenv("TWO_LINE_SECRET", "the first line\nand the second")
    told = redacted("Bearer key+from/a=file, ?key=key%2Bfrom%2Fa%3Dfile, 'the first line\\nand the second'")
    assert told == "Bearer [FILE_API_KEY], ?key=[FILE_API_KEY], '[TWO_LINE_SECRET]'"
    assert one_line(ValueError(f"got {os.environ['TWO_LINE_SECRET']}")) == "ValueError: got [TWO_LINE_SECRET]"


def test_a_secret_inside_another_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG_TOKEN", f"{KEY}-and-more")
    assert "and-more" not in redacted(f"{KEY}-and-more")


def test_a_file_that_secrets_do_not_get_into() -> None:
    buffer = io.StringIO()
    file = cast("Any", Redacting(buffer))
    print(f"a {KEY} b", file=file, flush=True)
    assert buffer.getvalue() == "a [MY_API_KEY] b\n"


def test_nothing_that_a_run_writes_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that shows its secrets in every way it can: prints, log records, errors."""
    from evomerge.config import load_experiment
    from evomerge.errors import RunError
    from evomerge.launch import launch
    from evomerge.stopping import Stop

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "leaky.py").write_text(
        "import logging, os, sys\n"
        "def leak(engine, items):\n"
        "    for name in ('HF_TOKEN', 'MY_API_KEY'):\n"
        "        print(os.environ[name]); print(os.environ[name], file=sys.stderr)\n"
        "        logging.getLogger('transformers').error(os.environ[name])\n"
        '    raise ValueError(f\'401 for {os.environ["HF_TOKEN"]} and {os.environ["MY_API_KEY"]}\')\n'
    )
    scorer = f"{{own: {{kind: function, function: 'leaky:leak', items: 40, folder: {tmp_path}}}}}"
    fitness = f"{{scorers: {scorer}, objectives: [{{name: own, task: own}}], items: {{search: 8, confirm: 8}}}}"
    changes = ["executor={kind: serial}", "algorithm={kind: cma}", f"fitness={fitness}"]
    experiment = load_experiment("quickstart", changes)
    with pytest.raises(RunError) as caught:
        for _ in launch(experiment, tmp_path / "run", Stop()):
            pass
    assert "[HF_TOKEN]" in str(caught.value) or "[hub token]" in str(caught.value)
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any("logs" in file.parts for file in written)
    texts = {file: file.read_bytes() for file in written}
    texts[Path("message")] = str(caught.value).encode()
    for file, text in texts.items():
        assert TOKEN.encode() not in text, file
        assert KEY.encode() not in text, file
    assert any(b"[MY_API_KEY]" in text for text in texts.values())
