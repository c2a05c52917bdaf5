"""Write-back of what changes outside of steps: decisions, a sign of life, learned graphs."""

import asyncio
import contextlib
import itertools
import logging

from drawloom.errors import StoreError, StoreInUse
from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.store.store import Store

log = logging.getLogger("drawloom.runtime")

_FLUSH_SECONDS = 0.1
_BEAT_TICKS = 10
_GRAPH_TICKS = 50


class LearnedGraphs:
    """Keep the execution graphs of agents in the store, across runtimes.

    Args:
        store: has the graphs of earlier runtimes.
        state: has those that the scheduler uses and improves.
    """

    def __init__(self, store: Store, state: SchedulerState) -> None:
        self._store, self._state = store, state
        self._saved: dict[str, int] = {}

    async def load(self) -> None:
        """Go on from what earlier runtimes on this store learned of agents."""
        for agent, saved in (await self._store.graphs()).items():
            try:
                graph = ExecutionGraph.restore(agent, saved)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("what was learned of agent %s cannot be read: %r", agent, error)
                continue
            self._state.graphs[agent] = graph
            self._saved[agent] = graph.changes

    async def save(self) -> None:
        """Write the graphs that have changed. Raises `StoreError`."""
        graphs = self._state.graphs
        changed = {a: g for a, g in graphs.items() if g.changes != self._saved.get(a, 0)}
        await self._store.save_graphs({agent: graph.saved() for agent, graph in changed.items()})
        self._saved |= {agent: graph.changes for agent, graph in changed.items()}


class WriteBack:
    """Write to the store in the background until it is closed or the store is lost.

    Args:
        store: takes decisions; other processes see by it that this one lives.
        state: says whether programs run, and has the learned graphs.
    """

    def __init__(self, store: Store, state: SchedulerState) -> None:
        self.graphs = LearnedGraphs(store, state)
        self._store, self._state = store, state
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self._store.flush()
                if not tick % _BEAT_TICKS:
                    await self._store.beat(active=bool(self._state.programs))
                if not tick % _GRAPH_TICKS:
                    await self.graphs.save()
            except StoreInUse as lost:
                log.error("%s; programs here fail at their next step", lost)
                return
            except StoreError as error:  # kept for the next time; steps raise it where it matters
                log.warning("decisions could not be written: %s", error)

    async def close(self) -> None:
        """Stop, and save the learned graphs once more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StoreError):  # it is only statistics
            await self.graphs.save()


__all__ = ["LearnedGraphs", "WriteBack"]
