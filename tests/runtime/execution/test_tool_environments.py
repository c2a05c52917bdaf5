"""Tools whose every call has an environment of its own, and environments that die under a call."""

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
    Tool,
    ToolError,
    agent,
    tool,
)
from drawloom.errors import ConfigError, SandboxDied, ToolInterrupted
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.testing.fake import FakeProvider
from tests.fakes.scripted_engine import call

ENV = Env(BOX)


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_calls_of_a_fresh_tool_see_nothing_of_each_other(
    kind: str, request: pytest.FixtureRequest
) -> None:
    docker = request.getfixturevalue("docker_url") if kind == "docker" else None

    @tool(env=ENV, fresh=True)
    async def attempt(box: Sandbox, text: str) -> tuple[str, str]:
        seen = await box.sh("cat kept 2>/dev/null")
        await box.write("kept", text.encode())
        return box.id, seen.text

    @agent(tools=[attempt])
    async def tries() -> list[tuple[str, str]]:
        first = await attempt("one")
        return [first, *await asyncio.gather(attempt("two"), attempt("three"))]

    async with Runtime(sandbox=SandboxOptions(provider=kind, docker=docker, warm=2)) as runtime:
        found = await runtime.run(tries)
        assert len({id for id, _ in found}) == 3
        assert {seen for _, seen in found} == {""}
        assert runtime.dispatcher.pool is not None
        assert runtime.dispatcher.pool.in_use == 0
        assert await runtime.store.leases() == []


async def test_a_fresh_environment_is_claimed_when_the_tool_is_named(open_runtime: Any) -> None:
    provider = FakeProvider()
    names: list[str] = []

    @tool(env=ENV, fresh=True)
    async def attempt(box: Sandbox) -> str:
        await box.sh("true")
        names.append(box.id)
        return "done"

    @agent(tools=[attempt])
    async def tries() -> None:
        chat = Chat().user("go")
        while (turn := await chat.turn()).calls:
            await chat.run(turn.calls)

    def script(prompt: str) -> str:
        return (
            "enough"
            if prompt.count("tool_response") > 4
            else call("attempt") + "\n" + call("attempt")
        )

    runtime: Runtime = await open_runtime(script, sandbox=provider)
    events: list[tuple[str, str]] = []
    runtime.bus.publish = (  # type: ignore[method-assign]
        lambda notice: events.append((notice.kind, str(notice.detail.get("tool"))))
    )
    await runtime.run(tries)
    kinds = [kind for kind, _ in events if kind in ("env.claimed", "tool.started")]
    assert kinds[0] == "env.claimed", "as the name was decoded, before the call was whole"
    assert len(set(names)) == len(names) >= 2
    assert runtime.dispatcher.pool is not None
    await runtime.dispatcher.settle()
    assert runtime.dispatcher.pool.in_use == 0


async def test_an_early_claim_that_nobody_used_goes_back(open_runtime: Any) -> None:
    provider = FakeProvider()

    @tool(env=ENV, fresh=True)
    async def attempt(box: Sandbox, text: str) -> str:
        return text

    @agent(tools=[attempt])
    async def refuses() -> None:
        await Chat().user("go").turn()  # names the tool, and is not run

    runtime: Runtime = await open_runtime(lambda _: call("attempt", text="a"), sandbox=provider)
    await runtime.run(refuses)
    pool = runtime.dispatcher.pool
    assert pool is not None and pool.in_use == 0
    assert len(provider.live) == sum(pool.counts(ENV.key)[:1])


async def test_with_few_places_fresh_calls_take_turns(open_runtime: Any) -> None:
    provider = FakeProvider()

    @tool(env=ENV, fresh=True)
    async def attempt(box: Sandbox) -> str:
        await box.sh("true")
        return box.id

    @agent(tools=[attempt])
    async def tries() -> list[str]:
        return await asyncio.gather(*(attempt() for _ in range(6)))

    runtime: Runtime = await open_runtime(
        lambda _: "", sandbox=provider, limits=Limits(environments=2)
    )
    async with asyncio.timeout(30):
        runs = [await runtime.start(tries) for _ in range(3)]
        found = [id for run in runs for id in await run.result()]
    assert len(set(found)) == 18
    assert provider.most <= 2


async def test_memory_bounds_how_many_there_are(open_runtime: Any) -> None:
    provider, small, large = FakeProvider(), Env("a", memory="100m"), Env("b", memory="400m")

    def worker(env: Env, name: str) -> Any:
        @tool(env=env, name=name)
        async def work(box: Sandbox) -> int:
            await box.sh("true")
            await asyncio.sleep(0.1)  # long enough for all of them, were there no limit
            return sum(b.env.footprint for b in provider.live.values()) >> 20

        @agent(tools=[work], name=name)
        async def works() -> int:
            return await work()

        return works

    runtime: Runtime = await open_runtime(
        lambda _: "", sandbox=provider, limits=Limits(memory="1000m")
    )
    async with asyncio.timeout(60):
        first = [await runtime.start(worker(small, "few")) for _ in range(12)]
        used = [await run.result() for run in first]
        assert 500 < max(used) <= 1000
        both = [
            await runtime.start(worker(*pair)) for pair in ((small, "few"), (large, "many")) * 6
        ]
        used = [await run.result() for run in both]
    assert max(used) <= 1000
    with pytest.raises(ConfigError, match="raise it"):
        await runtime.start(worker(Env("c", memory="2g"), "huge"))
    with pytest.raises(ConfigError, match="memory=1g"):
        Runtime(limits=Limits(memory="1g"), policy="fcfs-lru")


def test_a_fresh_tool_needs_an_environment() -> None:
    with pytest.raises(ConfigError, match=r"fresh.*Env"):

        @tool(fresh=True)
        async def plain() -> None: ...


# --- environments that die under a call ---------------------------------------------------


class _Dying:
    """What happens in each environment in turn; the first ones die under their call."""

    def __init__(self, provider: FakeProvider, deaths: int) -> None:
        self.provider, self.deaths, self.ran = provider, deaths, 0

    async def __call__(self, box: Sandbox) -> str:
        await box.exec("true")
        self.ran += 1
        if self.ran <= self.deaths:
            self.provider.live[box.id].lose("host h1 is gone")
        await box.exec("true")
        return box.id

    def tool(self, *, fresh: bool = False, idempotent: bool = False) -> Tool[[], str]:
        """Return a tool that does this in an environment of its program, or in one of its own."""

        @tool(env=ENV, fresh=fresh, idempotent=idempotent)
        async def build(box: Sandbox) -> str:
            return await self(box)

        return build


async def test_a_repeatable_call_goes_on_elsewhere_when_nothing_is_lost(open_runtime: Any) -> None:
    provider = FakeProvider()
    work = _Dying(provider, deaths=2)
    build = work.tool(idempotent=True)

    @agent(tools=[build])
    async def builds() -> list[str]:
        return [await build(), await build()]

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    first, second = await runtime.run(builds)
    assert first == second
    assert work.ran == 4
    assert list(provider.live) == [] or len(await runtime.store.leases()) == 0


async def test_a_call_that_may_not_be_repeated_was_interrupted(open_runtime: Any) -> None:
    provider = FakeProvider()
    work = _Dying(provider, deaths=1)
    build = work.tool()

    @agent(tools=[build])
    async def builds() -> str:
        with pytest.raises(ToolInterrupted, match=r"h1 is gone.*outcome of this call is unknown"):
            await build()
        with pytest.raises(ToolError):
            await build()  # never onto a blank disk
        return "told"

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    assert await runtime.run(builds) == "told"
    assert work.ran == 1


async def test_files_of_earlier_calls_are_never_replaced_by_a_blank_disk(open_runtime: Any) -> None:
    provider = FakeProvider()
    work = _Dying(provider, deaths=0)
    build = work.tool(idempotent=True)

    @agent(tools=[build])
    async def builds() -> str:
        await build()
        work.deaths = 2
        with pytest.raises(SandboxDied, match="h1 is gone"):
            await build()
        return "told"

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    assert await runtime.run(builds) == "told"
    assert work.ran == 2


async def test_a_fresh_call_that_may_be_repeated_has_nothing_to_lose(open_runtime: Any) -> None:
    provider = FakeProvider()
    work = _Dying(provider, deaths=1)
    build = work.tool(fresh=True, idempotent=True)

    @agent(tools=[build])
    async def builds() -> list[str]:
        return [await build(), await build()]

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    found = await runtime.run(builds)
    assert len(set(found)) == 2


async def test_hosts_that_keep_dying_are_given_up_on(open_runtime: Any) -> None:
    provider = FakeProvider()
    work = _Dying(provider, deaths=99)
    build = work.tool(idempotent=True)

    @agent(tools=[build])
    async def builds() -> str:
        with pytest.raises(SandboxDied, match="h1 is gone"):
            await build()
        return "told"

    runtime: Runtime = await open_runtime(lambda _: "", sandbox=provider)
    assert await runtime.run(builds) == "told"
    assert work.ran == 3
