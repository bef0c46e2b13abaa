"""MLflow. Where it keeps things, `MLFLOW_TRACKING_URI`, is the library's own business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import require
from evomerge.trackers.base import Session

__all__ = ["MLflow"]

_EXPERIMENT = "evomerge"


class MLflow:
    """One run of the MLflow experiment `evomerge`."""

    def __init__(self, session: Session) -> None:
        self._client: Any = require("mlflow", "mlflow").MlflowClient()
        self.key = session.key or self._begun(session)
        self._client.update_run(self.key, status="RUNNING")

    def _begun(self, session: Session) -> str:
        known = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = self._client.create_experiment(_EXPERIMENT) if known is None else known.experiment_id
        run = self._client.create_run(experiment, run_name=session.name)
        self._client.log_dict(run.info.run_id, dict(session.config), "experiment.json")
        return str(run.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._client.log_metric(self.key, name, value, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self.key)
