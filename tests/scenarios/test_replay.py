"""What code saw of its steps it sees again when its program is resumed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from drawloom import (
    Budget,
    BudgetExceeded,
    Chat,
    EngineError,
    Env,
    ReplayMismatch,
    Runtime,
    Sandbox,
    ToolError,
    agent,
    best_of,
    gather,
    tool,
)
from drawloom.errors import ConfigError, ContextTooLong, SandboxError, StoreError, ToolTimeout
from drawloom.runtime.execution.program import running
from drawloom.runtime.store.store import Store
from drawloom.tools import jinja
from drawloom.tools.chat_template import ChatTemplate
from tests.fakes.scripted_engine import call

Body = Callable[[], Awaitable[Any]]


class Crash(Exception):
    """Stands for the death of a process: nothing of the program's end depends on it."""


@dataclass(frozen=True)
class Found:
    line: int
    words: tuple[str, ...]


class Refused(ToolError):
    def __init__(self, code: int) -> None:
        super().__init__(f"refused: {code}")
        self.code = code


async def live_and_replayed(
    open_runtime: Any, folder: Path, body: Body, tools: Any = (), script: Any = None, **options: Any
) -> tuple[Any, Any]:
    """What `body` sees when it runs, and when a second runtime resumes it."""
    seen: list[Any] = []

    @agent(tools=list(tools), **options)
    async def work() -> None:
        seen.append(await body())
        if len(seen) == 1:
            raise Crash

    url = f"sqlite:///{folder}/s.db"
    first: Runtime = await open_runtime(script or (lambda prompt: "said"), store=url)
    run = await first.start(work)
    with pytest.raises(Crash):
        await run.result()
    await first.__aexit__(None, None, None)
    second: Runtime = await open_runtime(lambda prompt: "another answer", store=url)
    again = await second.resume(work, run.id)
    await again.result()
    assert again.usage == run.usage
    return seen[0], seen[1]


async def outcome(work: Awaitable[Any]) -> tuple[Any, ...]:
    """What code can see of a step."""
    try:
        return "gave", await work
    except Exception as error:
        return type(error), error.args, str(error), vars(error)


async def test_every_kind_of_tool_outcome_is_replayed(open_runtime: Any, tmp_path: Path) -> None:
    ran: list[str] = []

    @tool(timeout=0.05)
    async def slow() -> None:
        ran.append("slow")
        await asyncio.sleep(5)

    @tool
    async def refuse(code: int) -> None:
        ran.append("refuse")
        raise Refused(code)

    @tool
    async def broken() -> None:
        ran.append("broken")
        raise KeyError("x")

    @tool
    async def lost() -> None:
        raise SandboxError("it is gone")

    @tool
    async def find() -> list[Found]:
        ran.append("find")
        return [Found(1, ("a", "b"))]

    @tool
    async def undeclared():  # type: ignore[no-untyped-def]
        return Found(1, ())

    @tool
    async def raw(kind: str) -> Any:
        kinds = {"bytes": b"\xff\0", "half": "\ud800", "nan": [float("inf")], "set": {1, (2,)}}
        return kinds.get(kind)

    async def body() -> list[Any]:
        try:
            await slow()
        except ToolTimeout:
            branch = await outcome(refuse(5))
        return [
            branch,
            await outcome(broken()),
            await outcome(lost()),
            await outcome(find()),
            await outcome(undeclared()),
            await outcome(find(line=1)),  # type: ignore[call-arg]
            *[await outcome(raw(kind)) for kind in ("bytes", "half", "nan", "set", "none")],
        ]

    tools = [slow, refuse, broken, lost, find, undeclared, raw]
    live, replayed = await live_and_replayed(open_runtime, tmp_path, body, tools)
    assert live == replayed
    assert ran == ["slow", "refuse", "broken", "find"]
    assert live[0] == (Refused, ("refused: 5",), "refused: 5", {"code": 5})
    assert live[3] == ("gave", [Found(1, ("a", "b"))])
    assert "-> Found" in live[4][2]


async def test_every_failure_of_an_llm_call_is_replayed(open_runtime: Any, tmp_path: Path) -> None:
    async def body() -> list[Any]:
        engine: Any = running().dispatcher.engine
        seen: list[Any] = []
        for failures in ([EngineError("a"), EngineError("b")], [ContextTooLong("c")], []):
            chat = Chat().user("q")
            engine.failures = list(failures)
            seen.append(await outcome(chat.turn()))
            engine.failures = []
            seen += [await outcome(chat.user("again").turn()), chat.ids]
        return seen

    live, replayed = await live_and_replayed(open_runtime, tmp_path, body)
    assert live == replayed
    assert [kind for kind, *_ in live[::3]] == [EngineError, ContextTooLong, "gave"]
    assert live[6][1].prompt_tokens > 0


async def test_a_spent_budget_is_replayed(open_runtime: Any, tmp_path: Path) -> None:
    async def body() -> list[Any]:
        chat = Chat().user("q")
        return [await outcome(chat.turn()), await outcome(chat.user("r").turn())]

    live, replayed = await live_and_replayed(
        open_runtime, tmp_path, body, budget=Budget(llm_calls=1)
    )
    assert live == replayed
    assert live[1][0] is BudgetExceeded


async def test_an_answer_of_a_type_is_replayed(open_runtime: Any, tmp_path: Path) -> None:
    answers = iter(["no json", '{"line": 3, "words": ["x"]}', "1", "2", "3"])

    async def body() -> list[Any]:
        chat = Chat()
        return [await outcome(chat.ask("where?", Found)), await outcome(chat.ask("x", Found))]

    live, replayed = await live_and_replayed(
        open_runtime, tmp_path, body, script=lambda prompt: next(answers)
    )
    assert live == replayed
    assert live[0] == ("gave", Found(3, ("x",)))
    assert live[1][0] is ToolError


async def test_the_branch_that_decided_decides_again(open_runtime: Any, tmp_path: Path) -> None:
    """Branches that took seconds are replayed at once; who was first must not change by it."""
    begun: list[str] = []

    @tool
    async def wait(name: str, seconds: float) -> str:
        begun.append(name)
        await asyncio.sleep(seconds)
        if name.startswith("bad"):
            raise Refused(len(name))
        return name

    async def slowly(name: str) -> str:
        await wait(name, 0.05)
        await wait(name, 0.0)
        return await wait(name, 0.3)

    async def quickly(name: str) -> str:
        return await wait(name, 0.1)

    async def attempt(branch: Chat) -> str:
        slow = branch.conversation.endswith(".0")
        return await (slowly("slow") if slow else quickly("quick"))

    async def body() -> list[Any]:
        chat = Chat().user("x")
        return [
            await best_of(2, attempt, chat, key=lambda name: 1, until=lambda name: True),
            await outcome(gather(lambda: slowly("bad"), lambda: quickly("bad two"))),
            await outcome(best_of(2, attempt_badly, chat, key=len)),
            await gather(lambda: quickly("a"), lambda: quickly("b")),
        ]

    async def attempt_badly(branch: Chat) -> str:
        slow = branch.conversation.endswith(".2")
        return await wait("bad slow" if slow else "bad", 0.2 if slow else 0.05)

    live, replayed = await live_and_replayed(open_runtime, tmp_path, body, [wait])
    assert live == replayed
    assert live[0] == "quick"
    assert [live[n][0] for n in (1, 2)] == [Refused, Refused]
    assert max(begun.count(name) for name in ("a", "b", "quick", "bad two")) == 1
    assert begun.count("slow") == 3


async def test_what_a_model_was_told_is_told_again(open_runtime: Any, tmp_path: Path) -> None:
    @tool
    async def odd() -> str:
        return "\ud83d\ude00\0"

    answers = iter([call("odd"), "thanks"])

    async def body() -> list[Any]:
        chat = Chat().user("q")
        turn = await chat.turn()
        results = await chat.run(turn.calls)
        return [turn, results, (await outcome(chat.turn()))[0]]

    live, replayed = await live_and_replayed(
        open_runtime, tmp_path, body, [odd], script=lambda prompt: next(answers)
    )
    assert live[:2] == replayed[:2]


@pytest.mark.parametrize("handled", [True, False])
async def test_a_call_whose_failure_ended_its_program_is_asked_again(
    open_runtime: Any, tmp_path: Path, handled: bool
) -> None:
    """What code had seen and handled stays as it was; what ended it would end it again."""

    @tool
    async def note(text: str) -> str:
        return text

    @agent(tools=[note])
    async def work() -> list[str]:
        async def ask() -> str:
            return (await Chat().user("q").turn()).text

        first = await note(str((await outcome(ask()))[1])) if handled else ""
        return [first, *await gather(ask, ask)]

    url = f"sqlite:///{tmp_path}/s.db"
    first: Runtime = await open_runtime(lambda prompt: "first", store=url)
    engine: Any = first.dispatcher.engine
    engine.failures = [EngineError(f"e{n}") for n in range(6)]
    run = await first.start(work)
    with pytest.raises(EngineError):
        await run.result()
    await first.__aexit__(None, None, None)
    second: Runtime = await open_runtime(lambda prompt: "then", store=url)
    result = await (await second.resume(work, run.id)).result()
    assert result == ["('e1',)" if handled else "", "then", "then"]


# --- conflicts ------------------------------------------------------------------------------


async def test_a_program_is_resumed_on_another_day(
    open_runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    later: list[bool] = []

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2031, 1, 2) if later else datetime.now(tz)

    @agent
    async def work() -> str:
        chat = Chat().user("q")
        await chat.turn()
        if not later:
            raise Crash
        return (await chat.user("r").turn()).text

    monkeypatch.setattr(jinja, "datetime", Clock)
    options = {"template": ChatTemplate(source, eos="<|im_end|>")}
    url = f"sqlite:///{tmp_path}/s.db"
    runtime: Runtime = await open_runtime(lambda _: "x", store=url, **options)
    run = await runtime.start(work)
    with pytest.raises(Crash):
        await run.result()
    later.append(True)
    assert await (await runtime.resume(work, run.id)).result() == "x"


async def test_a_step_that_another_executor_ran_is_not_run_again(
    open_runtime: Any, tmp_path: Path
) -> None:
    """Its outcome is waited for, and taken."""
    paid: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    @tool
    async def pay(amount: int) -> str:
        paid.append(amount)
        return "paid here"

    @agent(tools=[pay])
    async def work() -> list[str]:
        store, program = runtime.store, running().id
        chat = Chat().user("q")
        await store.intend(program, "call1", "pay", {"arguments": {"amount": 100}})
        tasks.append(asyncio.create_task(_pay_elsewhere(store, program)))
        _, fresh = await chat._tokenise(chat._new)
        detail = {
            "delta": fresh,
            "output": [1],
            "text": "there",
            "calls": [],
            "finish": "stop",
            "logprobs": [],
            "prompt": 1,
            "cached": 0,
        }
        await store.add_llm(program, "0#0", 1.0, 2.0, detail)
        return [await pay(100), (await chat.turn()).text]

    url = f"sqlite:///{tmp_path}/s.db"
    runtime: Runtime = await open_runtime(lambda prompt: "here", store=url)
    assert await runtime.run(work) == ["paid there", "there"]
    assert paid == []


async def _pay_elsewhere(store: Store, program: str) -> None:
    await asyncio.sleep(0.2)
    outcome = {"arguments": {"amount": 100}, "value": "paid there", "ok": True, "seconds": 1.0}
    await store.end_tool(program, "call1", outcome)


async def test_a_step_that_another_executor_never_ended_is_an_error(
    open_runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drawloom.runtime.execution.replay._PARKED_SECONDS", 0.3)
    paid: list[int] = []

    @tool
    async def pay(amount: int) -> str:
        paid.append(amount)
        return "paid here"

    @agent(tools=[pay])
    async def work() -> str:
        await runtime.store.intend(running().id, "call0", "pay", {"arguments": {"amount": 100}})
        return await pay(100)

    runtime: Runtime = await open_runtime(lambda prompt: "here", store=f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(StoreError, match="step call0: another process began this step"):
        await runtime.run(work)
    assert paid == []


# --- changed code ---------------------------------------------------------------------------


async def _changed(
    open_runtime: Any, folder: Path, body: Callable[[int], Awaitable[Any]], tools: Any
) -> tuple[ReplayMismatch, list[Any], Any]:
    """Run version 1 of an agent, resume version 2, then version 1 again."""
    version = [1]
    crashed: list[int] = []

    @agent(tools=list(tools))
    async def work() -> Any:
        value = await body(version[0])
        if not crashed:
            crashed.append(1)
            raise Crash
        return value

    url = f"sqlite:///{folder}/s.db"
    first: Runtime = await open_runtime(lambda prompt: "x", store=url)
    run = await first.start(work)
    with pytest.raises(Crash):
        await run.result()
    await first.__aexit__(None, None, None)
    version[0] = 2
    second: Runtime = await open_runtime(lambda prompt: "x", store=url)
    with pytest.raises(ReplayMismatch) as mismatch:
        await (await second.resume(work, run.id)).result()
    reader = Store(url, write=False)
    (row,) = await reader.programs()
    await reader.close()
    assert row.status == "interrupted"
    assert row.open
    version[0] = 1
    third = await second.resume(work, run.id)
    return mismatch.value, [row], await third.result()


async def test_a_changed_prompt_leaves_the_program_interrupted(
    open_runtime: Any, tmp_path: Path
) -> None:
    async def body(version: int) -> str:
        prompt = f"The question that is asked first and is rather long, version {version}."
        return (await Chat().user(prompt).turn()).text

    mismatch, (row,), result = await _changed(open_runtime, tmp_path, body, [])
    words = str(mismatch)
    assert "step 0#0" in words
    assert "version 1." in words.split("now")[0]
    assert "version 2." in words.split("now")[1]
    assert words in row.error
    assert result == "x"


async def test_changed_arguments_are_said_even_if_code_hides_it(
    open_runtime: Any, tmp_path: Path
) -> None:
    @tool
    async def pay(amount: int, note: str) -> str:
        return f"paid {amount}"

    async def body(version: int) -> Any:
        try:
            return await pay(100 * version, note="x")
        except Exception:
            return await pay(1, note="y")

    mismatch, _, result = await _changed(open_runtime, tmp_path, body, [pay])
    assert "step call0" in str(mismatch)
    assert "100" in str(mismatch)
    assert "200" in str(mismatch)
    assert result == "paid 100"


async def test_a_program_that_is_interrupted_keeps_its_files(tmp_path: Path) -> None:
    version = [1]

    @tool(env=Env("any", memory="64m"), idempotent=True)
    async def put(box: Sandbox, text: str) -> str:
        await box.sh(f"echo {text} >> log")
        return text

    @tool(env=Env("any", memory="64m"))
    async def get(box: Sandbox) -> str:
        return (await box.sh("cat log")).text

    @agent(tools=[put, get])
    async def work() -> str:
        await put(f"version {version[0]}")
        if version[0] == 1 and not resumed:
            resumed.append(1)
            program.append(await _left_running())
        return await get()

    async def _left_running() -> str:
        await asyncio.sleep(60)
        return ""

    resumed: list[int] = []
    program: list[str] = []
    url = f"sqlite:///{tmp_path}/s.db"
    async with Runtime(store=url, sandbox="process") as first:
        run = await first.start(work)
        while not await first.store.steps(run.id) or not resumed:
            await asyncio.sleep(0.02)
        first.dispatcher.environments.leave_to_resume(run.id)  # as when the process dies here
        lease = await first.store.leases()
        await run.cancel()
        await first.store.set_program(run.id, status="running", ended=None, error=None)
        for row in lease:
            await first.store.unlease(row.program)
            await first.store.lease(row)
    version[0] = 2
    async with Runtime(store=url, sandbox="process") as second:
        with pytest.raises(ReplayMismatch):
            await (await second.resume(work, run.id)).result()
        assert (await second.store.program(run.id)).status == "interrupted"
        version[0] = 3
        with pytest.raises(ReplayMismatch):
            await (await second.resume(work, run.id)).result()
    version[0] = 1
    async with Runtime(store=url, sandbox="process") as third:
        assert await (await third.resume(work, run.id)).result() == "version 1\n"
        assert await third.store.leases() == []


async def test_of_two_that_resume_one_program_at_once_one_does(
    open_runtime: Any, tmp_path: Path
) -> None:
    ran: list[int] = []

    @agent
    async def work() -> int:
        ran.append(1)
        if len(ran) == 1:
            raise Crash
        return len(ran)

    runtime: Runtime = await open_runtime(lambda _: "x", store=f"sqlite:///{tmp_path}/s.db")
    run = await runtime.start(work)
    with pytest.raises(Crash):
        await run.result()
    both = (runtime.resume(work, run.id), runtime.resume(work, run.id))
    again, refused = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(refused, ConfigError)
    assert not isinstance(again, BaseException)
    assert await again.result() == 2


async def test_a_step_that_another_executor_did_is_counted_once(
    open_runtime: Any, tmp_path: Path
) -> None:
    @tool
    async def pay() -> str:
        raise AssertionError("it ran twice")

    @agent
    async def work() -> list[str]:
        program = running()
        store, turn = program.dispatcher.store, await Chat().user("q").turn()
        row = await store.step(program.id, "0#0")
        assert row is not None
        await store.add_llm(program.id, "1#0", row.started, row.started, row.detail)
        done = {"arguments": {}, "conversation": "", "value": "paid", "ok": True, "seconds": 0.0}
        await store.intend(program.id, "call2", "pay", done)
        await store.end_tool(program.id, "call2", done)
        return [turn.text, (await Chat().user("q").turn()).text, await pay()]

    runtime: Runtime = await open_runtime(lambda _: "x", store=f"sqlite:///{tmp_path}/s.db")
    run = await runtime.start(work)
    assert await run.result() == ["x", "x", "paid"]
    assert (run.usage.llm_calls, run.usage.tool_calls) == (2, 1)


# --- arguments, events ----------------------------------------------------------------------


async def test_a_resumed_program_has_equal_arguments(open_runtime: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    @agent
    async def work(found: Found, pair: tuple[int, bytes], more: Any = None) -> None:
        seen.append((found, pair, more))
        if len(seen) == 1:
            raise Crash

    url = f"sqlite:///{tmp_path}/s.db"
    first: Runtime = await open_runtime(lambda prompt: "x", store=url)
    run = await first.start(work, Found(1, ("a",)), (2, b"\xff"), more=float("inf"))
    with pytest.raises(Crash):
        await run.result()
    await (await first.resume(work, run.id)).result()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("late", [0.0, 0.05])
async def test_events_of_a_run_that_has_ended_end(
    open_runtime: Any, tmp_path: Path, late: float
) -> None:
    @agent
    async def work() -> None:
        await Chat().user("q").turn()

    runtime: Runtime = await open_runtime(lambda prompt: "x")
    run = await runtime.start(work)
    during = [notice.kind async for notice in run.events()]
    assert during[-1] == "program.ended"
    await asyncio.sleep(late)
    async with asyncio.timeout(30):  # it would wait for ever
        assert [notice async for notice in run.events()] == []
