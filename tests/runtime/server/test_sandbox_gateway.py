"""Agents inside of environments that think with the runtime's own model."""

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from drawloom import Budget, Chat, Env, Runtime, Sandbox, SandboxOptions, agent, tool
from drawloom.errors import ConfigError, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.local.provider import ProcessProvider

ENV = Env(BOX, llm=True, memory="64m")
_ASK = (
    "busybox wget -q -O - --header 'Content-Type: application/json' --post-data '{body}' "
    "$OPENAI_BASE_URL/chat/completions"
)


def _ask(words: str, **more: Any) -> str:
    messages = [{"role": "user", "content": words}]
    return _ASK.format(body=json.dumps({"messages": messages, "max_tokens": 8, **more}))


@tool(env=ENV, timeout=60)
async def inner(box: Sandbox, command: str) -> str:
    result = await box.sh(command)
    return result.text if not result.code else f"exit {result.code}: {result.text}"


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_an_agent_inside_asks_the_runtime_s_model_without_a_network(
    kind: str, request: pytest.FixtureRequest
) -> None:
    docker = request.getfixturevalue("docker_url") if kind == "docker" else None
    seen: list[tuple[str, ...]] = []

    @agent(tools=[inner], budget=Budget(llm_calls=10))
    async def outer() -> list[Any]:
        first = json.loads(await inner(_ask("hello")))
        both = await asyncio.gather(*(inner(_ask(f"hello {n}")) for n in range(2)))
        seen.append(tuple(runtime.dispatcher.scheduler.state.programs))
        again = json.loads(await inner(f"kill -9 -1; {_ask('once more')}"))
        return [first, *map(json.loads, both), again]

    async with Runtime(sandbox=SandboxOptions(provider=kind, docker=docker)) as runtime:
        run = await runtime.start(outer)
        answers = await run.result()
        assert all(answer["object"] == "chat.completion" for answer in answers)
        assert run.usage.llm_calls == 4
        assert run.usage.tokens >= sum(a["usage"]["completion_tokens"] for a in answers)
        assert seen == [(run.id,)], "its calls are the program's own"
        stats = await runtime.dispatcher.engine.stats()
        assert (stats.cache.conversations, stats.cache.held_blocks) == (0, 0)


async def test_nobody_is_refused_while_the_way_to_the_model_is_made_again() -> None:
    ask = "kill -9 -1; busybox wget -q -O - http://127.0.0.1:8000/v1/models || exit 9"

    @agent(tools=[inner])
    async def outer() -> str:
        return await inner(f"for n in $(seq 30); do {ask}; done")

    async with Runtime(sandbox="process") as runtime:
        assert (await runtime.run(outer)).count('"object":"list"') == 30


async def test_calls_from_inside_are_on_the_program_s_budget_and_name() -> None:
    @agent(tools=[inner], budget=Budget(llm_calls=2))
    async def outer() -> list[str]:
        ask = _ask("hello", program_id="somebody-else", user="another-tenant")
        return [await inner(ask) for _ in range(3)]

    async with Runtime(sandbox="process") as runtime:
        first, second, third = await runtime.run(outer)
        assert "chat.completion" in first and "chat.completion" in second
        assert "somebody-else" not in first
        assert third.startswith("exit 1"), "the budget is spent"


async def test_only_the_model_is_there_and_only_for_the_program_that_has_the_environment(
    tmp_path: Path,
) -> None:
    @agent(tools=[inner])
    async def outer() -> list[str]:
        return [
            await inner(f"busybox wget -q -O - http://127.0.0.1:8000/{path}")
            for path in ("v1/models", "metrics", "health")
        ]

    async with Runtime(sandbox="process") as runtime:
        models, metrics, health = await runtime.run(outer)
        assert "tinyagent" in models or "model" in models
        assert metrics.startswith("exit 1") and health.startswith("exit 1")
        async with runtime.sandbox(ENV) as box:  # it belongs to no program
            result = await box.sh(_ask("hello"))
            assert result.code != 0 and "403" in result.text


async def test_a_chat_outside_and_an_agent_inside_share_the_program(open_runtime: Any) -> None:
    @agent(tools=[inner])
    async def outer() -> tuple[str, str]:
        chat = Chat().user("outside")
        mine = (await chat.turn()).text
        return mine, json.loads(await inner(_ask("inside")))["choices"][0]["message"]["content"]

    def script(prompt: str) -> str:
        return "from inside" if "inside" in prompt.split("user")[-1] else "from outside"

    runtime: Runtime = await open_runtime(script, sandbox="process")
    assert await runtime.run(outer) == ("from outside", "from inside")


async def test_without_a_runtime_or_with_a_network_it_is_refused() -> None:
    provider = ProcessProvider(new_id("store"))
    with pytest.raises(SandboxError, match="needs a runtime on the same host"):
        await provider.create(ENV, new_id("box"))
    assert await provider.owned() == []
    await provider.close()
    with pytest.raises(ConfigError, match="without a network"):
        Env(BOX, llm=True, network=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_other_users_of_the_host_are_not_heard() -> None:
    paths: list[str] = []

    @tool(env=ENV)
    async def look(box: Sandbox) -> str:
        found = Path(tempfile.gettempdir()).glob(f"drawloom-*/*/{box.id}/work/.model")
        paths.extend(map(str, found))
        script = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
            "s.sendall(b'GET /v1/models HTTP/1.0\\r\\n\\r\\n'); print(len(s.recv(9)))"
        )
        said = []
        for user in (0, 65534, 12345):
            asking = await asyncio.create_subprocess_exec(
                "python3",
                "-c",
                script,
                paths[0],
                user=user,
                group=user,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, _ = await asking.communicate()
            said.append(out.decode().strip())
        return " ".join(said)

    @agent(tools=[look])
    async def outer() -> str:
        return await look()

    async with Runtime(sandbox="process") as runtime:
        assert await runtime.run(outer) in ("9 9 0", "9 9 ")
