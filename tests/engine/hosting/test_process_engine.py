"""A child process that hangs, dies while it starts or refuses is noticed, replaced or reported."""

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from drawloom.engine.api import commands as do
from drawloom.engine.api.engine import EngineStats, GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting import client, process_engine, process_worker
from drawloom.engine.hosting.client import continued
from drawloom.engine.hosting.process_engine import ProcessEngine
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import EngineClosed, EngineError
from drawloom.leases import LeaseStatus

CONFIG = EngineConfig(kv_tokens=1024)


@pytest.fixture
async def engine(llama: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ProcessEngine]:
    monkeypatch.setattr(process_engine, "_FIRST_PAUSE_SECONDS", 0.01)
    engine = await asyncio.to_thread(ProcessEngine.load, str(llama.folder), CONFIG, 4.0)
    yield engine
    await engine.close()


def _ask(name: str, count: int = 40) -> GenerateRequest:
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    return GenerateRequest(name, name, tuple(range(3, 23)), params)


async def _interrupted(engine: ProcessEngine, number: signal.Signals, count: int = 40) -> list[int]:
    """The tokens of a request whose child gets a signal after the third."""
    tokens: list[int] = []
    async for delta in engine.generate(_ask("a", count)):
        tokens += delta.tokens
        if delta.tokens and len(tokens) == 3:
            os.kill(engine.pid, number)
    return tokens


def _starts(monkeypatch: pytest.MonkeyPatch, failing: int) -> list[int]:
    """The next `failing` children die at once; how many were started is noted."""
    real, made = subprocess.Popen, list[int]()

    def popen(command: list[str], **options: Any) -> Any:
        made.append(1)
        return real(["false"] if len(made) <= failing else command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return made


async def test_a_child_that_hangs_is_replaced(engine: ProcessEngine, llama: Any) -> None:
    first = engine.pid
    assert await _interrupted(engine, signal.SIGSTOP) == llama.greedy(list(range(3, 23)), 40)
    assert engine.pid != first
    assert engine.failed is None


async def test_a_child_that_hangs_can_be_closed(llama: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(process_engine, "_CLOSE_SECONDS", 0.2)
    engine = await asyncio.to_thread(ProcessEngine.load, str(llama.folder), CONFIG)
    os.kill(engine.pid, signal.SIGSTOP)
    await engine.close()
    assert await engine.ended() is None
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


async def test_a_resumption_that_is_refused_ends_its_stream(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(request: GenerateRequest, tokens: list[int]) -> GenerateRequest:
        return continued(request, [*tokens, 100_000])

    monkeypatch.setattr(client, "continued", refused)
    with pytest.raises(EngineError, match="vocabulary"):
        await _interrupted(engine, signal.SIGKILL)
    assert len([d async for d in engine.generate(_ask("b", 3))]) == 3


async def test_the_watcher_is_told_of_a_death_before_its_requests(
    engine: ProcessEngine, llama: Any
) -> None:
    told: list[bool] = []
    engine.watch(told.append)
    tokens: list[int] = []
    async for delta in engine.generate(_ask("a")):
        tokens += delta.tokens
        if delta.lost:
            assert told == [False] and not delta.tokens
        elif len(tokens) == 3:
            os.kill(engine.pid, signal.SIGKILL)
    assert tokens == llama.greedy(list(range(3, 23)), 40)
    assert told == [False, True]


async def test_a_lost_request_resumes_when_its_next_delta_is_asked_for(
    engine: ProcessEngine, llama: Any
) -> None:
    up = asyncio.Event()
    engine.watch(lambda is_up: up.set() if is_up else None)
    tokens: list[int] = []
    async for delta in engine.generate(_ask("a")):
        tokens += delta.tokens
        if delta.tokens and len(tokens) == 3:
            os.kill(engine.pid, signal.SIGKILL)
        if delta.lost:
            await up.wait()
            assert (await engine.stats()).batch.running == 0
    assert tokens == llama.greedy(list(range(3, 23)), 40)


async def test_an_extension_is_not_repeated_after_a_death(
    engine: ProcessEngine,
) -> None:
    os.kill(engine.pid, signal.SIGSTOP)
    extending = asyncio.create_task(engine.extend("a", tuple(range(3, 23))))
    while not engine._answers:
        await asyncio.sleep(0)
    os.kill(engine.pid, signal.SIGKILL)
    assert (await extending).status is LeaseStatus.CLIPPED
    assert (await _stats_when_up(engine)).batch.computed_tokens == 0


async def _stats_when_up(engine: ProcessEngine) -> EngineStats:
    while (stats := await engine.stats()).restarting:
        await asyncio.sleep(0.01)
    return stats


async def test_statistics_are_answered_at_once_while_another_child_starts(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await engine.stats()
    start, down, go = ProcessEngine._start, asyncio.Event(), threading.Event()

    def start_later(self: ProcessEngine) -> Any:
        assert go.wait(60)
        return start(self)

    monkeypatch.setattr(ProcessEngine, "_start", start_later)
    engine.watch(lambda up: None if up else down.set())
    asked = asyncio.create_task(engine.stats())  # may be under way when the child dies
    os.kill(engine.pid, signal.SIGKILL)
    try:
        await down.wait()
        assert await engine.stats() == replace(before, restarting=True)
        assert (await asked).cache == before.cache
    finally:
        go.set()
    assert await _stats_when_up(engine) == replace(before, restarting=False)


async def test_statistics_of_a_child_that_hangs_are_the_last_known(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await engine.stats()
    monkeypatch.setattr(process_engine, "_STATS_SECONDS", 0.05)
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        assert await engine.stats() == before
    finally:
        os.kill(engine.pid, signal.SIGCONT)


async def test_a_request_that_kills_its_engine_repeatedly_fails(
    engine: ProcessEngine,
) -> None:
    engine.watch(lambda up: os.kill(engine.pid, signal.SIGKILL) if up else None)
    with pytest.raises(EngineError, match="died 3 times over request a"):
        await _interrupted(engine, signal.SIGKILL)
    engine.watch(lambda up: None)
    assert len([d async for d in engine.generate(_ask("b", 3))]) == 3


async def test_children_that_die_while_they_start_are_tried_again(
    engine: ProcessEngine, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _starts(monkeypatch, failing=2)
    assert await _interrupted(engine, signal.SIGKILL) == llama.greedy(list(range(3, 23)), 40)
    assert len(made) == 3


async def test_an_engine_whose_children_all_die_closes(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _starts(monkeypatch, failing=1000)
    waits = asyncio.create_task(engine.ended())
    with pytest.raises(EngineClosed, match="did not start"):
        await _interrupted(engine, signal.SIGKILL)
    why = await waits
    assert isinstance(why, EngineClosed) and engine.failed is why
    assert len(made) == process_engine._MAX_STARTS
    with pytest.raises(EngineClosed, match="did not start"):
        await engine.stats()


async def test_a_new_child_never_serves_older_weights(
    engine: ProcessEngine, llama: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama.folder, tmp_path / "new")
    await engine.tell(do.UpdateWeights("v2", folder=str(folder)))
    shutil.rmtree(folder)
    with pytest.raises(EngineClosed, match="does not start"):
        await _interrupted(engine, signal.SIGKILL)


async def test_a_command_that_cannot_be_pickled_fails_its_caller(engine: ProcessEngine) -> None:
    request: Any = GenerateRequest("a", "a", (5, lambda: 6))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="cannot be sent"):
        async for _ in engine.generate(request):
            pass
    assert len([d async for d in engine.generate(_ask("b", 3))]) == 3


def test_a_child_sends_heartbeats_until_a_step_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_worker, "_HEARTBEAT_SECONDS", 0.01)
    ours, theirs = Pipe()
    link = process_worker.ParentLink(theirs)
    link.start_heartbeat()
    for _ in range(5):  # nobody works for it meanwhile
        assert ours.poll(10) and ours.recv() == ("alive",)
    monkeypatch.setattr(process_worker, "_MAX_STEP_SECONDS", 0.0)
    while ours.poll(0.5):
        ours.recv()
    link._busy_since = None  # it is idle
    assert ours.poll(10)
