from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.errors import StoreError
from evomerge.runs import RunStore, holder

_DRIVER = """
import sys
from pathlib import Path
from evomerge.runs import RunStore
store = RunStore.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_in_this_process_is_refused_by_name(store: RunStore) -> None:
    for method in (RunStore.open, lambda folder: RunStore.create(folder, {})):
        with pytest.raises(StoreError, match=rf"only driver of this run; got another one, pid {os.getpid()} on "):
            method(store.folder)


def test_a_driver_in_another_process_holds_the_run_until_it_is_killed(store: RunStore) -> None:
    store.close()
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"got another one, pid {driver.pid} on "):
            RunStore.open(store.folder)
        assert (holder(store.folder) or "").startswith(f"pid {driver.pid} on ")
        driver.kill()
        driver.wait(30)
        assert holder(store.folder) is None
        RunStore.open(store.folder).close()


def test_nobody_holds_a_run_that_was_closed_or_never_made(store: RunStore, tmp_path: Path) -> None:
    assert holder(store.folder) is not None
    store.close()
    assert holder(store.folder) is None
    assert holder(tmp_path / "nowhere") is None


def test_looking_who_holds_a_run_does_not_keep_a_driver_out(store: RunStore) -> None:
    store.close()
    for _ in range(20):
        holder(store.folder)
        RunStore.open(store.folder).close()
