"""Dispatcher: the scheduler in front of a real engine and real environments."""

import asyncio
import contextlib
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
)
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.dispatch.env_leases import EnvLeases
from drawloom.runtime.dispatch.event_bus import EventBus, Notice
from drawloom.runtime.dispatch.gate import Gate
from drawloom.runtime.dispatch.progress_batcher import ProgressBatcher
from drawloom.runtime.dispatch.tool_slots import ToolSlots
from drawloom.runtime.dispatch.write_back import WriteBack
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


class Dispatcher:
    """Hand events to the scheduler and carry out its actions, on one event loop.

    Args:
        policy: how programs are scheduled.
        engine: runs LLM calls.
        pool: makes environments; None where there are none.
        store: takes leases, decisions and what is learned of agents.
        bus: takes notices of what happens to programs.
        record: keep the scheduler's decisions in the store.
        tool_slots: most tool calls at a time in environments; None is no limit.
        memory: bytes that all environments together may use; None is no limit.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        pool: WarmPool | None,
        store: Store,
        bus: EventBus,
        *,
        record: bool = True,
        tool_slots: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(policy)
        self._record = record
        self.engine, self.pool, self.store, self.bus = engine, pool, store, bus
        self._events: deque[Event] = deque()
        self._emitting = False
        self._progress = ProgressBatcher(lambda event: self.emit(event), engine.info.id)
        self._admitted, self._started = Gate[None](), Gate[float]()
        self._slots = None if tool_slots is None else ToolSlots(tool_slots)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusal: Callable[[], Exception] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._write_back = WriteBack(store, self.scheduler.state)
        self.environments = EnvLeases(pool, store, self.emit, self.note, self._later, memory)
        self._engine_is(True)
        if isinstance(engine, Restarting):
            engine.watch(self._engine_is)

    def emit(self, event: Event) -> None:
        """Hand an event to the scheduler and carry out its actions.

        Events that these set off are handled afterwards, in order.
        """
        self._events.append(event)
        if self._emitting:
            return
        self._emitting = True
        try:
            while self._events:
                for action in self.scheduler.handle(self._events.popleft(), time.monotonic()):
                    self._carry_out(action)
        finally:
            self._emitting = False

    def _carry_out(self, action: Action) -> None:
        match action:
            case Admit():
                self._decided(action)
                self._admitted.open(action.program, None)
            case StartStep():
                self.environments.unpark(action.program)
                self._started.open(action.step, action.priority)
            case RefuseStep():
                self._refuse_step(action)
            case StartTool():
                if self._slots is not None:
                    self._slots.start(action.call, action.priority)
            case LeaseKV():
                self._later(self._lease(action))
            case DemoteKV():
                self._later(self._demote(action))
            case PrefetchKV():
                self._later(self._prefetch(action))
            case ReleaseKV():
                self._later(self._release_kv(action))
            case ScheduleTick():
                self._wake(action)
            case WarmEnv():
                self.environments.target(action.env, action.count)
            case ClaimEnv():
                self.environments.claim_early(action.env, Owner(action.program))
            case ParkEnvs():
                self._park(action)
            case ReleaseEnvs():
                self._admitted.forget(action.program)
                self._later(self.environments.release(action.program))
            case _:
                raise TypeError(f"one engine cannot carry out {action}")

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
        """Let calls that run go on, and start no others.

        Args:
            error: makes the error for each caller that waits for the start of a call or of a
                program, now or later.
        """
        self._refusal = error
        self.emit(EngineDrain(self.engine.info.id))
        self._admitted.refuse_all(error)
        self._started.refuse_all(error)

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
            self._progress.flush()  # it decoded before
            self.emit(Preempted(program, step, self.engine.info.id))
        elif delta.finish is None:
            self._progress.add(program, step, context)

    def runs(self, program: str) -> bool:
        """Return whether a program's calls go to the engine.

        They do while it is admitted and neither paused nor about to be.
        """
        found = self.scheduler.state.active.get(program)
        return found is not None and not found.pause_pending

    def note(self, program: str, kind: str, **detail: Any) -> None:
        """Publish a notice of what happened to a program, on the bus."""
        self.bus.publish(Notice(time.time(), program, kind, detail))

    # --- what programs wait for -----------------------------------------------------------

    def expect_admission(self, program: str) -> asyncio.Future[None]:
        """Return what resolves when a program may begin. Raises what `drain` was given."""
        self._not_draining()
        return self._admitted.wait(program)

    def expect_start(self, step: str) -> asyncio.Future[float]:
        """Return what resolves with the priority of an LLM call when it may go to its engine.

        Raises what `drain` was given.
        """
        self._not_draining()
        return self._started.wait(step)

    def _not_draining(self) -> None:
        if self._refusal is not None:
            raise self._refusal()

    @contextlib.asynccontextmanager
    async def tool_slot(
        self, program: str, conversation: str, call: str, tool: str
    ) -> AsyncIterator[None]:
        """Hold a slot for a tool call that runs in an environment, where slots are limited."""
        slots, pool, name = self._slots, self.pool, f"{program}:{call}"
        if slots is None or pool is None:
            yield
            return

        def announce() -> None:
            self.emit(ToolReady(program, conversation, name, tool, pool.provider.host))

        async with slots.slot(name, announce):
            yield

    def _refuse_step(self, action: RefuseStep) -> None:
        self._decided(action)
        self._started.refuse(
            action.step,
            ContextTooLong(
                f"the prompt has {action.prompt} tokens; this engine holds {action.room} (the "
                "model's context or the KV cache, whichever is smaller): shorten the prompt or "
                "raise kv_tokens"
            ),
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
        """Let a new conversation share the KV of another one."""
        self._later(self._fork(parent, child))

    async def _fork(self, parent: str, child: str) -> None:
        await self.engine.fork(parent, child)

    def _park(self, action: ParkEnvs) -> None:
        self._decided(action)
        self.environments.park(action.program)

    # --- background work ------------------------------------------------------------------

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

    async def load_graphs(self) -> None:
        """Go on from what earlier runtimes on this store learned of agents."""
        await self._write_back.graphs.load()

    async def settle(self) -> None:
        """Wait until everything decided so far was carried out."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Carry out what was decided, then stop; engine, pool and store stay open."""
        if isinstance(self.engine, Restarting):
            self.engine.watch(lambda up: None)
        await self.settle()
        for timer in self._timers:
            timer.cancel()
        await self._write_back.close()


__all__ = ["Dispatcher"]
