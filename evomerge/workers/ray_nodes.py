"""Which nodes workers fail on, and which are not asked any more. Pure book-keeping; knows nothing of Ray's API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

__all__ = ["Nodes"]

_FAULTS = 3
"""Different faults without a success between them after which a node is retired."""


class Nodes:
    """Faults by node. The last node that is left is never retired.

    Attributes:
        retired: nodes that no worker is sent to any more.
    """

    def __init__(self) -> None:
        self.retired: set[str] = set()
        self._known: set[str] = set()
        self._faults: defaultdict[str, set[Hashable]] = defaultdict(set)

    def seen(self, node: str) -> None:
        """A worker was placed there."""
        self._known.add(node)

    def fine(self, node: str) -> None:
        """A job was done there."""
        self._faults.pop(node, None)

    def gone(self, node: str) -> None:
        """The node left the cluster."""
        self._known.discard(node)

    def fault(self, node: str, what: Hashable, *, certain: bool = False) -> bool:
        """Something went wrong there. Whether that retires the node.

        Args:
            node: Ray's id of it.
            what: the same thing again, as a candidate that kills its workers, counts once.
            certain: the node itself is to blame, and one fault is enough.
        """
        self._faults[node].add(what)
        last = not self._known - self.retired - {node}
        if last or node in self.retired or not (certain or len(self._faults[node]) >= _FAULTS):
            return False
        self.retired.add(node)
        return True

    @property
    def selector(self) -> Mapping[str, str]:
        """Ray's label selector for all other nodes; empty if none is retired."""
        return {"ray.io/node-id": f"!in({','.join(sorted(self.retired))})"} if self.retired else {}
