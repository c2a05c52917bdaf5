"""Recovery of programs that a killed owner of the store left, and of their environments."""

import logging
import time
from typing import Any

from drawloom.environments import Env
from drawloom.errors import ConfigError, SandboxError
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.replay import ask_again
from drawloom.runtime.store.store import ProgramRow, StepRow, Store
from drawloom.sandbox.pool.orphans import remove_orphans

log = logging.getLogger("drawloom.runtime")


async def sweep_store(dispatcher: Dispatcher) -> None:
    """Remove orphaned environments: no program of the store can come back to them."""
    pool = dispatcher.pool
    if pool is None:
        return
    wanted, running = set(), await dispatcher.store.open_programs()
    for lease in await dispatcher.store.leases():
        if Owner.parse(lease.program).program in running:
            wanted.add(lease.sandbox)
        else:
            await dispatcher.store.unlease(lease.program)
    for removed in await remove_orphans(pool.provider, wanted):
        log.info("removed environment %s, left by an earlier process", removed)


async def open_row(store: Store, agent: Agent[..., Any], id: str) -> ProgramRow:
    """Return the row of a program that this agent can resume.

    Raises:
        StoreError: there is no such program.
        ConfigError: it is done, or of another agent.
    """
    row = await store.program(id)
    if row.status == "done":
        raise ConfigError(f"program {id} is done; there is nothing to resume")
    if row.agent != agent.name:
        raise ConfigError(f"program {id} is of agent {row.agent!r}, not {agent.name!r}")
    return row


async def recorded_steps(store: Store, row: ProgramRow) -> dict[str, StepRow]:
    """Return the steps to replay, by key; LLM calls whose failure ended it are forgotten."""
    replay = {step.key: step for step in await store.steps(row.id)}
    if row.status == "failed":
        await ask_again(store, row.id, replay)
    return replay


async def adopt_or_fail(
    dispatcher: Dispatcher, agent: Agent[..., Any], id: str, replay: dict[str, StepRow]
) -> bool:
    """Take over a program's environments as `adopt` does; where files are lost, it has failed."""
    store = dispatcher.store
    try:
        return await adopt(dispatcher, agent, id, replay)
    except SandboxError as error:
        await store.set_program(id, status="failed", error=str(error), ended=time.time())
        for lease in await store.leases():
            if Owner.parse(lease.program).program == id:
                await store.unlease(lease.program)
        raise


async def adopt(
    dispatcher: Dispatcher, agent: Agent[..., Any], id: str, replay: dict[str, StepRow]
) -> bool:
    """Take over a program's environments. A call without a lease never began.

    Returns:
        Whether calls in flight there may go on.

    Raises:
        SandboxError: files of the program are lost.
    """
    rows = await dispatcher.store.leases()
    leases = [row for row in rows if Owner.parse(row.program).program == id]
    if {row.env for row in leases} - {env.key for env in lasting(agent)}:
        raise SandboxError(
            f"program {id} cannot be resumed: it ran in an environment that its agent no "
            "longer declares; its image, setup and limits must be as they were"
        )
    for owner in {row.program for row in leases}:
        ids = {
            env: [r.sandbox for r in leases if (r.program, r.env) == (owner, env.key)]
            for env in lasting(agent)
        }
        found = {env: several for env, several in ids.items() if several}
        await dispatcher.environments.adopt(Owner.parse(owner), found)
    names = {t.name for t in agent.tools if t.env is not None and not t.fresh}
    ran = [s for s in replay.values() if s.name in names and s.status == "done"]
    if not leases and any(s.detail.get("ok") for s in ran):
        raise SandboxError(
            f"program {id} cannot be resumed: its environment was removed, and the files that "
            "its steps wrote with it"
        )
    pool = dispatcher.pool
    return not leases or (pool is not None and pool.provider.keeps_running)


def environments_of(agent: Agent[..., Any]) -> list[Env]:
    """List the environments that an agent's tools run in."""
    return list({t.env.key: t.env for t in agent.tools if t.env is not None}.values())


def lasting(agent: Agent[..., Any]) -> list[Env]:
    """List the environments of an agent whose files the calls of a program share."""
    shared = (t.env for t in agent.tools if t.env is not None and not t.fresh)
    return list({env.key: env for env in shared}.values())


__all__ = [
    "adopt_or_fail",
    "environments_of",
    "lasting",
    "open_row",
    "recorded_steps",
    "sweep_store",
]
