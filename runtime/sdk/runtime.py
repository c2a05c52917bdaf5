"""`Runtime`: owns an engine, a pool of environments, a scheduler and a store; runs programs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import copy_context
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from drawloom.engine.api.engine import Engine
from drawloom.engine.config import EngineConfig
from drawloom.environments import Env, Sandbox, parse_size
from drawloom.errors import (
    BudgetExceeded,
    ConfigError,
    SandboxError,
)
from drawloom.ids import new_id
from drawloom.runtime.console.timeline import RESUMED
from drawloom.runtime.dispatch.backends import TINY, model_folder, open_engine, open_provider
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.dispatch.event_bus import EventBus, LocalBus
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.arguments import bind_arguments
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.execution.program import Program, current_program
from drawloom.runtime.execution.replay import (
    ask_again,
    last_run,
    record_arguments,
    restore_arguments,
)
from drawloom.runtime.execution.tool_step import DirectCalls
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.events import ProgramEnded, ProgramSubmitted, TenantShare
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sdk.adoption import adopt, environments_of, lasting, sweep_store
from drawloom.runtime.sdk.run import Run
from drawloom.runtime.sdk.sync import SyncUse
from drawloom.runtime.server.gateway_factory import GatewayFactory
from drawloom.runtime.store.result_json import result_json
from drawloom.runtime.store.store import StepRow, Store
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.pool.warm_pool import WarmPool
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.tool import tool_host

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("drawloom.runtime")


class Runtime(SyncUse):
    """Runs agents. Use it as ``async with Runtime(…) as rt``; closing it releases everything.

    Args:
        model: a model folder, a hub id, ``tinyagent`` (the model in the box), or an `Engine`.
        store: a SQLAlchemy URL; by default in memory, so nothing can be resumed.
        policy: how programs are scheduled, by name.
        sandbox: ``auto`` (Docker if an engine answers, else local processes if they can be fully
            isolated), ``docker``, ``process``, ``none``, or a `Provider`.
        docker: the Docker engine's URL; by default as the environment says.
        pool: most environments kept ready, over all kinds.
        containers: most environments at a time, in use or ready; programs wait for a place before
            they start. Needs a policy that admits by places (`drawloom`). By default no limit.
        memory: most memory of all environments together, as their limits have it (``"16g"``); as
            many are there at a time as fit if each were as large as the largest. As `containers`.
        tool_slots: most tool calls at a time in all environments; by default no limit.
        kv_tokens: tokens of KV cache; 0 takes what fits.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        template: how chats are rendered, for an `Engine` that brings no checkpoint folder.
        engine: options of the embedded engine, an `EngineConfig`; instead of the two before.
        isolate: run the engine in a process of its own, whose crash fails no program.
        record: keep the scheduler's decisions in the store.
        cost: what computing costs here, measured by `drawloom profile`; learnt otherwise.
        tenants: weights and limits of tenants; others have weight 1 and no limit.

    Raises on entry: `CheckpointError`, `StoreError`, `SandboxUnavailable`, `ConfigError`.
    """

    def __init__(
        self,
        model: str | Engine = TINY,
        *,
        store: str = "sqlite://",
        policy: str = "drawloom",
        sandbox: str | Provider = "auto",
        docker: str | None = None,
        pool: int = 8,
        kv_tokens: int = 0,
        device: str = "auto",
        template: ChatTemplate | None = None,
        engine: EngineConfig | None = None,
        isolate: bool = False,
        record: bool = True,
        cost: CostModel | None = None,
        tenants: Iterable[TenantShare] = (),
        containers: int | None = None,
        memory: str | None = None,
        tool_slots: int | None = None,
    ) -> None:
        self._policy = make_policy(policy)
        self._model, self._url, self._sandbox, self._docker = model, store, sandbox, docker
        self._pool_size, self._kv_tokens, self._device = pool, kv_tokens, device
        self._template = template
        self._config, self._isolate, self._record = engine, isolate, record
        self._cost, self._tenants = cost, tuple(tenants)
        self._containers, self._tool_slots = containers, tool_slots
        self._memory = None if memory is None else parse_size(memory)
        for name, limit in (("containers", containers), ("tool_slots", tool_slots)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name}={limit}: nothing could run; leave it out for no limit")
        for name, given in (("containers", containers), ("memory", memory)):
            if given is not None and not self._policy.admits_by_env_capacity:
                raise ConfigError(
                    f"{name}={given}: policy {policy!r} does not admit programs by places, so they "
                    "could wait for each other's for ever; choose drawloom, or leave it out"
                )
        self._runs: dict[str, Run[Any]] = {}
        self._resuming: set[str] = set()
        self._dispatcher: Dispatcher | None = None
        self.bus: EventBus = LocalBus()

    @property
    def dispatcher(self) -> Dispatcher:
        """Engine, pool, store and scheduler of a runtime that is open."""
        if self._dispatcher is None:
            raise ConfigError("this runtime is not open: async with Runtime(…) as rt")
        return self._dispatcher

    @property
    def template(self) -> ChatTemplate:
        """How this runtime renders chats. Raises `ConfigError` when it was given none."""
        if self._template is None:
            raise ConfigError("an engine of your own needs Runtime(template=ChatTemplate(…))")
        return self._template

    @property
    def store(self) -> Store:
        return self.dispatcher.store

    async def __aenter__(self) -> "Runtime":
        async with contextlib.AsyncExitStack() as undo:
            store = await asyncio.to_thread(Store, self._url)
            undo.push_async_callback(store.close)
            engine = await self._open_engine()
            undo.push_async_callback(engine.close)
            provider = await open_provider(self._sandbox, store.id, self._docker)
            pool = self._open_pool(provider) if provider is not None else None
            if pool is not None:
                undo.push_async_callback(pool.close)
            dispatcher = Dispatcher(
                self._policy, engine, pool, store, self.bus, self._record, self._tool_slots,
                self._memory,
            )  # fmt: skip
            undo.push_async_callback(dispatcher.close)
            if self._cost is not None:
                dispatcher.scheduler.state.cost = self._cost
            for share in self._tenants:
                dispatcher.emit(share)
            await dispatcher.remember()
            self._dispatcher = dispatcher
            if provider is not None:
                gateways = provider.gateway = GatewayFactory(self)
                undo.push_async_callback(gateways.close_all)
            await sweep_store(self.dispatcher)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in list(self._runs.values()):
            await run.cancel()
        await self.bus.close()
        await self._undo.aclose()
        self._dispatcher = None

    def running(self, program: str) -> Program | None:
        """A program that runs here now."""
        run = self._runs.get(program)
        return run.program if run is not None else None

    # --- programs -------------------------------------------------------------------------

    async def start(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Start a program.

        A resumed program is given equal arguments; of classes that the agent's annotations do not
        name, as JSON has them. Raises `ConfigError` if they cannot be kept, or it needs more
        environments than there may be, or if they do not fit the annotations.
        """
        self._may_house(agent)
        arguments = record_arguments(agent.name, agent.fn, args, kwargs)
        given, named = bind_arguments(agent, args, kwargs)
        id = new_id("prog")
        options = {
            "policy": self._policy.name,
            "tenant": agent.tenant,
            "priority": agent.priority,
            "model": self._model if isinstance(self._model, str) else None,
            "sandbox": self.dispatcher.pool.provider.name if self.dispatcher.pool else "none",
        }
        await self.store.add_program(id, agent.name, agent.entry, arguments, options)
        return self._launch(id, agent, given, named, {})

    async def run(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a program and wait for its result."""
        return await (await self.start(agent, *args, **kwargs)).result()

    async def resume(self, agent: Agent[..., R], id: str) -> Run[R]:
        """Go on with a program whose process died. Finished steps are not run again.

        A program whose code has changed raises `ReplayMismatch` and stays interrupted. LLM calls
        whose failure ended it are asked again.

        Raises `StoreError` for an unknown program, `ConfigError` for one that is done, and
        `SandboxError` for one whose environment is gone: that one has failed.
        """
        self._may_house(agent)
        if id in self._runs or id in self._resuming:
            raise ConfigError(f"program {id} is running here already")
        self._resuming.add(id)
        try:
            return await self._resume(agent, id)
        finally:
            self._resuming.discard(id)

    async def _resume(self, agent: Agent[..., R], id: str) -> Run[R]:
        row = await self.store.program(id)
        if row.status == "done":
            raise ConfigError(f"program {id} is done; there is nothing to resume")
        if row.agent != agent.name:
            raise ConfigError(f"program {id} is of agent {row.agent!r}, not {agent.name!r}")
        replay = {step.key: step for step in await self.store.steps(id)}
        if row.status == "failed":
            await ask_again(self.store, id, replay)
        try:
            adopted = await adopt(self.dispatcher, agent, id, replay)
        except SandboxError as error:
            await self.store.set_program(id, status="failed", error=str(error), ended=time.time())
            for lease in await self.store.leases():
                if Owner.parse(lease.program).program == id:
                    await self.store.unlease(lease.program)
            raise
        arguments = restore_arguments(id, agent.fn, row.arguments)
        given, named = bind_arguments(agent, arguments["args"], arguments["kwargs"])
        since = await last_run(self.store, row, replay)
        self.store.decide(id, RESUMED, {"since": since})
        return self._launch(id, agent, given, named, replay, adopted, row.started)

    def _may_house(self, agent: Agent[..., Any]) -> None:
        wanted, most = len(environments_of(agent)), self._containers
        if most is not None and wanted > most:
            raise ConfigError(
                f"agent {agent.name} uses {wanted} environments, and containers={most}: raise it"
            )
        largest = max((env.footprint for env in environments_of(agent)), default=0)
        if self._memory is not None and wanted * largest > self._memory:
            raise ConfigError(
                f"agent {agent.name} uses {wanted} environments of up to {largest >> 20} MiB, and "
                f"memory is {self._memory >> 20} MiB: raise it, or lower Env(memory=…)"
            )

    def _launch(
        self,
        id: str,
        agent: Agent[..., R],
        args: Any,
        kwargs: Any,
        replay: dict[str, StepRow],
        adopted: bool = False,
        began: float | None = None,
    ) -> Run[R]:
        program = Program(id, agent, self.dispatcher, self.template, Account(agent.budget), replay)
        program.adopted, program.began = adopted, began
        for env in environments_of(agent):
            self.dispatcher.environments.declare(env)
        shared = {env.key for env in lasting(agent)}
        self.dispatcher.environments.declare_per_call(
            id, {e.key for e in environments_of(agent)} - shared
        )
        learned = self.dispatcher.scheduler.state.graph(agent.name)
        for tool in agent.tools:
            if tool.expect is not None:
                learned.durations.declare(tool.name, tool.expect)
        context = copy_context()
        context.run(current_program.set, program)
        context.run(tool_host.set, DirectCalls(program))
        work = self._program(program, lambda: agent(*args, **kwargs))
        task = asyncio.get_running_loop().create_task(work, context=context)
        task.add_done_callback(_retrieve)
        run = self._runs[id] = Run(program, task, self.bus)
        return run

    async def _program(self, program: Program, body: Callable[[], Awaitable[R]]) -> R:
        status, result, words = "failed", None, None
        dispatcher, agent = self.dispatcher, program.agent
        try:
            await self._admission(program)
            began = program.began = program.began or time.time()
            again = {"error": None, "ended": None}
            await self.store.set_program(program.id, status="running", started=began, **again)
            dispatcher.note(program.id, "program.started")
            async with _deadline(agent.budget.seconds):
                value = await body()
            if program.diverged is not None:
                raise program.diverged
            result, status = result_json(value), "done"
            return value
        except asyncio.CancelledError:
            status, words = "cancelled", "cancelled"
            raise
        except Exception as error:
            if (diverged := program.diverged) is None:
                words = f"{type(error).__name__}: {error}"
                raise
            status, words = "interrupted", f"{type(diverged).__name__}: {diverged}"
            dispatcher.environments.leave_to_resume(program.id)
            raise diverged from None
        finally:
            self._runs.pop(program.id, None)
            await asyncio.shield(self._end(program, status, result, words))

    async def _admission(self, program: Program) -> None:
        dispatcher, agent = self.dispatcher, program.agent
        admitted = dispatcher.expect_admission(program.id)
        deadline = time.monotonic() + agent.deadline if agent.deadline is not None else None
        envs = tuple(e.key for e in environments_of(agent)) if dispatcher.pool is not None else ()
        shared = {e.key for e in lasting(agent)}
        dispatcher.note(program.id, "program.submitted")
        dispatcher.emit(
            ProgramSubmitted(
                program.id, agent.name, agent.tenant, agent.priority, deadline, envs,
                agent.expect_tokens, fresh=tuple(key for key in envs if key not in shared),
            )
        )  # fmt: skip
        async with _deadline(agent.budget.seconds):
            await admitted

    async def _end(self, program: Program, status: str, result: Any, words: str | None) -> None:
        """Record the end, then give everything back: a crash in between leaves an environment to
        sweep, never a program that waits for one that is gone."""
        await program.stop_tasks()
        values = {"status": status, "result": result, "error": words, "ended": time.time()}
        try:
            await self.store.set_program(program.id, **values)
        finally:
            self.dispatcher.emit(ProgramEnded(program.id))
            await self.dispatcher.settle()
            self.dispatcher.note(program.id, "program.ended", status=status, error=words)

    @contextlib.asynccontextmanager
    async def sandbox(self, env: Env) -> AsyncIterator[Sandbox]:
        """An environment for code outside of programs, destroyed after it. Raises `SandboxError`
        when there can be none."""
        self.dispatcher.environments.declare(env)
        async with self.dispatcher.environments.claim_per_call(env, new_id("host")) as sandbox:
            yield sandbox

    # --- what a runtime owns --------------------------------------------------------------

    async def _open_engine(self) -> Engine:
        if not isinstance(self._model, str):
            return self._model
        config = self._config or EngineConfig(device=self._device, kv_tokens=self._kv_tokens)
        folder = await model_folder(self._model)
        self._template = self._template or ChatTemplate.load(folder)
        return await open_engine(folder, config, self._isolate)

    def _open_pool(self, provider: Provider) -> WarmPool:
        most = self._containers
        ready = self._pool_size if most is None else min(self._pool_size, most)
        return WarmPool(provider, max_warm=ready, max_total=most)


@contextlib.asynccontextmanager
async def _deadline(seconds: float | None) -> AsyncIterator[None]:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():  # the agent's own
            raise
        raise BudgetExceeded(f"the budget of {seconds:g} seconds is spent") from None


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()  # it is in the store; nobody may be waiting for it


__all__ = ["Runtime"]
