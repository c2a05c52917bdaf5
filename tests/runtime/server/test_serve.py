"""`drawloom serve` as a process: what it prints, whom it answers, how it ends."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from drawloom import agent
from drawloom.errors import EngineClosed
from drawloom.runtime.cli.main import main
from drawloom.runtime.scheduler.events import ProgramSubmitted
from drawloom.runtime.server.app import Server

LONG = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1500, "ignore_eos": True}
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}


@dataclass
class Served:
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient
    lines: list[str]

    async def wait_for(self, words: str) -> str:
        """The first printed line that holds these words."""
        for _ in range(600):
            if found := next((line for line in self.lines if words in line), None):
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{words!r} was not printed: {self.lines}")


@contextlib.asynccontextmanager
async def _serve(*options: str, **environ: str) -> AsyncIterator[Served]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawloom", "serve", "--port", "0", "--kv-tokens", "8192"),
        *options,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )
    lines: list[str] = []

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            lines.append(line.decode().rstrip())

    reading = asyncio.create_task(read())
    try:
        served = Served(process, httpx.AsyncClient(timeout=60), lines)
        url = re.search(r"http://\S+(?=/v1)", await served.wait_for(" at http://"))
        assert url is not None
        served.client.base_url = httpx.URL(url[0])
        async with served.client:
            yield served
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading


async def _stream(client: httpx.AsyncClient, begun: asyncio.Event) -> list[str]:
    events = []
    async with client.stream(
        "POST", "/v1/chat/completions", json={**LONG, "stream": True}
    ) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                begun.set()
    return events


async def test_it_says_how_to_use_it_and_logs_a_line_a_request() -> None:
    async with _serve("--allow-host", "proxy.example") as served:
        assert (
            await served.client.post("/v1/chat/completions", json={**SHORT, "program_id": "p 1"})
        ).status_code == 200
        assert (await served.client.post("/v1/chat/completions", json={})).status_code == 400
        assert (await served.client.get("/v1/a%0Ab")).status_code == 404
        await served.wait_for("export OPENAI_BASE_URL=http://127.0.0.1:")
        line = await served.wait_for("POST /v1/chat/completions 200")
        assert "program=p 1 prompt=" in line
        assert all(f" {name}=" in line for name in ("cached", "output", "waited", "took"))
        await served.wait_for("POST /v1/chat/completions 400")
        await served.wait_for("GET /v1/a?b 404")
        listed = (await served.client.get("/v1/programs")).json()["data"]
        assert [(p["program_id"], p["status"]) for p in listed] == [("p 1", "idle")]
        elsewhere = {"host": "proxy.example"}
        assert (await served.client.get("/v1/models", headers=elsewhere)).status_code == 200
        served.process.terminate()
        assert await served.process.wait() == 0


async def test_it_says_how_its_engine_computes_and_what_it_has_room_for() -> None:
    options = ("--threads", "2", "--dtype", "bfloat16", "--host-tokens", "4096")
    more = ("--max-sequences", "7", "--max-batch-tokens", "300", "--policy", "fcfs-lru")
    async with _serve(*options, *more) as served:
        how = await served.wait_for("engine: ")
        assert how.endswith("engine: cpu, 2 threads, bfloat16, dense weights; policy fcfs-lru")
        room = await served.wait_for("at most: ")
        assert "KV memory 8,192 tokens; host memory 4,096 tokens" in room
        assert room.endswith("a step 7 sequences, 300 tokens")


async def test_its_programs_are_listed_from_the_command_line() -> None:
    async with _serve(DRAWLOOM_API_KEY="secret-key") as served:
        assert (await served.client.get("/v1/models")).status_code == 401
        key = {"authorization": "Bearer secret-key"}
        body = {**SHORT, "program_id": "mine"}
        assert (
            await served.client.post("/v1/chat/completions", json=body, headers=key)
        ).status_code == 200

        async def ps(**environ: str) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "drawloom", "ps", "--json"),
                *("--server", str(served.client.base_url)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environ},
            )
            printed, _ = await process.communicate()
            return process.returncode, printed.decode()

        code, printed = await ps(DRAWLOOM_API_KEY="secret-key")
        assert code == 0
        assert [program["program_id"] for program in json.loads(printed)] == ["mine"]
        code, printed = await ps(DRAWLOOM_API_KEY="")
        assert code == 2 and "DRAWLOOM_API_KEY" in printed
        assert not any("secret-key" in line for line in served.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_refuses_new_requests_and_lets_running_ones_end(number: int) -> None:
    async with _serve("--drain", "60") as served:
        begun = asyncio.Event()
        stream = asyncio.create_task(_stream(served.client, begun))
        whole = asyncio.create_task(served.client.post("/v1/chat/completions", json=LONG))
        await begun.wait()
        both = re.compile(r"^vllm:num_requests_running\S* 2", re.MULTILINE)
        while not both.search((await served.client.get("/metrics")).text):
            assert not stream.done()
        served.process.send_signal(number)
        await served.wait_for("may go on for 60 s")
        refused = await served.client.post("/v1/chat/completions", json=SHORT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_shutting_down"
        assert (await served.client.get("/health")).json() == {"status": "draining"}
        assert (await stream)[-1] == "[DONE]"
        assert (await whole).json()["choices"][0]["finish_reason"] == "length"
        assert await served.process.wait() == (0 if number == signal.SIGTERM else 130)
        await served.wait_for("everything was released")


async def test_after_the_drain_what_runs_ends_with_an_error() -> None:
    async with _serve("--drain", "0") as served:
        begun = asyncio.Event()
        stream = asyncio.create_task(_stream(served.client, begun))
        whole = asyncio.create_task(served.client.post("/v1/chat/completions", json=LONG))
        await begun.wait()
        served.process.terminate()
        last = json.loads((await stream)[-1])
        assert last["error"]["code"] == "server_shutting_down"
        assert (await whole).status_code == 503
        assert await served.process.wait() == 0


async def test_a_second_signal_ends_the_drain() -> None:
    async with _serve("--drain", "600") as served:
        begun = asyncio.Event()
        stream = asyncio.create_task(_stream(served.client, begun))
        await begun.wait()
        served.process.terminate()
        await served.wait_for("may go on for 600 s")
        served.process.terminate()
        assert "error" in json.loads((await stream)[-1])
        assert await served.process.wait() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "DRAWLOOM_API_KEY"),
        (["--port", "99999"], "between 0"),
        (["--port", "-1"], "between 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["drawloom", "serve", *options])
    monkeypatch.setenv("DRAWLOOM_API_KEY", "")
    assert main() == 2
    printed = capfd.readouterr().err
    assert words in printed and printed.count("\n") == 1


async def test_what_waits_for_the_scheduler_is_refused_and_what_runs_ends(
    open_runtime: Any,
) -> None:
    runtime = await open_runtime(lambda prompt: "yes", policy="static-cap:1")
    server, state = Server(runtime), runtime.dispatcher.scheduler.state
    engine, may_end = runtime.dispatcher.engine, asyncio.Event()
    generate = engine.generate

    async def gated(request: Any) -> AsyncIterator[Any]:
        await may_end.wait()
        async for delta in generate(request):
            yield delta

    engine.generate = gated
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        def ask(name: str, **more: Any) -> asyncio.Task[httpx.Response]:
            body = {**SHORT, "program_id": name, **more}
            return asyncio.create_task(client.post("/v1/chat/completions", json=body))

        runs = ask("first")
        while not state.totals.running_calls:
            await asyncio.sleep(0)
        held = [ask("second"), ask("third", stream=True)]
        while len(state.wait_queue.programs) < 2:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(server.stop(60))
        for refused in held:
            answer = await refused
            assert (answer.status_code, "server_shutting_down" in answer.text) == (503, True)
        assert not runs.done() and not stopping.done()
        assert (state.closed, state.wait_queue.programs.keys() & {"first"}) == (True, set())
        may_end.set()
        assert (await runs).json()["choices"][0]["message"]["content"] == "yes"
        assert await stopping, "all ended by themselves"
    await server.close()


async def test_a_program_that_waits_to_begin_ends_when_its_runtime_drains(
    open_runtime: Any,
) -> None:
    runtime = await open_runtime(lambda prompt: "yes", policy="static-cap:1")
    begun, may_end = asyncio.Event(), asyncio.Event()

    @agent
    async def stays() -> str:
        begun.set()
        await may_end.wait()
        return "done"

    first = await runtime.start(stays)
    await begun.wait()
    second = await runtime.start(stays)
    while not runtime.dispatcher.scheduler.state.wait_queue.programs:
        await asyncio.sleep(0)
    runtime.dispatcher.drain(lambda: EngineClosed("it stops"))
    with pytest.raises(EngineClosed, match="it stops"):
        await second.result()
    may_end.set()
    assert await first.result() == "done"


async def test_priority_is_ignored_unless_it_is_trusted(open_runtime: Any) -> None:
    for trusted, expected in ((False, 0), (True, 7)):
        runtime = await open_runtime(lambda prompt: "yes")
        server = Server(runtime, trust_priority=trusted)
        told: list[Any] = []
        emit = runtime.dispatcher.emit
        runtime.dispatcher.emit = lambda event, told=told, emit=emit: (
            told.append(event),
            emit(event),
        )
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/v1/chat/completions", json={**SHORT, "priority": 7})
            assert answer.status_code == 200
        await server.close()
        assert [e.priority for e in told if isinstance(e, ProgramSubmitted)] == [expected]
