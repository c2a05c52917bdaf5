"""Every LLM step that was announced ends in exactly one event, whichever way it is left."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from drawloom.engine.api.engine import Delta, GenerateRequest, RequestUsage
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.errors import EngineError
from drawloom.runtime.dispatch.step_driver import LlmStepSpec, run_llm_step
from drawloom.runtime.scheduler.events import Event, StepFailed, StepFinished, StepReady

SPEC = LlmStepSpec(
    program="p",
    conversation="p",
    step="p:1",
    state="llm|",
    prompt=(1, 2, 3),
    params=SamplingParams(max_tokens=4),
)
USAGE = RequestUsage(
    prompt_tokens=3,
    cached_tokens=1,
    output_tokens=2,
    preemptions=0,
    submitted=1.0,
    started=2.0,
    first=2.5,
    finished=4.0,
)


class _Dispatcher:
    """Start steps when told to, and keep what it is told."""

    def __init__(self, *, starts: bool = True, fails: int = 0) -> None:
        self.events: list[Event] = []
        self.requests: list[GenerateRequest] = []
        self.engine = SimpleNamespace(info=SimpleNamespace(id="e"), generate=self._generate)
        self._starts, self._fails = starts, fails

    def expect_start(self, step: str) -> asyncio.Future[float]:
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if self._starts:
            future.set_result(7.0)
        return future

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def on_delta(self, program: str, step: str, context: int, delta: Delta) -> None:
        pass

    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        yield Delta(request.id, (8,), "a", (), None, None)
        if len(self.requests) <= self._fails:
            raise EngineError("it failed")
        yield Delta(request.id, (9,), "b", (), FinishReason.STOP, USAGE)


async def _read(dispatcher: Any, *, deltas: int = 9, after: Exception | None = None) -> list[int]:
    """Read some deltas of a step, then raise `after`."""
    tokens: list[int] = []
    async with run_llm_step(dispatcher, SPEC) as step:
        step.tool_kinds = ("shell",)
        async with aclosing(step.stream()) as stream:
            async for delta in stream:
                tokens += delta.tokens
                deltas -= 1
                if not deltas:
                    break
        if after is not None:
            raise after
    return tokens


def _ends(dispatcher: _Dispatcher) -> list[type[Event]]:
    ready, *ends = map(type, dispatcher.events)
    assert ready is StepReady
    return list(ends)


async def test_a_finished_step_reports_its_figures() -> None:
    dispatcher = _Dispatcher()
    assert await _read(dispatcher) == [8, 9]
    assert _ends(dispatcher) == [StepFinished]
    assert dispatcher.requests[0].priority == 7.0
    assert dispatcher.events[-1] == StepFinished(
        "p",
        "p",
        "p:1",
        "llm|",
        engine="e",
        context=5,
        calls=("shell",),
        computed=2,
        seconds=0.5,
        queued=1.0,
        service=2.0,
    )


async def test_a_step_that_is_left_before_its_end_fails() -> None:
    dispatcher = _Dispatcher()
    assert await _read(dispatcher, deltas=1) == [8]
    assert _ends(dispatcher) == [StepFailed]


async def test_an_error_of_the_engine_fails_the_step() -> None:
    dispatcher = _Dispatcher(fails=1)
    with pytest.raises(EngineError):
        await _read(dispatcher)
    assert _ends(dispatcher) == [StepFailed]


async def test_an_error_after_the_engine_s_end_leaves_the_step_finished() -> None:
    dispatcher = _Dispatcher()
    with pytest.raises(KeyError):
        await _read(dispatcher, after=KeyError("the caller's"))
    assert _ends(dispatcher) == [StepFinished]


async def test_a_step_that_is_cancelled_while_it_waits_fails() -> None:
    dispatcher = _Dispatcher(starts=False)
    task = asyncio.create_task(_read(dispatcher))
    while not dispatcher.events:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _ends(dispatcher) == [StepFailed]
    assert not dispatcher.requests


@pytest.mark.parametrize(("taken", "end"), [(1, StepFailed), (2, StepFinished)])
async def test_a_generator_that_is_closed_ends_its_step(taken: int, end: type[Event]) -> None:
    dispatcher = _Dispatcher()
    any_dispatcher: Any = dispatcher

    async def answer() -> AsyncGenerator[Delta, None]:
        async with run_llm_step(any_dispatcher, SPEC) as step:
            deltas = step.stream()
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta

    stream = answer()
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    assert _ends(dispatcher) == [end]


async def test_a_step_that_is_streamed_again_counts_its_tokens_once() -> None:
    dispatcher: Any = _Dispatcher(fails=1)
    async with run_llm_step(dispatcher, SPEC) as step:
        with pytest.raises(EngineError):
            async for _ in step.stream(request="p:1:0"):
                pass
        async for _ in step.stream(request="p:1:1"):
            pass
    assert _ends(dispatcher) == [StepFinished]
    assert dispatcher.events[-1].context == 5
    assert [request.id for request in dispatcher.requests] == ["p:1:0", "p:1:1"]
