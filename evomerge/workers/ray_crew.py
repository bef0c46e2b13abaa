"""The workers of a Ray executor: asks the cluster for them, checks those that come up, and gives up when none can.

Ray's own restarts and retries are off, so that every death is seen. Knows nothing of jobs beyond who holds which.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from evomerge.config import RayConfig
from evomerge.errors import RunError
from evomerge.workers.base import START_TRIES, StartFailure, WorkerFactory, WorkerInfo
from evomerge.workers.ray_host import Host, Place
from evomerge.workers.ray_nodes import Nodes
from evomerge.workers.rota import Round, Share
from evomerge.workers.versions import differing, versions_here

__all__ = ["Call", "Crew", "Slot"]

_LATER_TRIES = 4
"""Starts that may fail in a row, with no worker left, once a worker was up: nodes come and go."""
_ASKED = 8
"""Workers that may wait for room in the cluster at a time, so that an autoscaler sees what is wanted."""
_TELL_SECONDS = 30.0
_LONGEST_REST = 60.0
_CLOCK_SECONDS = 30.0

_log = logging.getLogger("evomerge.workers")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an actor; `share` is None while the worker comes up."""

    ref: Any
    share: Share | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """A worker, from the first wish for it.

    Attributes:
        calls: in the order in which they are done; the first is being done.
        held: round of the last share that it was sent.
        due: when patience with the first call ends; monotonic seconds.
        place: where it came up; None while it waits for room.
        up: it takes jobs.
        unreachable: since when the first call could not be delivered; it is sent again at `again`.
    """

    actor: Any
    calls: deque[Call] = field(default_factory=deque)
    held: Round | None = None
    due: float = math.inf
    place: Place | None = None
    up: bool = False
    unreachable: float | None = None
    again: float = math.inf

    @property
    def name(self) -> str:
        """Host and process, for people."""
        return self.place.name if self.place else "a worker without a place"


class Crew:
    """Workers on their way up and at work.

    Args:
        config: how many, and what each asks of the cluster.
        factory: makes a worker inside the actor.
        threads: CPU threads of a worker.

    Attributes:
        ray: the module, once it is connected.
        slots: all of them.
        info: what the first worker found; None before one was up.
        nodes: where they failed.
    """

    def __init__(self, config: RayConfig, factory: WorkerFactory, threads: int) -> None:
        self.ray: Any = None
        self.slots: list[Slot] = []
        self.info: WorkerInfo | None = None
        self.nodes = Nodes()
        self._config, self._factory, self._threads = config, factory, threads
        self._versions = versions_here()
        self._failures = 0
        self._rest_until = 0.0
        self._short_since: float | None = None
        self._told = False

    @property
    def up(self) -> list[Slot]:
        """Those that take jobs."""
        return [slot for slot in self.slots if slot.up]

    def keep(self) -> None:
        """Asks for what is missing.

        Raises:
            RunError: the cluster has had no room for the fewest workers for too long.
        """
        now = time.monotonic()
        waiting = sum(slot.place is None for slot in self.slots)
        if now >= self._rest_until:
            asked = max(self._config.fewest, _ASKED) - waiting
            self.slots += [self._ask() for _ in range(min(self._config.most - len(self.slots), asked))]
        if len(self.slots) - waiting >= self._config.fewest or now < self._rest_until:
            self._short_since = None
            return
        self._short_since = self._short_since or now
        waited = now - self._short_since
        if waited >= self._config.start_timeout_seconds:
            raise RunError(self._no_room())
        if waited >= _TELL_SECONDS and not self._told:
            self._told = True
            _log.warning("still waiting for a worker: %s", self._demand())

    def _ask(self) -> Slot:
        config = self._config
        options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus}
        if config.memory_gib is not None and config.address is not None:
            options["memory"] = int(config.memory_gib * 2**30)
        if self.nodes.retired:
            options["label_selector"] = dict(self.nodes.selector)
        actor = self.ray.remote(max_restarts=0, max_task_retries=0, **options)(Host).remote()
        return Slot(actor=actor, calls=deque([Call(actor.place.remote())]))

    def arrived(self, slot: Slot, value: Place | WorkerInfo | StartFailure) -> None:
        """A call of a worker on its way up came back."""
        if isinstance(value, Place):
            self._placed(slot, value)
        elif isinstance(value, StartFailure):
            self.failed(slot, value)
        elif different := _other_contents(self.info, value):
            self.failed(slot, _refusal(f"{slot.name}: expected what the other workers found; got {different}"))
        else:
            slot.up, self.info, self._failures, self._told = True, self.info or value, 0, False
            _log.info("%s is up (%d of at most %d workers)", slot.name, len(self.up), self._config.most)

    def _placed(self, slot: Slot, place: Place) -> None:
        slot.place = place
        self.nodes.seen(place.node)
        if lines := differing(self._versions, place.versions):
            message = f"expected the same versions on the driver (here) and on {place.name} (there); got "
            self.failed(slot, _refusal(f"{message}{'; '.join(lines)}; install the same on every node"))
            return
        if abs(skew := place.clock - time.time()) > _CLOCK_SECONDS:
            _log.warning(
                "the clock of %s is off by %.0f s against the driver's; scores do not depend on it, times in logs do: "
                "set up time synchronisation",
                place.name,
                skew,
            )
        slot.calls.append(Call(slot.actor.start.remote(self._factory, self._threads)))
        slot.due = time.monotonic() + self._config.start_timeout_seconds

    def failed(self, slot: Slot, failure: StartFailure, *, lost_node: bool = False) -> None:
        """A worker did not come up: another is tried a little later, unless that is hopeless.

        Args:
            slot: it.
            failure: why.
            lost_node: its node vanished, which proves nothing.

        Raises:
            EvomergeError: what the worker said, if none is left and more tries would not help.
        """
        self.dismiss(slot)
        _log.info("%s did not come up: %s", slot.name, failure.message)
        if lost_node:
            return
        if slot.place is not None:
            self.charge(slot, "start", certain=failure.known is not None)
        self._failures += 1
        tries = START_TRIES if self.info is None else _LATER_TRIES
        if not self.up and (failure.known is not None or self._failures >= tries):
            raise failure.to_error()
        self._rest_until = time.monotonic() + min(_LONGEST_REST, 0.25 * 2.0**self._failures)

    def charge(self, slot: Slot, what: object, *, certain: bool = False) -> None:
        """Something went wrong on a worker's node."""
        if slot.place is not None and self.nodes.fault(slot.place.node, what, certain=certain):
            _log.warning("node %s (%s) is retired for its faults", slot.place.node, slot.name)

    def dismiss(self, slot: Slot) -> None:
        """Ends a worker, dead or alive."""
        self.slots.remove(slot)
        with suppress(Exception):  # it may be dead, or its cluster gone
            self.ray.kill(slot.actor)

    def never_came_up(self) -> StartFailure:
        """For a worker that was placed and then took too long."""
        return _refusal(self._no_room())

    def _no_room(self) -> str:
        seconds = self._config.start_timeout_seconds
        return (
            f"expected a worker within {seconds:g} s (executor.start_timeout_seconds); got none; {self._demand()}; "
            "lower the demands, wait longer or enlarge the cluster, and run again"
        )

    def _demand(self) -> str:
        """What a worker asks for, and what each node has."""
        config = self._config
        wanted = {"CPU": config.cpus, "GPU": config.gpus}
        there, free = self.ray.cluster_resources(), self.ray.available_resources()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        each = f"{'; '.join(_amounts(node) for node in nodes[:8])}{'; ...' if len(nodes) > 8 else ''}"
        memory = f" and {config.memory_gib:g} GiB" if config.memory_gib is not None else ""
        retired = f", {len(self.nodes.retired)} of them retired" if self.nodes.retired else ""
        return (
            f"each asks for {_amounts(wanted)}{memory}, the cluster has {_amounts(there)}, of which free: "
            f"{_amounts(free)} (on {len(nodes)} nodes{retired}: {each})"
        )


def _refusal(message: str) -> StartFailure:
    return StartFailure(known=RunError, message=message, state={}, text=message)


def _other_contents(first: WorkerInfo | None, found: WorkerInfo) -> str:
    """How a worker differs from the first in what scores depend on; empty if it does not."""
    if first is None:
        return ""
    fields = ("sizes", "digests", "pool_digest", "device", "dtype")
    pairs = ((name, getattr(first, name), getattr(found, name)) for name in fields)
    return ", ".join(f"{name} {theirs!r} instead of {ours!r}" for name, ours, theirs in pairs if ours != theirs)


def _amounts(amounts: dict[str, float]) -> str:
    return f"{amounts.get('CPU', 0):g} CPU and {amounts.get('GPU', 0):g} GPU"
