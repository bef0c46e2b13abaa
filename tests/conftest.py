"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# The same examples every time: a run that passes here passes elsewhere. How long one takes depends on the machine;
# pytest-timeout catches what hangs.
settings.register_profile("evomerge", deadline=None, derandomize=True)
settings.load_profile("evomerge")
