"""Branches that have environments of their own."""

import asyncio
from typing import Any

import pytest

from drawloom import (
    Chat,
    Env,
    Limits,
    Runtime,
    Sandbox,
    SandboxOptions,
    agent,
    best_of,
    gather,
    tool,
)
from drawloom.errors import SandboxError
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.testing.fake import FakeProvider

ENV = Env(BOX)


@tool(env=ENV)
async def sh(box: Sandbox, command: str) -> tuple[str, str]:
    return box.id, (await box.sh(command)).text


async def _begun() -> Chat:
    chat = Chat().user("try")
    await chat.turn(max_tokens=4)
    chat.user("go on")
    return chat


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_branches_begin_with_the_program_s_files_and_the_best_one_s_remain(
    kind: str, request: pytest.FixtureRequest
) -> None:
    docker = request.getfixturevalue("docker_url") if kind == "docker" else None
    seen: dict[str, list[Any]] = {"begin": [], "boxes": []}

    @agent(tools=[sh])
    async def solver() -> list[Any]:
        before, _ = await sh("echo base > file; mkdir deep; echo x > deep/f")
        chat = await _begun()

        async def attempt(branch: Chat) -> int:
            number = len(seen["boxes"])
            seen["boxes"].append(None)
            tree = "find . -type f | sort | xargs cat"
            box, text = await sh(tree)
            seen["begin"].append(text)
            seen["boxes"][number] = box
            again, _ = await sh(f"echo branch{number} >> file")
            assert again == box, "a branch keeps its environment"
            return number

        best = await best_of(3, attempt, chat, key=lambda n: n, fork_env=True)
        after, text = await sh("cat file")
        return [before, after, best, text]

    async with Runtime(sandbox=SandboxOptions(provider=kind, docker=docker)) as runtime:
        run = await runtime.start(solver)
        before, after, best, text = await run.result()
        assert seen["begin"] == [seen["begin"][0]] * 3, "all began alike"
        assert text == f"base\nbranch{best}\n"
        assert after == seen["boxes"][best] != before
        assert len({before, *seen["boxes"]}) == 4
        assert runtime.dispatcher.pool is not None
        provider = runtime.dispatcher.pool.provider
        assert await provider.snapshots() == []
        assert await runtime.store.leases() == []
        left = {box.id for box in await provider.owned()}
        assert not left & {before, *seen["boxes"]}


async def test_only_the_best_one_s_lease_is_left_while_the_program_goes_on(
    open_runtime: Any,
) -> None:
    provider = FakeProvider()
    rows: list[Any] = []

    @agent(tools=[sh])
    async def solver() -> None:
        await sh("true")

        async def attempt(branch: Chat) -> str:
            box, _ = await sh("true")
            return box

        best = await best_of(3, attempt, await _begun(), key=str, fork_env=True)
        rows.append((best, await runtime.store.leases(), dict(provider.live)))

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    run = await runtime.start(solver)
    await run.result()
    ((best, leases, live),) = rows
    assert [(row.sandbox, row.program) for row in leases] == [(best, run.id)]
    assert list(live) == [best]
    assert provider.kept == {}
    assert len(provider.forked) == 3


async def test_without_fork_env_branches_share_the_program_s_environment(open_runtime: Any) -> None:
    @agent(tools=[sh])
    async def solver() -> set[str]:
        async def one() -> str:
            return (await sh("true"))[0]

        return set(await gather(one, one))

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=FakeProvider())
    found = await runtime.run(solver)
    assert len(found) == 1


async def test_branches_that_touch_nothing_cost_nothing(open_runtime: Any) -> None:
    provider = FakeProvider()

    @agent(tools=[sh])
    async def solver() -> tuple[str, int]:
        before, _ = await sh("true")

        async def attempt(branch: Chat) -> int:
            return 1

        await best_of(2, attempt, await _begun(), key=lambda n: n, fork_env=True)
        return before, len(provider.forked)

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    _, forked = await runtime.run(solver)
    assert forked == 0
    assert provider.kept == {}


async def test_a_branch_that_fails_and_a_program_that_is_cancelled_leave_nothing(
    open_runtime: Any,
) -> None:
    provider = FakeProvider()
    inside = asyncio.Event()

    @agent(tools=[sh])
    async def solver(hang: bool) -> None:
        await sh("true")

        async def attempt(branch: Chat) -> int:
            await sh("true")
            inside.set()
            if hang:
                await asyncio.sleep(60)
            raise ValueError("no")

        await best_of(2, attempt, await _begun(), key=lambda n: n, fork_env=True)

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    with pytest.raises(ValueError, match="no"):
        await runtime.run(solver, False)
    inside.clear()
    run = await runtime.start(solver, True)
    await inside.wait()
    await run.cancel()
    await runtime.dispatcher.settle()
    assert (provider.kept, await runtime.store.leases()) == ({}, [])
    assert runtime.dispatcher.pool is not None and runtime.dispatcher.pool.in_use == 0


async def test_where_places_are_limited_it_is_refused(open_runtime: Any) -> None:
    @agent(tools=[sh])
    async def solver() -> str:
        async def attempt(branch: Chat) -> int:
            return 1

        with pytest.raises(SandboxError, match=r"leave out Limits\(environments"):
            await best_of(2, attempt, await _begun(), key=lambda n: n, fork_env=True)
        return "told"

    runtime: Runtime = await open_runtime(
        lambda _: "", sandbox=FakeProvider(), limits=Limits(environments=2)
    )
    assert await runtime.run(solver) == "told"
