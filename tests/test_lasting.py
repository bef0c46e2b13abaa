from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.lasting import Lasting, undisturbed

NOISY = """
import os, sys
from pathlib import Path
from evomerge.lasting import undisturbed
with undisturbed(Path(sys.argv[1])) as terminal:
    print("seen", file=terminal, flush=True)
    print("printed by a library")
    sys.stderr.write("warned by a library\\n")
    os.system("echo said by a process")
print("afterwards")
"""


def test_a_pipe_without_a_reader_takes_nothing_and_complains_not() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", buffering=1)
    lasting = Lasting(stream)
    assert lasting.write("read\n") == 5
    assert os.read(reader, 100) == b"read\n"
    os.close(reader)
    for _ in range(3):
        assert lasting.write("lost\n") == 5
        lasting.flush()
    stream.close()


def on_a_terminal(tmp_path: Path) -> tuple[str, str]:
    """What the noisy program shows there, and what lies in its log."""
    master, slave = os.openpty()
    command = [sys.executable, "-c", NOISY, str(tmp_path / "run" / "logs" / "console.log")]
    assert subprocess.run(command, stdout=slave, stderr=slave, check=False).returncode == 0
    os.close(slave)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    return shown, (tmp_path / "run" / "logs" / "console.log").read_text()


def test_only_one_writes_to_the_terminal(tmp_path: Path) -> None:
    shown, log = on_a_terminal(tmp_path)
    assert shown.split() == ["seen", "afterwards"]
    assert sorted(log.split("\n")) == ["", "printed by a library", "said by a process", "warned by a library"]


def test_elsewhere_nothing_is_redirected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with undisturbed(tmp_path / "logs" / "console.log") as stream:
        print("a line", file=stream)
        print("another")
    assert capsys.readouterr().out == "a line\nanother\n"
    assert not (tmp_path / "logs").exists()
