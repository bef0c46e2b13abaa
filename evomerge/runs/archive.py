"""The outcome of a run as canonical bytes: what a deterministic run determines, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable

from evomerge.outcome import Responses
from evomerge.runs.records import Candidate, Failure, Result

__all__ = ["archive"]


def archive(candidates: Iterable[Candidate], results: Iterable[Result], failures: Iterable[Failure]) -> bytes:
    """Canonical JSON: keys sorted, no spaces, floats in their shortest exact form, records by candidate and phase.

    Clocks, workers, attempts, the order of completion and the wording of failures are left out, because an
    interruption changes them.
    """
    data = {
        "format": 4,
        "candidates": [_candidate(candidate) for candidate in sorted(candidates, key=lambda c: c.id)],
        "results": [_result(result) for result in sorted(results, key=lambda r: (r.candidate, r.phase, r.round))],
        "failures": [
            {"candidate": failure.candidate, "phase": failure.phase, "stage": failure.stage}
            for failure in sorted(failures, key=lambda f: (f.candidate, f.phase))
        ],
    }
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _candidate(candidate: Candidate) -> dict[str, object]:
    return {
        "id": candidate.id,
        "kind": candidate.kind,
        "label": candidate.label,
        "generation": candidate.generation,
        "slot": candidate.slot,
        "genome": candidate.genome,
        "digest": candidate.recipe.digest,
        "recipe": candidate.recipe.to_data(),
    }


def _result(result: Result) -> dict[str, object]:
    return {
        "candidate": result.candidate,
        "phase": result.phase,
        "round": result.round,
        "items_digest": result.items_digest,
        "tokens": dict(result.tokens),
        "responses": [_responses(responses) for responses in result.responses],
    }


def _responses(responses: Responses) -> dict[str, object]:
    return {
        "task": responses.task,
        "metric": responses.metric,
        "items": responses.items,
        "values": responses.values,
    }
