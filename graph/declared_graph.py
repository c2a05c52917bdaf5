"""`Graph`: an agent that is written as nodes and edges instead of a loop.

Nodes are async functions over one shared state; the same chats and tools work inside them. An
edge may have a condition, a fan-out (`each`) and a prior (`p`) for the scheduler, which learns the
true frequencies from then on.
"""

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import networkx as nx
import numpy as np

from drawloom.errors import GraphError

S = TypeVar("S")
Node = Callable[..., Awaitable[None]]
N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True)
class Edge(Generic[S]):
    """Lead from one node to another; taken when `when` holds, once for each item of `each`."""

    source: str
    target: str
    when: Callable[[S], bool] | None = None
    each: Callable[[S], Iterable[Any]] | None = None
    p: float | None = None
    fan: float = 1.0


class Graph(Generic[S]):
    """Describe an agent by nodes over a state of type `state`.

    Run it like an agent, with the state as its argument. The first node declared is the entry. A
    node starts when one of its incoming edges is taken and, at a join, when everything that was
    fanned out towards it has ended.

    Args:
        name: of the agent.
        state: type of the state.
        max_steps: executions of nodes after which a run fails.
    """

    def __init__(self, name: str, state: type[S], *, max_steps: int = 1000) -> None:
        self.name, self.state, self.max_steps = name, state, max_steps
        self.nodes: dict[str, Node] = {}
        self.edges: list[Edge[S]] = []

    def node(self, fn: N) -> N:
        """Declare a node: ``async def name(state)`` or, behind a fan-out, ``(state, item)``.

        Raises:
            GraphError: the name is taken, or the function is not a coroutine function.
        """
        if fn.__name__ in self.nodes:
            raise GraphError(f"graph {self.name}: node {fn.__name__!r} is declared twice")
        if not inspect.iscoroutinefunction(cast(object, fn)):
            raise GraphError(f"graph {self.name}: node {fn.__name__!r} must be `async def`")
        self.nodes[fn.__name__] = fn
        return fn

    def edge(
        self,
        source: Node,
        target: Node,
        *,
        when: Callable[[S], bool] | None = None,
        each: Callable[[S], Iterable[Any]] | None = None,
        p: float | None = None,
        fan: float = 1.0,
    ) -> None:
        """Declare an edge.

        The scheduler computes from `p` and `fan` how much is still to come.

        Args:
            source: node that the edge leaves.
            target: node that it leads to.
            when: returns whether it is taken, given the state.
            each: returns the items of a fan-out, given the state.
            p: prior probability that it is taken.
            fan: expected number of items of `each`.

        Raises:
            GraphError: a node is not declared, or a number is out of its range.
        """
        for node in (source, target):
            if self.nodes.get(node.__name__) is not node:
                raise GraphError(f"graph {self.name}: {node.__name__!r} is not one of its nodes")
        if p is not None and not 0 < p <= 1:
            raise GraphError(f"graph {self.name}: p={p} is not a probability in (0, 1]")
        if fan < 0 or (fan != 1.0 and each is None):
            raise GraphError(f"graph {self.name}: fan={fan} needs an `each`, and is not negative")
        self.edges.append(Edge(source.__name__, target.__name__, when, each, p, fan))

    @property
    def nx(self) -> "nx.DiGraph[Any]":
        """Return the declared shape, with `p` on the edges that have one."""
        shape: nx.DiGraph[Any] = nx.DiGraph()
        shape.add_nodes_from(self.nodes)
        shape.add_edges_from((e.source, e.target, {"p": e.p}) for e in self.edges)
        return shape

    def check(self) -> None:
        """Check the shape.

        Raises:
            GraphError: a node cannot be reached, a loop has no exit, or priors exceed 1.
        """
        if not self.nodes:
            raise GraphError(f"graph {self.name} has no node")
        shape, entry = self.nx, next(iter(self.nodes))
        if lost := set(shape) - {entry} - nx.descendants(shape, entry):
            raise GraphError(f"graph {self.name}: no edge leads to {sorted(lost)}")
        for part in nx.strongly_connected_components(shape):
            inner = [e for e in self.edges if e.source in part and e.target in part]
            if inner and all(e.when is None for e in inner):
                raise GraphError(f"graph {self.name}: the loop over {sorted(part)} never ends")
        for node in self.nodes:
            if sum(e.p or 0 for e in self.edges if e.source == node and not e.each) > 1 + 1e-9:
                raise GraphError(f"graph {self.name}: the priors out of {node!r} exceed 1")

    def priors(self) -> dict[tuple[str, str], float]:
        """Return the prior of every edge; edges without one share the rest evenly."""
        out: dict[tuple[str, str], float] = {}
        for node in self.nodes:
            edges = [e for e in self.edges if e.source == node]
            given = sum(e.p for e in edges if e.p is not None)
            open_ = [e for e in edges if e.p is None]
            for e in edges:
                share = max(0.0, 1 - given) / len(open_) if open_ else 0.0
                out[e.source, e.target] = e.p if e.p is not None else share
        return out

    def expected_remaining(self, front: Mapping[str, int]) -> float:
        """Return the expected executions of nodes from here on.

        Of n executions of a node, each follows its `each` edges by itself; its other edges are
        taken once, for all of them (a join). So n executions are expected to be followed by
        ``a n + b`` in all, themselves included; a and b solve two linear systems.

        Args:
            front: how many times each node is about to run.
        """
        names, priors = list(self.nodes), self.priors()
        place = {name: at for at, name in enumerate(names)}
        spread, joined = np.zeros((2, len(names), len(names)))
        likely = np.zeros_like(spread)
        for edge in self.edges:
            where, p = (place[edge.source], place[edge.target]), priors[edge.source, edge.target]
            likely[where] += p
            if edge.each is not None:
                spread[where] += p * edge.fan
            else:
                joined[where] += p
        one = np.eye(len(names))
        try:
            each = np.linalg.solve(one - spread, np.ones(len(names)))
            rest = np.linalg.solve(one - likely, joined @ each)
        except np.linalg.LinAlgError:  # a loop that by its priors never ends
            return float(self.max_steps)
        total = sum(each[place[name]] * count + rest[place[name]] for name, count in front.items())
        return float(min(self.max_steps, max(0.0, total)))

    async def run(
        self,
        state: S,
        on_move: Callable[[str, str], None] = lambda a, b: None,
        on_remaining: Callable[[float], None] = lambda steps: None,
    ) -> S:
        """Run from the entry until no edge is taken.

        Args:
            state: passed to all nodes.
            on_move: called with source and target of every edge that is taken.
            on_remaining: called with the expected executions of nodes still to come, whenever that
                changes.

        Returns:
            The state.

        Raises:
            GraphError: more than `max_steps` nodes ran.
        """
        self.check()
        entry = next(iter(self.nodes))
        on_move("start", entry)
        front: dict[str, list[tuple[Any, ...]]] = {entry: [()]}
        steps = 0
        while front:
            on_remaining(
                self.expected_remaining({name: len(several) for name, several in front.items()})
            )
            calls = [(name, args) for name, several in front.items() for args in several]
            steps += len(calls)
            if steps > self.max_steps:
                raise GraphError(f"graph {self.name} took over {self.max_steps} steps")
            await _all(self.nodes[name](state, *args) for name, args in calls)
            front = self._next(state, list(front), on_move)
        return state

    def _next(
        self, state: S, ended: list[str], on_move: Callable[[str, str], None]
    ) -> dict[str, list[tuple[Any, ...]]]:
        front: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for name in ended:
            taken = [e for e in self.edges if e.source == name and (not e.when or e.when(state))]
            for edge in taken:
                on_move(name, edge.target)
                if edge.each is not None:
                    front[edge.target] += [(item,) for item in edge.each(state)]
                elif () not in front[edge.target]:
                    front[edge.target].append(())
            if not taken:
                on_move(name, "end")
        return {name: several for name, several in front.items() if several}


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(_one(call))
    except BaseExceptionGroup as several:  # a node's own error, as if there were no graph
        raise several.exceptions[0] from None


async def _one(call: Awaitable[None]) -> None:
    await call


__all__ = ["Edge", "Graph"]
