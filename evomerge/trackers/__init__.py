"""Trackers: a run's numbers, told to TensorBoard and services like it as it goes on; imported only when asked for."""

from evomerge.trackers.base import Session, Tracker
from evomerge.trackers.points import points_of
from evomerge.trackers.tracking import require_trackers, tracking

__all__ = ["Session", "Tracker", "points_of", "require_trackers", "tracking"]
