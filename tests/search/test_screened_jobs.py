"""Who is looked at before being scored: candidates of the search, once each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.outcome import Job
from evomerge.runs import RunStore

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


@pytest.mark.parametrize("algorithm", [{"kind": "nsga2"}, {"kind": "random", "in_flight": 2}])
def test_anchors_and_confirmations_are_not_screened(tmp_path: Path, algorithm: dict[str, object]) -> None:
    jobs: list[Job] = []
    config = synthetic.experiment(algorithm={"population": 6, **algorithm})
    synthetic.drive(tmp_path, config, worker=lambda: synthetic.SyntheticWorker(jobs.append))
    with RunStore.read(tmp_path) as store:
        kinds = {candidate.id: candidate.kind for candidate in store.candidates()}
    assert {kinds[job.candidate] for job in jobs if job.screened} == {"search"}
    assert {kinds[job.candidate] for job in jobs if not job.screened and job.phase == "search"} == {"anchor"}
    assert not any(job.screened for job in jobs if job.phase == "confirm")
    screened = [job.candidate for job in jobs if job.screened]
    assert len(screened) == len(set(screened)) == 18
