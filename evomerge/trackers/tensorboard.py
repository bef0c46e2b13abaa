"""TensorBoard: event files in the run folder; `tensorboard --logdir runs` shows them. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from evomerge.errors import require
from evomerge.trackers.base import Session

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes scalars. A driver that goes on adds a file, and TensorBoard reads all files of a folder as one run."""

    key = ""

    def __init__(self, session: Session) -> None:
        writer: Any = require("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event: Any = require("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        self._summary: Any = require("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        self._writer = writer.EventFileWriter(str(session.folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()
