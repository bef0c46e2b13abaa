"""Trackers: a run's numbers, told to TensorBoard and services like it as it goes on; imported only when asked for."""

from evomerge.trackers.base import Session, Tracker
from evomerge.trackers.feed import require_trackers, tracking
from evomerge.trackers.points import points_of

__all__ = ["Session", "Tracker", "points_of", "require_trackers", "tracking"]
