"""The dispatcher: the scheduler core in front of a real engine and real environments."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict
from typing import Any

from drawloom.engine.api.engine import Delta, Engine, Restarting
from drawloom.errors import (
    ContextTooLong,
    DrawloomError,
    StoreError,
    StoreInUse,
)
from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.dispatch.env_leases import EnvLeases
from drawloom.runtime.dispatch.event_bus import EventBus, Notice
from drawloom.runtime.dispatch.tool_slots import ToolSlots
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.scheduler.actions import (
    Action,
    Admit,
    ClaimEnv,
    DemoteKV,
    LeaseKV,
    ParkEnvs,
    PrefetchKV,
    RefuseStep,
    ReleaseEnvs,
    ReleaseKV,
    ScheduleTick,
    StartStep,
    StartTool,
    WarmEnv,
)
from drawloom.runtime.scheduler.events import (
    Decoded,
    EngineDown,
    EngineDrain,
    EngineUp,
    Event,
    Preempted,
    Tick,
    ToolReady,
)
from drawloom.runtime.store.store import Store
from drawloom.sandbox.pool.warm_pool import WarmPool

log = logging.getLogger("drawloom.runtime")

_FLUSH_SECONDS = 0.1
_BEAT_TICKS = 10
_GRAPH_TICKS = 50


class Dispatcher:
    """Feeds events to the core and carries out what it decides, on one event loop."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        pool: WarmPool | None,
        store: Store,
        bus: EventBus,
        record: bool = True,
        tool_slots: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(policy)
        self._record = record
        self.engine, self.pool, self.store, self.bus = engine, pool, store, bus
        self._events: deque[Event] = deque()
        self._decoded: dict[str, tuple[str, str, int]] = {}
        self._emitting = False
        self._admitted: dict[str, asyncio.Future[None]] = {}
        self._started: dict[str, asyncio.Future[float]] = {}
        self._slots = None if tool_slots is None else ToolSlots(tool_slots)
        self._tools: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: dict[str, int] = {}
        self._refusal: Callable[[], Exception] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._flusher = asyncio.create_task(self._flush())
        self._does: dict[type[Any], Callable[[Any], None]] = {
            Admit: self._admit,
            StartStep: self._start_step,
            StartTool: self._start_tool,
            RefuseStep: self._refuse_step,
            LeaseKV: lambda a: self._later(self._lease(a)),
            ReleaseKV: lambda a: self._later(self._release_kv(a)),
            DemoteKV: lambda a: self._later(self._demote(a)),
            PrefetchKV: lambda a: self._later(self._prefetch(a)),
            ScheduleTick: self._wake,
            WarmEnv: lambda a: self.environments.target(a.env, a.count),
            ClaimEnv: lambda a: self.environments.claim_early(a.env, Owner(a.program)),
            ParkEnvs: self._park,
            ReleaseEnvs: self._ended,
        }
        self.environments = EnvLeases(pool, store, self.emit, self.note, self._later, memory)
        self._engine_is(True)
        if isinstance(engine, Restarting):
            engine.watch(self._engine_is)

    def emit(self, event: Event) -> None:
        """Tell the core, and do what it says. What that sets off is told after, in order."""
        self._events.append(event)
        if self._emitting:
            return
        self._emitting = True
        try:
            while self._events:
                for action in self.scheduler.handle(self._events.popleft(), time.monotonic()):
                    self._does[type(action)](action)
        finally:
            self._emitting = False

    def _engine_is(self, up: bool) -> None:
        """Tell the core that the engine is up, or has lost all that it had.

        An engine that is gone for good counts as up: whoever calls it hears why.
        """
        about = self.engine.info
        if up:
            self.emit(EngineUp(about.id, about.kv_tokens, about.host_tokens, about.max_context))
        else:
            log.warning("engine %s died; its programs go on when there is another", about.id)
            self.emit(EngineDown(about.id))

    def drain(self, error: Callable[[], Exception]) -> None:
        """Let the calls end that run, and start no others. Whoever waits for the start of a call or
        a program, now or later, gets `error()`."""
        self._refusal = error
        self.emit(EngineDrain(self.engine.info.id))
        waiting: list[asyncio.Future[Any]] = [*self._admitted.values(), *self._started.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error())
                future.exception()  # a client may be gone by now: nobody need ask for it

    async def on_delta(self, program: str, step: str, context: int, delta: Delta) -> None:
        """Report one streamed delta of a call to the scheduler.

        Progress is batched: the scheduler gets one `Decoded` event per engine step, after every
        consumer of that step has run. A call that was lost with its engine waits here until the
        scheduler starts it again; then its next delta may be asked for.

        Args:
            program: id of the program.
            step: id of the call.
            context: tokens of its context now.
            delta: what the engine added.
        """
        if delta.lost:
            found = self.scheduler.state.programs.get(program)
            if found is not None and step in found.pending_steps:
                await self.expect_start(step)
        elif delta.preempted:
            self._tell_decoded()  # it said that before
            self.emit(Preempted(program, step, self.engine.info.id))
        elif delta.finish is None:
            if not self._decoded:
                asyncio.get_running_loop().call_soon(self._tell_decoded)
            self._decoded[step] = (program, step, context)

    def _tell_decoded(self) -> None:
        calls, self._decoded = tuple(self._decoded.values()), {}
        if calls:
            self.emit(Decoded(self.engine.info.id, calls))

    def runs(self, program: str) -> bool:
        """Whether a program's calls go to the engine: it is admitted and neither paused nor about
        to be."""
        found = self.scheduler.state.active.get(program)
        return found is not None and not found.pause_pending

    def note(self, program: str, kind: str, **detail: Any) -> None:
        self.bus.publish(Notice(time.time(), program, kind, detail))

    # --- what programs wait for -----------------------------------------------------------

    def expect_admission(self, program: str) -> asyncio.Future[None]:
        """Return what resolves when a program may begin. Raises what `drain` was given."""
        self._not_draining()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._admitted[program] = future
        return future

    def expect_start(self, step: str) -> asyncio.Future[float]:
        """Return what resolves with the priority of an LLM call when it may go to its engine.
        Raises what `drain` was given."""
        self._not_draining()
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._started[step] = future
        future.add_done_callback(lambda _: self._started.pop(step, None))
        return future

    def _not_draining(self) -> None:
        if self._refusal is not None:
            raise self._refusal()

    def _admit(self, action: Admit) -> None:
        self._decided(action)
        future = self._admitted.pop(action.program, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _start_step(self, action: StartStep) -> None:
        self.environments.unpark(action.program)
        future = self._started.pop(action.step, None)
        if future is not None and not future.done():
            future.set_result(action.priority)

    @contextlib.asynccontextmanager
    async def tool_slot(
        self, program: str, conversation: str, call: str, tool: str
    ) -> AsyncIterator[None]:
        """A tool call runs in its environment, when it is its turn where slots are limited."""
        if self._slots is None or self.pool is None:
            yield
            return
        name = f"{program}:{call}"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tools[name] = future
        try:
            self.emit(ToolReady(program, conversation, name, tool, self.pool.provider.host))
            await future
            yield
        finally:
            self._tools.pop(name, None)
            if future.done() and not future.cancelled():
                self._slots.leave()

    def _start_tool(self, action: StartTool) -> None:
        future = self._tools.get(action.call)
        if future is not None and self._slots is not None:
            self._slots.ask(future, action.priority)

    def _refuse_step(self, action: RefuseStep) -> None:
        self._decided(action)
        future = self._started.pop(action.step, None)
        if future is not None and not future.done():
            future.set_exception(
                ContextTooLong(
                    f"the prompt has {action.prompt} tokens; this engine holds {action.room} (the "
                    "model's context or the KV cache, whichever is smaller): shorten the prompt or "
                    "raise kv_tokens"
                )
            )

    # --- KV -------------------------------------------------------------------------------

    async def _lease(self, action: LeaseKV) -> None:
        reply = await self.engine.lease(action.conversation, action.ttl, action.value)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    async def _demote(self, action: DemoteKV) -> None:
        reply = await self.engine.demote(action.conversation)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    async def _prefetch(self, action: PrefetchKV) -> None:
        reply = await self.engine.prefetch(action.conversation)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    def _wake(self, action: ScheduleTick) -> None:
        loop = asyncio.get_running_loop()
        delay = max(0.0, action.at - time.monotonic())
        self._timers = {t for t in self._timers if not t.cancelled() and t.when() > loop.time()}
        self._timers.add(loop.call_later(delay, self.emit, Tick()))

    async def _release_kv(self, action: ReleaseKV) -> None:
        await self.engine.release(action.conversation, evict=action.evict)

    def fork(self, parent: str, child: str) -> None:
        self._later(self._fork(parent, child))

    async def _fork(self, parent: str, child: str) -> None:
        await self.engine.fork(parent, child)

    def _park(self, action: ParkEnvs) -> None:
        self._decided(action)
        self.environments.park(action.program)

    def _ended(self, action: ReleaseEnvs) -> None:
        self._admitted.pop(action.program, None)
        self._later(self.environments.release(action.program))

    # --- book-keeping ---------------------------------------------------------------------

    def _decided(self, action: Action, **more: Any) -> None:
        if not self._record:
            return
        detail = asdict(action) | more
        program = detail.pop("program")
        self.store.decide(program, type(action).__name__, detail)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DrawloomError as error:  # whoever needs the thing will meet the same error
            log.debug("a decision could not be carried out: %s", error)

    async def remember(self) -> None:
        """Go on from what earlier runtimes on this store learned of agents."""
        for agent, saved in (await self.store.graphs()).items():
            try:
                graph = ExecutionGraph.restore(agent, saved)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("what was learned of agent %s cannot be read: %r", agent, error)
                continue
            self.scheduler.state.graphs[agent] = graph
            self._kept[agent] = graph.changes

    async def _keep_graphs(self) -> None:
        graphs = self.scheduler.state.graphs
        changed = {a: g for a, g in graphs.items() if g.changes != self._kept.get(a, 0)}
        await self.store.save_graphs({agent: graph.saved() for agent, graph in changed.items()})
        self._kept |= {agent: graph.changes for agent, graph in changed.items()}

    async def _flush(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.store.flush()
                if not tick % _BEAT_TICKS:
                    await self.store.beat(active=bool(self.scheduler.state.programs))
                if not tick % _GRAPH_TICKS:
                    await self._keep_graphs()
            except StoreInUse as lost:
                log.error("%s; programs here fail at their next step", lost)
                return
            except StoreError as error:  # kept for the next time; steps raise it where it matters
                log.warning("decisions could not be written: %s", error)

    async def settle(self) -> None:
        """Wait until everything decided so far was carried out."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        if isinstance(self.engine, Restarting):
            self.engine.watch(lambda up: None)
        await self.settle()
        for timer in self._timers:
            timer.cancel()
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        with contextlib.suppress(StoreError):  # it is only statistics
            await self._keep_graphs()


__all__ = ["Dispatcher"]
