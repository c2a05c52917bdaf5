"""Conversations that go on from one and the same, by how much of it each shares."""

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drawloom.runtime.scheduler.program_state import ConversationState

_SLACK = 64


class Branches:
    """The branches of one conversation; each knows the group that it is in.

    To find the one that shares most, to add one and to remove one costs O(log n); to merge two
    groups costs what the smaller one has.
    """

    __slots__ = ("_heap", "_members", "_numbers")

    def __init__(self) -> None:
        self._members: dict[str, ConversationState] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, line: "ConversationState") -> None:
        """Add a branch."""
        self._members[line.id], line.siblings = line, self
        self.shares(line)

    def shares(self, line: "ConversationState") -> None:
        """Note how much a branch shares, should this have become more."""
        heapq.heappush(self._heap, (-line.shared, next(self._numbers), line.id))
        if len(self._heap) > _SLACK + 4 * len(self._members):
            self._heap = [(-m.shared, at, m.id) for at, m in enumerate(self._members.values())]
            heapq.heapify(self._heap)
            self._numbers = count(len(self._heap))

    def remove(self, line: "ConversationState") -> None:
        """Remove a branch."""
        del self._members[line.id]
        line.siblings = None

    @property
    def largest(self) -> "ConversationState":
        """The branch that shares most; there is one."""
        while True:
            shared, _, name = self._heap[0]
            line = self._members.get(name)
            if line is not None and line.shared == -shared:
                return line
            heapq.heappop(self._heap)
            if line is not None and line.shared < -shared:
                self.shares(line)

    def merged(self, other: "Branches | None") -> "Branches":
        """Return one group of both; the smaller one's branches move."""
        if other is None:
            return self
        small, large = sorted((self, other), key=len)
        for line in list(small._members.values()):
            large.add(line)
        return large


__all__ = ["Branches"]
