"""Runtime: an engine, a pool of environments, a scheduler and a store, and programs on them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from drawloom.engine.api.engine import Engine
from drawloom.engine.config import EngineConfig
from drawloom.environments import Env, Sandbox
from drawloom.errors import (
    ConfigError,
)
from drawloom.ids import new_id
from drawloom.runtime.console.timeline import RESUMED
from drawloom.runtime.dispatch.backends import TINY, model_folder, open_engine, open_provider
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.event_bus import EventBus, LocalBus
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.arguments import bind_arguments
from drawloom.runtime.execution.budget import Account
from drawloom.runtime.execution.program import Program
from drawloom.runtime.execution.replay import (
    last_run,
    record_arguments,
    restore_arguments,
)
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sdk.options import Limits, SandboxOptions
from drawloom.runtime.sdk.program_runner import ProgramRunner
from drawloom.runtime.sdk.recovery import (
    adopt_or_fail,
    environments_of,
    open_row,
    recorded_steps,
    sweep_store,
)
from drawloom.runtime.sdk.run import Run
from drawloom.runtime.sdk.sync import SyncUse
from drawloom.runtime.server.gateway_factory import GatewayFactory
from drawloom.runtime.store.store import Store
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.pool.warm_pool import WarmPool
from drawloom.tools.chat_template import ChatTemplate

P = ParamSpec("P")
R = TypeVar("R")
_NOT_OPEN = "this runtime is not open: async with Runtime(…) as rt"


class Runtime(SyncUse):
    """Run agents. Use it as ``async with Runtime(…) as rt``; closing it releases everything.

    Args:
        model: a model folder, a hub id, ``tinyagent`` (the model in the box), or an `Engine`.
        engine: options of the embedded engine, for a `model` that is loaded here; by default a GPU
            where there is one, else the CPU, with as large a KV cache as fits.
        isolate: run the embedded engine in a process of its own, whose crash fails no program.
        template: how chats are rendered, for an `Engine` that brings no checkpoint folder.
        sandbox: where environments are made: `SandboxOptions`, or only their `provider`.
        store: a SQLAlchemy URL; by default in memory, so nothing can be resumed.
        policy: how programs are scheduled, by name.
        limits: how many environments, tool calls and programs of a tenant there may be.
        record: keep the scheduler's decisions in the store.
        cost: what computing costs here, measured by `drawloom profile`; learnt otherwise.

    Raises:
        ConfigError: two options contradict each other, or one is unknown.

    Raises on entry: `CheckpointError`, `StoreError`, `SandboxUnavailable`, `ConfigError`.
    """

    def __init__(
        self,
        model: str | Engine = TINY,
        *,
        engine: EngineConfig | None = None,
        isolate: bool = False,
        template: ChatTemplate | None = None,
        sandbox: SandboxOptions | str | Provider = "auto",
        store: str = "sqlite://",
        policy: str = "drawloom",
        limits: Limits | None = None,
        record: bool = True,
        cost: CostModel | None = None,
    ) -> None:
        if not isinstance(model, str) and (engine is not None or isolate):
            raise ConfigError(
                "engine=… and isolate=… are options of the embedded engine, and this model is an "
                "Engine that is open already: leave them out"
            )
        self._policy = make_policy(policy)
        self._model, self._engine, self._isolate = model, engine, isolate
        self._template, self._url = template, store
        if not isinstance(sandbox, SandboxOptions):
            sandbox = SandboxOptions(provider=sandbox)
        self._sandbox, self._limits = sandbox, limits or Limits()
        self._limits.check_policy(policy, self._policy.admits_by_env_capacity)
        self._record, self._cost = record, cost
        self._resuming: set[str] = set()
        self._dispatcher: Dispatcher | None = None
        self._runner: ProgramRunner | None = None
        self.bus: EventBus = LocalBus()

    @property
    def dispatcher(self) -> Dispatcher:
        """Return the dispatcher of a runtime that is open, with its engine, pool and store.

        Raises:
            ConfigError: the runtime is not open.
        """
        if self._dispatcher is None:
            raise ConfigError(_NOT_OPEN)
        return self._dispatcher

    @property
    def template(self) -> ChatTemplate:
        """Return the chat template of the model. Raises `ConfigError` when there is none."""
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
            options = self._sandbox
            provider = await open_provider(options.provider, store.id, options.docker)
            pool = self._open_pool(provider) if provider is not None else None
            if pool is not None:
                undo.push_async_callback(pool.close)
            dispatcher = Dispatcher(
                self._policy,
                engine,
                pool,
                store,
                self.bus,
                record=self._record,
                tool_slots=self._limits.tool_slots,
                memory=self._limits.memory_bytes,
            )
            undo.push_async_callback(dispatcher.close)
            if self._cost is not None:
                dispatcher.scheduler.state.cost = self._cost
            for share in self._limits.tenants:
                dispatcher.emit(share)
            await dispatcher.load_graphs()
            self._dispatcher, self._runner = dispatcher, ProgramRunner(dispatcher)
            if provider is not None:
                gateways = provider.gateway = GatewayFactory(self)
                undo.push_async_callback(gateways.close_all)
            await sweep_store(dispatcher)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cancel_all()
        await self.bus.close()
        await self._undo.aclose()
        self._dispatcher = self._runner = None

    def running(self, program: str) -> Program | None:
        """Return the program of this id that runs here now."""
        run = self._runner.runs.get(program) if self._runner is not None else None
        return run.program if run is not None else None

    # --- programs -------------------------------------------------------------------------

    async def start(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Start a program.

        When it is resumed it is given equal arguments; of classes that the agent's annotations do
        not name, as JSON has them.

        Args:
            agent: what to run.
            args: its arguments; they are kept in the store.
            kwargs: likewise, by name.

        Returns:
            The running program.

        Raises:
            ConfigError: the arguments cannot be kept or do not fit the annotations, or the agent
                needs more environments than there may be.
        """
        self._check_limits(agent)
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
        program = Program(id, agent, self.dispatcher, self.template, Account(agent.budget))
        return self._launch(program, lambda: agent(*given, **named))

    async def run(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a program and wait for its result. Raises what the agent raises."""
        return await (await self.start(agent, *args, **kwargs)).result()

    async def resume(self, agent: Agent[..., R], id: str) -> Run[R]:
        """Resume a program whose process died. Finished steps are not run again.

        A program whose code has changed raises `ReplayMismatch` and stays interrupted. LLM calls
        whose failure ended it are asked again.

        Args:
            agent: the agent that it is a program of.
            id: its id.

        Returns:
            The running program.

        Raises:
            StoreError: there is no such program.
            ConfigError: it is done, it runs here, or it is another agent's.
            SandboxError: its environment is gone; it has failed.
        """
        self._check_limits(agent)
        if self.running(id) is not None or id in self._resuming:
            raise ConfigError(f"program {id} is running here already")
        self._resuming.add(id)
        try:
            return await self._resume(agent, id)
        finally:
            self._resuming.discard(id)

    async def _resume(self, agent: Agent[..., R], id: str) -> Run[R]:
        dispatcher = self.dispatcher
        row = await open_row(self.store, agent, id)
        replay = await recorded_steps(self.store, row)
        adopted = await adopt_or_fail(dispatcher, agent, id, replay)
        arguments = restore_arguments(id, agent.fn, row.arguments)
        given, named = bind_arguments(agent, arguments["args"], arguments["kwargs"])
        since = await last_run(self.store, row, replay)
        self.store.decide(id, RESUMED, {"since": since})
        program = Program(id, agent, dispatcher, self.template, Account(agent.budget), replay)
        program.adopted, program.began = adopted, row.started
        return self._launch(program, lambda: agent(*given, **named))

    def _launch(self, program: Program, body: Callable[[], Awaitable[R]]) -> Run[R]:
        if self._runner is None:
            raise ConfigError(_NOT_OPEN)
        return self._runner.launch(program, body)

    def _check_limits(self, agent: Agent[..., Any]) -> None:
        footprints = [env.footprint for env in environments_of(agent)]
        self._limits.check_agent(agent.name, footprints)

    @contextlib.asynccontextmanager
    async def sandbox(self, env: Env) -> AsyncIterator[Sandbox]:
        """Make an environment for code outside of programs, and destroy it after the block.

        Raises:
            SandboxError: there can be none.
        """
        self.dispatcher.environments.declare(env)
        async with self.dispatcher.environments.claim_per_call(env, new_id("host")) as sandbox:
            yield sandbox

    # --- what a runtime owns --------------------------------------------------------------

    async def _open_engine(self) -> Engine:
        if not isinstance(self._model, str):
            return self._model
        config = self._engine or EngineConfig(device="auto")
        folder = await model_folder(self._model)
        self._template = self._template or ChatTemplate.load(folder)
        return await open_engine(folder, config, self._isolate)

    def _open_pool(self, provider: Provider) -> WarmPool:
        most, ready = self._limits.environments, self._sandbox.warm
        max_warm = ready if most is None else min(ready, most)
        return WarmPool(provider, max_warm=max_warm, max_total=most)


__all__ = ["Runtime"]
