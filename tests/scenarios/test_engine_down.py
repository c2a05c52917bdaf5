"""An engine that dies while programs run: they go on in the scheduler's order, or hear why not."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from drawloom import Chat, Runtime, agent
from drawloom.engine.api.engine import Delta, GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting import process_engine
from drawloom.engine.hosting.process_engine import ProcessEngine
from drawloom.errors import EngineClosed
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.runtime.scheduler.events import EngineDown, EngineUp
from drawloom.runtime.scheduler.state import Totals
from drawloom.runtime.server.app import Server
from drawloom.tools.chat_template import ChatTemplate
from tests.fakes.scripted_engine import ScriptedEngine

_TURNS, _WORDS = 3, 30


@agent(temperature=0.0)
async def talker(name: str) -> list[str]:
    chat = Chat()
    options = {"max_tokens": _WORDS, "ignore_eos": True}
    return [(await chat.user(f"{name} {turn}").turn(**options)).text for turn in range(_TURNS)]


@agent
async def one(text: str) -> str:
    return (await Chat().user(text).turn(max_tokens=100)).text


class Mortal(ScriptedEngine):
    """Keeps each call that says "waits" behind its first words until it dies, and notes which calls
    go on after that."""

    def __init__(self, script: Callable[[str], str]) -> None:
        super().__init__(script)
        self.told: Callable[[bool], None] = lambda up: None
        self.alive = asyncio.Event()
        self.alive.set()
        self.begun: list[str] = []
        self.resumed: list[str] = []

    def watch(self, told: Callable[[bool], None]) -> None:
        self.told = told

    def die(self) -> None:
        self.alive.clear()
        self.told(False)

    def live_again(self, kv_tokens: int) -> None:
        self.info = replace(self.info, kv_tokens=kv_tokens)
        self.alive.set()
        self.told(True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        first = True
        async for delta in super().generate(request):
            yield delta
            if first:
                first = False
                self.begun.append(request.id)
                while self.alive.is_set() and "waits" in self.prompts[-1]:
                    await asyncio.sleep(0)
                if not self.alive.is_set():
                    yield Delta(request.id, (), "", lost=True)
                    self.resumed.append(request.id)


async def _until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def _told(runtime: Runtime) -> list[Any]:
    """Note what the core hears of its engine from now on."""
    told, emit = list[Any](), runtime.dispatcher.emit

    def noted(event: Any) -> None:
        if isinstance(event, EngineDown | EngineUp):
            told.append(event)
        emit(event)

    runtime.dispatcher.emit = noted  # type: ignore[method-assign]
    return told


@pytest.fixture
async def isolated(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runtime]:
    monkeypatch.setattr(process_engine, "_FIRST_PAUSE_SECONDS", 0.01)
    folder = tiny_model()
    engine = await asyncio.to_thread(
        ProcessEngine.load, str(folder), EngineConfig(kv_tokens=2048, device="cpu")
    )
    try:
        async with Runtime(engine, template=ChatTemplate.load(folder), sandbox="none") as runtime:
            yield runtime
    finally:
        await engine.close()


async def test_programs_say_the_same_and_end_when_the_engine_is_killed(isolated: Runtime) -> None:
    names = [f"n{i}" for i in range(8)]
    wanted = await asyncio.gather(*(isolated.run(talker, name) for name in names))
    told, engine, state = (
        _told(isolated),
        isolated.dispatcher.engine,
        isolated.dispatcher.scheduler.state,
    )
    runs = [await isolated.start(talker, name) for name in names]
    await _until(lambda: state.totals.running_calls > 2)
    os.kill(engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    await _until(lambda: told)
    assert isinstance(told[0], EngineDown)
    assert (state.totals.running_calls, state.active, state.capacity) == (0, {}, 0)
    runs.append(await isolated.start(talker, "n0"))  # one that comes meanwhile
    async with asyncio.timeout(300):
        answers = [await run.result() for run in runs]
    assert answers == [*wanted, wanted[0]]
    assert [type(event) for event in told] == [EngineDown, EngineUp]
    assert (state.programs, state.totals, state.capacity) == ({}, Totals(), 2048)
    stats = await engine.stats()
    assert (stats.cache.conversations, stats.cache.held_blocks, stats.batch.running) == (0, 0, 0)


async def test_all_programs_hear_why_an_engine_does_not_come_back(
    isolated: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(process_engine, "_MAX_STARTS", 2)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real(["false"], **more))
    runs = [await isolated.start(talker, f"n{i}") for i in range(8)]
    await _until(lambda: isolated.dispatcher.scheduler.state.totals.running_calls > 2)
    os.kill(isolated.dispatcher.engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    async with asyncio.timeout(120):
        ends = await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        with pytest.raises(EngineClosed, match="did not start"):
            await isolated.run(talker, "late")
    assert {type(end) for end in ends} == {EngineClosed}
    assert isolated.dispatcher.scheduler.state.programs == {}


async def test_a_call_that_was_lost_goes_on_only_when_its_program_is_admitted_again() -> None:
    engine = Mortal(lambda prompt: "one two three four five six seven eight")

    async with Runtime(engine, template=engine.template, sandbox="none") as runtime:
        told = _told(runtime)
        runs = [await runtime.start(one, "waits") for _ in range(3)]
        await _until(lambda: len(engine.begun) == 3)
        engine.die()
        late = await runtime.start(one, "comes late")
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine.resumed == [] and len(engine.prompts) == 3
        engine.live_again(50_000)
        texts = [await run.result() for run in (*runs, late)]
        assert set(texts) == {"one two three four five six seven eight"}
        assert len(engine.resumed) == 3 and len(engine.prompts) == 4
        assert told == [EngineDown("scripted"), EngineUp("scripted", 50_000, 0, 4096)]


async def test_a_program_that_ends_while_the_engine_is_down_leaves_nothing() -> None:
    engine = Mortal(lambda prompt: "one two three four five six seven eight")

    async with Runtime(engine, template=engine.template, sandbox="none") as runtime:
        run = await runtime.start(one, "waits")
        await _until(lambda: engine.begun)
        engine.die()
        await asyncio.sleep(0)
        await run.cancel()
        engine.live_again(1000)
        state = runtime.dispatcher.scheduler.state
        assert (state.programs, state.totals, engine.resumed) == ({}, Totals(), [])


async def test_a_stream_over_http_goes_on_where_its_engine_died() -> None:
    engine = Mortal(lambda prompt: "one two three four five six seven eight")
    async with Runtime(engine, template=engine.template, sandbox="none") as runtime:
        server = Server(runtime)
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"messages": [{"role": "user", "content": "waits"}], "max_tokens": 100}
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await _until(lambda: engine.begun)
            engine.die()
            for _ in range(100):
                await asyncio.sleep(0)
            assert not asked.done() and engine.resumed == []
            engine.live_again(100_000)
            text = (await asked).json()["choices"][0]["message"]["content"]
        assert text == "one two three four five six seven eight"
        await server.close()
