"""What a runtime opens, refuses and closes."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from drawloom import Env, Runtime, Sandbox, TenantShare, agent, tool
from drawloom.errors import SandboxUnavailable, StoreError
from drawloom.runtime.demo import tasks
from drawloom.runtime.demo.agent import solve
from drawloom.sandbox.base import Provider


async def test_a_second_runtime_on_the_same_store_is_refused_and_harms_nothing(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    async with Runtime(sandbox="none", store=url) as runtime:
        with pytest.raises(StoreError, match="in use by process"):
            async with Runtime(sandbox="none", store=url):
                pass
        assert (await runtime.live.engine.stats()).running == 0
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
        assert runtime.live.pool is not None
        provider: Provider = runtime.live.pool.provider
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
        "        await rt.live.pool.claim(BOX, 'nobody')\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    async with Runtime(sandbox="process", store=url) as runtime:
        assert runtime.live.pool is not None
        assert await runtime.live.pool.provider.owned() == []


async def test_what_is_declared_is_used_until_it_was_seen() -> None:
    @tool(env=Env("any", warm=2), expect=7.0)
    async def work(box: Sandbox) -> str:
        return "never called"

    @agent(tools=[work])
    async def idle() -> None:
        await asyncio.sleep(0.5)

    async with Runtime(sandbox="process") as runtime:
        run = await runtime.start(idle)
        assert runtime.live.scheduler.world.graph("idle").forecast("s", "work").seconds_p50 == 7.0
        await run.result()
        assert work.env is not None
        assert runtime.live.pool is not None
        assert sum(runtime.live.pool.counts(work.env.key)) == 2


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

    async with Runtime(sandbox="none", tenants=[TenantShare("small", programs=2)]) as runtime:
        await asyncio.gather(*(runtime.run(work) for _ in range(6) for work in (small, big)))
    assert most["small"] == 2
    assert most["big"] > 2
