"""The live loop: the scheduler core in front of a real engine and real environments."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict
from typing import Any

from drawloom.actions import (
    Action,
    Admit,
    ClaimEnv,
    DemoteKV,
    LeaseKV,
    PrefetchKV,
    RefuseStep,
    ReleaseEnvs,
    ReleaseKV,
    StartStep,
    StartTool,
    Wake,
    WarmEnv,
)
from drawloom.engine.base import Engine
from drawloom.environments import Env
from drawloom.errors import (
    ContextTooLong,
    DrawloomError,
    SandboxDied,
    SandboxUnavailable,
    StoreError,
)
from drawloom.events import EngineUp, Event, HostState, HostUp, Tick, ToolReady
from drawloom.graph.execution import ExecutionGraph
from drawloom.runtime.bus import EventBus, Notice
from drawloom.runtime.scheduler import Policy, Scheduler
from drawloom.runtime.slots import ToolSlots
from drawloom.runtime.store import LeaseRow, Store
from drawloom.sandbox.pool import Claimed, Pool

log = logging.getLogger("drawloom.runtime")

_FLUSH_SECONDS = 0.1
_GRAPH_TICKS = 50


class Live:
    """Feeds events to the core and carries out what it decides, on one event loop."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        pool: Pool | None,
        store: Store,
        bus: EventBus,
        record: bool = True,
        tool_slots: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(policy)
        self._record = record
        self.engine, self.pool, self.store, self.bus = engine, pool, store, bus
        self.envs: dict[str, Env] = {}
        self._events: deque[Event] = deque()
        self._emitting = False
        self._admitted: dict[str, asyncio.Future[None]] = {}
        self._started: dict[str, asyncio.Future[float]] = {}
        self._slots = None if tool_slots is None else ToolSlots(tool_slots)
        self._tools: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: dict[tuple[str, str], asyncio.Task[Claimed]] = {}
        self._stalled: set[tuple[str, str]] = set()
        self.env_stall = 0.0
        self._kept: dict[str, int] = {}
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
            Wake: self._wake,
            WarmEnv: self._warm,
            ClaimEnv: self._claim_early,
            ReleaseEnvs: self._ended,
        }
        if pool is not None:
            pool.on_change = self._host_changed
            if pool.most is not None:
                self.emit(HostUp(pool.provider.host, pool.most))
        about = engine.info
        self.emit(EngineUp(about.id, about.kv_tokens, about.host_tokens, about.max_context))

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

    def note(self, program: str, kind: str, **detail: Any) -> None:
        self.bus.publish(Notice(time.time(), program, kind, detail))

    # --- what programs wait for -----------------------------------------------------------

    def expect_admission(self, program: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._admitted[program] = future
        return future

    def expect_start(self, step: str) -> asyncio.Future[float]:
        """Resolves with the priority of an LLM call when it may go to its engine."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._started[step] = future
        return future

    def _admit(self, action: Admit) -> None:
        self._decided(action)
        future = self._admitted.pop(action.program, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _start_step(self, action: StartStep) -> None:
        future = self._started.pop(action.step, None)
        if future is not None and not future.done():
            future.set_result(action.priority)

    @contextlib.asynccontextmanager
    async def tool_slot(
        self, program: str, lineage: str, call: str, tool: str
    ) -> AsyncIterator[None]:
        """A tool call runs in its environment, when it is its turn where slots are limited."""
        if self._slots is None or self.pool is None:
            yield
            return
        name = f"{program}:{call}"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tools[name] = future
        try:
            self.emit(ToolReady(program, lineage, name, tool, self.pool.provider.host))
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
        reply = await self.engine.lease(action.lineage, action.ttl, action.value)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    async def _demote(self, action: DemoteKV) -> None:
        reply = await self.engine.demote(action.lineage)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    async def _prefetch(self, action: PrefetchKV) -> None:
        reply = await self.engine.prefetch(action.lineage)
        self._decided(action, answer=reply.status.value, tokens=reply.tokens)

    def _wake(self, action: Wake) -> None:
        loop = asyncio.get_running_loop()
        delay = max(0.0, action.at - time.monotonic())
        self._timers = {t for t in self._timers if not t.cancelled() and t.when() > loop.time()}
        self._timers.add(loop.call_later(delay, self.emit, Tick()))

    async def _release_kv(self, action: ReleaseKV) -> None:
        await self.engine.release(action.lineage, evict=action.evict)

    def fork(self, parent: str, child: str) -> None:
        self._later(self._fork(parent, child))

    async def _fork(self, parent: str, child: str) -> None:
        await self.engine.fork(parent, child)

    # --- environments ---------------------------------------------------------------------

    def know(self, env: Env) -> None:
        """Declare an environment that programs may ask for."""
        if env.key not in self.envs and self.pool is not None:
            self.envs[env.key] = env
            warm, creating = self.pool.counts(env.key)
            limit = self.pool.limit
            # none is being made yet, but the first program that needs one will change that
            self.emit(HostState(self.pool.provider.host, env.key, warm, max(1, creating), limit))
            if env.warm:
                self.pool.warm(env, env.warm)

    async def claim(self, env: Env, program: str) -> Claimed:
        """A program's environment; what the first of its calls waits counts as its stall.

        Raises `SandboxError` when there can be none.
        """
        began, key = time.monotonic(), (program, env.key)
        first = key not in self._stalled
        self._stalled.add(key)
        try:
            return await asyncio.shield(self._claiming(env, program))
        finally:
            if first:
                self.env_stall += time.monotonic() - began

    async def adopt(self, env: Env, program: str, sandbox: str) -> None:
        """Take over the environment that a killed owner's program had."""
        if self.pool is None:
            raise SandboxDied(f"environment {sandbox} needs a sandbox provider")
        claimed = await self.pool.adopt(env, program, sandbox)
        task = asyncio.create_task(_value(claimed))
        self._claims[program, env.key] = task

    def _claiming(self, env: Env, program: str) -> "asyncio.Task[Claimed]":
        """One claim for each program and key, whoever asks first."""
        key = (program, env.key)
        task = self._claims.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            # at once, so that no event in between can promise the same one to another program
            ready = self.pool.claim_ready(env, program) if self.pool is not None else None
            task = self._claims[key] = asyncio.create_task(self._claim(env, program, ready))
        return task

    async def _claim(self, env: Env, program: str, ready: Claimed | None) -> Claimed:
        if self.pool is None:
            raise SandboxUnavailable("this runtime has no sandbox provider: Runtime(sandbox=…)")
        claimed = ready or await self.pool.claim(env, program)
        lease = claimed.lease
        name = self.pool.provider.name
        await self.store.lease(
            LeaseRow(lease.sandbox, program, lease.key, name, lease.host, time.time())
        )
        self.note(program, "env.claimed", warm=lease.warm, sandbox=lease.sandbox)
        return claimed

    def _claim_early(self, action: ClaimEnv) -> None:
        env = self.envs.get(action.env)
        if env is not None:
            self._claiming(env, action.program).add_done_callback(_retrieve)

    def _ended(self, action: ReleaseEnvs) -> None:
        self._admitted.pop(action.program, None)
        self._later(self._release_envs(action.program))

    async def _release_envs(self, program: str) -> None:
        tasks = [self._claims.pop(key) for key in list(self._claims) if key[0] == program]
        self._stalled = {key for key in self._stalled if key[0] != program}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.pool is not None and tasks:
            await self.pool.release(program)
            await self.store.unlease(program)

    def _warm(self, action: WarmEnv) -> None:
        env = self.envs.get(action.env)
        if env is not None and self.pool is not None:
            self.pool.warm(env, max(env.warm, action.count))

    def _host_changed(self, key: str, warm: int, creating: int) -> None:
        if self.pool is not None:
            host, limit = self.pool.provider.host, self.pool.limit
            self.emit(HostState(host, key, warm, creating, limit))

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
            self.scheduler.world.graphs[agent] = graph
            self._kept[agent] = graph.changes

    async def _keep_graphs(self) -> None:
        graphs = self.scheduler.world.graphs
        changed = {a: g for a, g in graphs.items() if g.changes != self._kept.get(a, 0)}
        await self.store.save_graphs({agent: graph.saved() for agent, graph in changed.items()})
        self._kept |= {agent: graph.changes for agent, graph in changed.items()}

    async def _flush(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.store.flush()
                if not tick % _GRAPH_TICKS:
                    await self._keep_graphs()
            except StoreError as error:  # kept for the next time; steps raise it where it matters
                log.warning("decisions could not be written: %s", error)

    async def settle(self) -> None:
        """Wait until everything decided so far was carried out."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.settle()
        for timer in self._timers:
            timer.cancel()
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        with contextlib.suppress(StoreError):  # it is only statistics
            await self._keep_graphs()


def _retrieve(task: "asyncio.Task[Claimed]") -> None:
    """A failure is met again by the call that needs the environment."""
    if not task.cancelled():
        task.exception()


async def _value(claimed: Claimed) -> Claimed:
    return claimed


__all__ = ["Live"]
