"""What a runtime opens, refuses and closes."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drawloom import (
    Budget,
    BudgetExceeded,
    EngineConfig,
    Env,
    Limits,
    Runtime,
    Sandbox,
    SandboxOptions,
    TenantShare,
    agent,
    tool,
)
from drawloom.errors import ConfigError, SandboxUnavailable, StoreError
from drawloom.runtime.demo import tasks
from drawloom.runtime.demo.agent import solve
from drawloom.sandbox.api.provider import Provider


async def test_a_second_runtime_on_the_same_store_is_refused_and_harms_nothing(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    async with Runtime(sandbox="none", store=url) as runtime:
        with pytest.raises(StoreError, match="in use by process"):
            async with Runtime(sandbox="none", store=url):
                pass
        assert (await runtime.dispatcher.engine.stats()).batch.running == 0
    async with Runtime(sandbox="none", store=url):
        pass


async def test_without_docker_auto_falls_back_and_docker_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        async with Runtime(sandbox="docker"):
            pass
    async with Runtime(sandbox="auto") as runtime:
        assert runtime.dispatcher.pool is not None
        provider: Provider = runtime.dispatcher.pool.provider
        assert provider.name == "process"
        task = tasks.make_task(random.Random(1), family="read", held_out=True)
        assert await runtime.run(solve, [task.question], task.files) == [task.answer]
    assert any("no Docker" in record.message for record in caplog.records)


async def test_what_a_killed_owner_left_is_swept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    code = (
        "import asyncio, os\n"
        "from drawloom import Runtime\n"
        "from drawloom.runtime.demo.tasks import BOX\n"
        "async def main():\n"
        f"    async with Runtime(sandbox='process', store={url!r}) as rt:\n"
        "        await rt.dispatcher.pool.acquire(BOX)\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    async with Runtime(sandbox="process", store=url) as runtime:
        assert runtime.dispatcher.pool is not None
        assert await runtime.dispatcher.pool.provider.owned() == []


async def test_what_is_declared_is_used_until_it_was_seen() -> None:
    @tool(env=Env("any", warm=2), expect=7.0)
    async def work(box: Sandbox) -> str:
        return "never called"

    @agent(tools=[work])
    async def idle() -> None:
        await asyncio.sleep(0.5)

    async with Runtime(sandbox="process") as runtime:
        run = await runtime.start(idle)
        assert runtime.dispatcher.scheduler.state.graph("idle").forecast(
            "s", "work"
        ).seconds_p50 == pytest.approx(7.0, rel=0.02)
        await run.result()
        assert work.env is not None
        assert runtime.dispatcher.pool is not None
        assert sum(runtime.dispatcher.pool.counts(work.env.key)) == 2


async def test_a_tenant_has_no_more_programs_at_a_time_than_it_may() -> None:
    there = {"small": 0, "big": 0}
    most = dict(there)

    async def stay(tenant: str) -> None:
        there[tenant] += 1
        most[tenant] = max(most[tenant], there[tenant])
        await asyncio.sleep(0.05)
        there[tenant] -= 1

    @agent(tenant="small")
    async def small() -> None:
        await stay("small")

    @agent(tenant="big")
    async def big() -> None:
        await stay("big")

    async with Runtime(
        sandbox="none", limits=Limits(tenants=(TenantShare("small", programs=2),))
    ) as runtime:
        await asyncio.gather(*(runtime.run(work) for _ in range(6) for work in (small, big)))
    assert most["small"] == 2
    assert most["big"] > 2


async def test_a_timeout_of_the_agent_s_own_is_not_its_budget_s() -> None:
    @agent(budget=Budget(seconds=30))
    async def late() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    @agent(budget=Budget(seconds=0.01))
    async def spent() -> None:
        await asyncio.sleep(5)

    async with Runtime(sandbox="none") as runtime:
        with pytest.raises(TimeoutError):
            await runtime.run(late)
        with pytest.raises(BudgetExceeded):
            await runtime.run(spent)


class _Crowd:
    """How many are there at a time, and at most."""

    def __init__(self) -> None:
        self.there = self.most = 0

    def __enter__(self) -> None:
        self.there += 1
        self.most = max(self.most, self.there)

    def __exit__(self, *error: object) -> None:
        self.there -= 1


async def test_no_more_containers_than_there_may_be_and_nobody_waits_for_ever() -> None:
    crowd = _Crowd()

    @tool(env=Env("any"))
    async def work(box: Sandbox) -> str:
        return (await box.sh("echo done")).text

    @agent(tools=[work])
    async def busy() -> str:
        with crowd:
            return str(await work())

    async with Runtime(sandbox="process", limits=Limits(environments=2)) as runtime:
        done = await asyncio.gather(*(runtime.run(busy) for _ in range(6)))
        pool = runtime.dispatcher.pool
        assert pool is not None
        assert pool.total <= 2
        assert pool.counters.claims == 6
    assert set(done) == {"done\n"}
    assert crowd.most == 2


async def test_tool_calls_take_turns_where_slots_are_limited() -> None:
    crowd = _Crowd()

    @tool(env=Env("any"))
    async def work(box: Sandbox, seconds: float) -> str:
        with crowd:
            await asyncio.sleep(seconds)
        return "done"

    @agent(tools=[work])
    async def busy() -> None:
        await work(0.02)
        await work(0.02)

    @agent(tools=[work])
    async def gives_up() -> None:
        async with asyncio.timeout(0.01):
            await work(5.0)

    async with Runtime(sandbox="process", limits=Limits(tool_slots=1)) as runtime:
        with pytest.raises(TimeoutError):
            await runtime.run(gives_up)
        run = await runtime.start(busy)
        await asyncio.gather(*(runtime.run(busy) for _ in range(3)), run.result())
    assert crowd.most == 1


async def test_options_of_an_embedded_engine_are_refused_beside_an_engine(
    open_runtime: Any,
) -> None:
    runtime: Runtime = await open_runtime(lambda _: "")
    for options in ({"engine": EngineConfig(kv_tokens=1024)}, {"isolate": True}):
        with pytest.raises(ConfigError, match="options of the embedded engine"):
            Runtime(runtime.dispatcher.engine, **options)


@pytest.mark.parametrize("provider", ["process", "none", "mqtt://broker"])
def test_a_docker_engine_is_refused_where_none_is_used(provider: str) -> None:
    with pytest.raises(ConfigError, match="is not used by provider"):
        SandboxOptions(provider=provider, docker="unix:///run/docker.sock")


async def test_limits_under_which_nothing_could_run_are_refused() -> None:
    @tool(env=Env("one"))
    async def first(box: Sandbox) -> str:
        return ""

    @tool(env=Env("two"))
    async def second(box: Sandbox) -> str:
        return ""

    @agent(tools=[first, second])
    async def both() -> None: ...

    with pytest.raises(ConfigError, match="nothing could run"):
        Limits(environments=0)
    with pytest.raises(ConfigError, match="nothing could run"):
        Limits(tool_slots=0)
    with pytest.raises(ConfigError, match="choose drawloom"):
        Runtime(limits=Limits(environments=2), policy="thunder")
    async with Runtime(sandbox="process", limits=Limits(environments=1)) as runtime:
        with pytest.raises(ConfigError, match="uses 2 environments"):
            await runtime.start(both)
