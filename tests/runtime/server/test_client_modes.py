"""Clients of all modes are one kind of program to the scheduler."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from drawloom.runtime.scheduler.events import (
    CLIENT,
    Decoded,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    Tick,
)
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.sessions import AGENT
from tests.fakes.scripted_engine import call

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
CALL = call("get")
TEXT = "Thought: look.\nAction: get()"
Json = dict[str, Any]


@pytest.fixture
async def serve(open_runtime: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """Serves a script in memory; what the scheduler is told is in `told`."""
    servers: list[Server] = []

    async def make(said: str) -> tuple[httpx.AsyncClient, Server, list[Any]]:
        runtime = await open_runtime(lambda prompt: said)
        server = Server(runtime)
        servers.append(server)
        told, emit = list[Any](), server.dispatcher.emit

        def both(event: Any) -> None:
            told.append(event)
            emit(event)

        server.dispatcher.emit = both  # type: ignore[method-assign]
        wire = httpx.ASGITransport(server.app)
        return httpx.AsyncClient(transport=wire, base_url="http://localhost"), server, told

    yield make
    for server in servers:
        await server.close()


async def _agent(client: httpx.AsyncClient, name: str | None, tools: bool, turns: int = 3) -> str:
    """An agent whose client calls tools, or writes what they said as the user's next message."""
    messages: list[Json] = [{"role": "user", "content": "Do it."}]
    for turn in range(turns):
        body: Json = {"messages": messages}
        body |= {"program_id": name} if name else {}
        body |= {"tools": [TOOL]} if tools else {}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        said = answer["choices"][0]["message"]
        messages.append(said)
        result = {"role": "user", "content": f"Observation: {turn}"}
        if tools:
            call = said["tool_calls"][0]["id"]
            result = {"role": "tool", "tool_call_id": call, "content": str(turn)}
        messages.append(result)
    return str(answer["program_id"])


def _seen(event: Any, tool: str, state: str) -> tuple[Any, ...]:
    """What an event says apart from names, sizes and times; `tool` and `state` are its mode's."""
    kind = type(event).__name__
    if isinstance(event, ProgramSubmitted):
        return kind, event.agent, event.tenant, event.priority
    if isinstance(event, StepReady):
        assert event.state in ("http|", state)
    if isinstance(event, StepFinished):
        assert event.calls == (tool,)
        return kind, event.final
    if isinstance(event, ProgramEnded):
        return kind, event.keep
    return (kind,)


def _events(told: list[Any], tool: str, state: str) -> list[Any]:
    return [_seen(event, tool, state) for event in told if not isinstance(event, Decoded | Tick)]


async def test_with_a_name_or_without_with_tools_or_in_text_the_scheduler_is_told_the_same(
    serve: Any,
) -> None:
    runs = []
    for said, tool, state in ((CALL, "get", "http|get"), (TEXT, CLIENT, "http|")):
        for name in ("job", None):
            client, server, told = await serve(said)
            label = await _agent(client, name, said is CALL)
            runs.append(_events(told, tool, state))
            graph = server.dispatcher.scheduler.state.graphs[AGENT]
            assert graph.durations.distribution(tool).count == pytest.approx(2, rel=0.1)
            (program,) = server.dispatcher.scheduler.state.programs.values()
            assert program.steps == 3 and program.at_tool_boundary
            (conversation,) = program.conversations.values()
            assert conversation.pending_tools == tool and conversation.lease_end > 0
            assert list(server.dispatcher.engine.leased) == [conversation.id]
            assert (await client.delete(f"/v1/programs/{label}")).status_code == 200
            assert not server.dispatcher.scheduler.state.programs
            await client.aclose()
    assert runs[0] == runs[1] == runs[2] == runs[3]
    kinds = [one[0] for one in runs[0]]
    assert kinds.count("StepFinished") == 3 and "ProgramEnded" not in kinds


async def test_a_nameless_program_that_is_silent_for_much_longer_than_others_is_over(
    serve: Any,
) -> None:
    client, server, told = await serve(TEXT)
    label = await _agent(client, None, False, turns=12)
    graph, now = server.dispatcher.scheduler.state.graphs[AGENT], time.monotonic()
    server.sessions.sweep(now + 9)  # others came back at once, but nobody is that impatient
    assert server.dispatcher.scheduler.state.programs and not graph.stats.programs
    server.sessions.sweep(now + 11)
    assert not server.dispatcher.scheduler.state.programs
    assert graph.stats.programs == 1 and [calls for calls, _, _ in graph.stats.sizes] == [12]
    assert [event.keep for event in told if isinstance(event, ProgramEnded)] == [True]
    assert [program.label for program in server.sessions.directory] == [label]
    server.sessions.sweep(now + 1000)
    assert not len(server.sessions)
    await client.aclose()


async def test_before_any_came_back_nobody_is_over_soon_and_a_name_keeps_its_program(
    serve: Any,
) -> None:
    client, server, _ = await serve(TEXT)
    await _agent(client, None, False, turns=1)
    await _agent(client, "job", False, turns=1)
    now = time.monotonic()
    server.sessions.sweep(now + 29)
    assert len(server.dispatcher.scheduler.state.programs) == 2
    server.sessions.sweep(now + 31)
    assert list(server.dispatcher.scheduler.state.programs) == ["default:job"]
    server.sessions.sweep(now + 301)
    assert not server.dispatcher.scheduler.state.programs
    await client.aclose()


async def test_who_comes_back_after_it_was_over_goes_on_and_is_waited_for_longer(
    serve: Any,
) -> None:
    client, server, told = await serve(TEXT)
    programs, messages = server.sessions, [{"role": "user", "content": "Do it."}]
    labels = set()
    for _ in range(10):  # a minute each time
        answer = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
        labels.add(answer["program_id"])
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "Observation"}]
        (program,) = programs.directory
        program.last_seen -= 60
        programs.sweep(time.monotonic())
    assert len(labels) == 1
    ends = [isinstance(event, ProgramEnded) for event in told]
    assert sum(ends) == 9  # when eight had come back after a minute it was known that they do
    assert len(server.dispatcher.scheduler.state.programs) == 1
    await client.aclose()
