"""Environments of live programs: put aside and back, taken over after a crash, not left behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from drawloom import Env, Limits, Runtime, Sandbox, SandboxOptions, agent, tool
from drawloom.errors import SandboxDied
from drawloom.ids import new_id
from drawloom.runtime.cli import sandboxes
from drawloom.runtime.dispatch.env_claim import Owner
from drawloom.runtime.dispatch.env_leases import EnvLeases
from drawloom.runtime.scheduler.actions import ParkEnvs
from drawloom.runtime.store.store import Store
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.docker.provider import DockerProvider
from drawloom.sandbox.local.provider import ProcessProvider
from drawloom.sandbox.pool.parked import is_snapshot_id
from drawloom.sandbox.pool.warm_pool import WarmPool

ENV = Env(BOX)


@tool(env=ENV)
async def put(box: Sandbox, text: str) -> str:
    await box.write("kept", text.encode())
    return box.id


@tool(env=ENV)
async def get(box: Sandbox) -> tuple[str, str]:
    return box.id, (await box.read("kept")).decode()


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_a_program_goes_on_with_the_files_of_what_was_put_aside(
    kind: str, request: pytest.FixtureRequest
) -> None:
    docker = request.getfixturevalue("docker_url") if kind == "docker" else None
    async with Runtime(
        sandbox=SandboxOptions(provider=kind, docker=docker), limits=Limits(environments=1)
    ) as runtime:
        rows: list[list[str]] = []

        async def leased() -> None:
            await runtime.dispatcher.settle()
            rows.append([row.sandbox for row in await runtime.store.leases()])

        @agent(tools=[put, get])
        async def keeper() -> list[Any]:
            first = await put("one")
            (program,) = runtime.dispatcher.scheduler.state.programs
            park = ParkEnvs("host", program)
            runtime.dispatcher._park(park)
            await leased()
            second, text = await get()  # it is held still: aside again after use
            runtime.dispatcher.environments.unpark(program)
            third, again = await get()  # nobody waits until it is aside
            await leased()
            return [len({first, second, third}), text, again]

        assert await runtime.run(keeper) == [3, "one", "one"]
        assert [[is_snapshot_id(id) for id in several] for several in rows] == [[True], [False]]
        await runtime.dispatcher.settle()
        assert await runtime.store.leases() == []
        pool = runtime.dispatcher.pool
        assert pool is not None
        assert (pool.total, pool.counters.parked, pool.counters.restored) == (0, 2, 2)
        assert await pool.provider.snapshots() == []


async def test_nothing_is_put_aside_while_something_runs_in_it() -> None:
    async with Runtime(sandbox="process", limits=Limits(environments=1)) as runtime:

        @tool(env=ENV)
        async def slow(box: Sandbox) -> str:
            (program,) = runtime.dispatcher.scheduler.state.programs
            runtime.dispatcher._park(ParkEnvs("host", program))
            await runtime.dispatcher.settle()
            return (await box.sh("echo still here")).text

        @agent(tools=[put, slow, get])
        async def keeper() -> list[Any]:
            first, said = await put("one"), await slow()
            second, text = await get()
            return [first == second, said, text]

        assert await runtime.run(keeper) == [False, "still here\n", "one"]


@pytest.fixture
async def provider() -> AsyncIterator[ProcessProvider]:
    made = ProcessProvider(new_id("store"))
    yield made
    assert await made.owned() == []
    assert await made.snapshots() == []
    await made.close()


def _leases(pool: WarmPool, store: Store) -> EnvLeases:
    tasks: list[asyncio.Task[None]] = []
    return EnvLeases(
        pool,
        store,
        lambda event: None,
        lambda program, kind, **detail: None,
        lambda work: tasks.append(asyncio.create_task(work)),
    )


@pytest.mark.parametrize("survives", [True, False])
async def test_of_a_program_killed_on_its_way_aside_what_is_there_is_taken_over(
    provider: ProcessProvider, survives: bool
) -> None:
    box = await provider.create(ENV, new_id("box"))
    await box.write("kept", b"42")
    snapshot = await provider.snapshot(box.id, new_id("snap"))
    if not survives:
        await box.destroy()
    store = Store("sqlite://")
    pool = WarmPool(provider)
    environments = _leases(pool, store)
    await environments.adopt(Owner("p"), {ENV: [snapshot.id, box.id]})
    claimed = await environments.claim(ENV, Owner("p"))
    assert (claimed.id == box.id) == survives
    assert await claimed.read("kept") == b"42"
    assert (await provider.snapshots() == []) == survives  # else it stands on the snapshot
    await environments.release("p")
    await pool.close()
    await store.close()


async def test_what_is_gone_altogether_is_said_to_be(provider: ProcessProvider) -> None:
    store = Store("sqlite://")
    pool = WarmPool(provider)
    environments = _leases(pool, store)
    with pytest.raises(SandboxDied, match="gone"):
        await environments.adopt(Owner("p"), {ENV: ["snap-none", "box-none"]})
    await pool.close()
    await store.close()


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_gc_removes_snapshots_that_no_program_can_come_back_to(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, docker = f"sqlite:///{tmp_path}/s.db", None
    store = Store(url)
    provider: Provider
    if kind == "docker":
        docker = request.getfixturevalue("docker_url")
        provider = DockerProvider(store.id, docker)
    else:
        provider = ProcessProvider(store.id)
    await store.close()
    box = await provider.create(ENV, new_id("box"))
    snapshot = await provider.snapshot(box.id, new_id("snap"))
    await box.destroy()
    assert await sandboxes.ls(docker, json=True) == 0
    assert (snapshot.id, f"{kind} snapshot", store.id) in {
        (row["id"], row["kind"], row["owner"]) for row in json.loads(capsys.readouterr().out)
    }
    assert await sandboxes.gc(url, docker, all=False, json=True) == 0
    assert snapshot.id in json.loads(capsys.readouterr().out)["removed"]
    assert await provider.snapshots() == []
    await provider.close()
