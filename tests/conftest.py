"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes depends on what else the machine does; pytest-timeout catches what hangs.
settings.register_profile("evomerge", deadline=None)
settings.load_profile("evomerge")
