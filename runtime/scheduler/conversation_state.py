"""Conversations of a program, and groups of forks that share a prefix."""

from dataclasses import dataclass
from itertools import count
from typing import Union

from drawloom.graph.execution_graph import Position
from drawloom.graph.forecast import Forecast
from drawloom.graph.transition_model import START
from drawloom.runtime.scheduler.lazy_heap import LazyHeap


@dataclass(slots=True, eq=False)
class ConversationState:
    """Keep what the scheduler knows of a conversation.

    Attributes:
        id: its name.
        engine: the engine that has its KV, or will have it.
        graph_state: its state in the execution graph, after its last call.
        context: its tokens.
        prompt: tokens of its last call's prompt.
        forked: it was forked since its last call.
        shared_tokens: the first so many tokens of its context are counted elsewhere: in its parent,
            or in the prefix that an agent's programs share.
        open_steps: its calls that wait, or are at the engine.
        pending_tools: key of the tools that it waits for; None while none is pending.
        forecast: made when it called these tools.
        call_ended_at: when its last call ended.
        lease_end: when the lease of its KV ends.
        siblings: the group of forks that it belongs to, if its parent still exists.
        forks: the conversations that were forked from it.
    """

    id: str
    engine: str
    graph_state: str = START
    context: int = 0
    prompt: int = 0
    forked: bool = False
    shared_tokens: int = 0
    open_steps: tuple[str, ...] = ()
    pending_tools: str | None = None
    forecast: Forecast | None = None
    call_ended_at: float = 0.0
    lease_end: float = 0.0
    siblings: Union["ForkGroup", None] = None
    forks: Union["ForkGroup", None] = None

    @property
    def private_tokens(self) -> int:
        """Return the tokens that are counted for it alone; 0 before its first call."""
        return max(0, self.context - self.shared_tokens)

    @property
    def position(self) -> Position:
        """Return where it is in the execution graph."""
        return Position(self.graph_state, self.pending_tools is not None, self.forked)


class ForkGroup:
    """Keep the forks of one conversation by the length of the prefix that they share with it.

    To find the fork with the longest prefix, to add one and to remove one costs O(log n); to merge
    two groups costs as much as the smaller one has members.
    """

    __slots__ = ("_by_prefix", "_members", "_numbers")

    def __init__(self) -> None:
        self._members: dict[str, ConversationState] = {}
        self._by_prefix = LazyHeap[tuple[int, int, str]](self._is_current)
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, fork: ConversationState) -> None:
        """Add a fork."""
        self._members[fork.id], fork.siblings = fork, self
        self.update(fork)

    def update(self, fork: ConversationState) -> None:
        """Order a fork anew, after its shared prefix has changed."""
        self._by_prefix.push((-fork.shared_tokens, next(self._numbers), fork.id))

    def remove(self, fork: ConversationState) -> None:
        """Remove a fork."""
        del self._members[fork.id]
        fork.siblings = None

    @property
    def longest(self) -> ConversationState:
        """Return the fork with the longest shared prefix; the group must not be empty."""
        top = self._by_prefix.top
        assert top is not None
        return self._members[top[2]]

    def merged(self, other: "ForkGroup | None") -> "ForkGroup":
        """Return one group of both; the members of the smaller one move."""
        if other is None:
            return self
        small, large = sorted((self, other), key=len)
        for fork in list(small._members.values()):
            large.add(fork)
        return large

    def _is_current(self, entry: tuple[int, int, str]) -> bool:
        fork = self._members.get(entry[2])
        return fork is not None and fork.shared_tokens == -entry[0]


__all__ = ["ConversationState", "ForkGroup"]
