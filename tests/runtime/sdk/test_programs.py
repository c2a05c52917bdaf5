"""Programs end to end over a scripted engine: the SDK's promises."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from drawloom import (
    Budget,
    BudgetExceeded,
    Chat,
    EngineError,
    Env,
    Graph,
    Run,
    Runtime,
    Sandbox,
    ToolError,
    agent,
    best_of,
    gather,
    graph_agent,
    tool,
)
from drawloom.errors import Cancelled, ConfigError
from drawloom.runtime.scheduler.events import Decoded, Preempted
from tests.fakes.scripted_engine import call

ran: list[str] = []


@tool(readonly=True)
async def look(what: str) -> str:
    ran.append(f"look {what}")
    return f"seen {what}"


@tool
async def change(what: str) -> str:
    ran.append(f"change {what}")
    return f"changed {what}"


@tool(timeout=0.05)
async def hang() -> str:
    await asyncio.sleep(60)
    return "never"


@tool
async def gives_up() -> str:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)
    return "never"


@tool
async def broken() -> str:
    raise ValueError("boom")


@tool(retries=2)
async def flaky() -> str:
    ran.append("flaky")
    if ran.count("flaky") < 3:
        raise ToolError("not yet")
    return "at last"


@tool(limit=20)
async def chatty() -> str:
    return "x" * 1000


TOOLS = (look, change, hang, gives_up, broken, flaky, chatty)


@agent(system="s", tools=TOOLS, max_tokens=200)
async def loop(question: str) -> list[str]:
    """Run what the model asks for until it asks for nothing; return all it was told."""
    chat, told = Chat().user(question), []
    while (turn := await chat.turn()).calls:
        told += [r.content for r in await chat.run(turn.calls)]
    return [*told, turn.text]


def once(*calls: str) -> Any:
    """A script that makes calls first and says "end" when it was told the results."""

    def script(prompt: str) -> str:
        return "end" if "tool_response" in prompt else "\n".join(calls)

    return script


@pytest.fixture(autouse=True)
def _forget() -> None:
    ran.clear()


async def test_results_go_back_to_the_model_in_order(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(once(call("look", what="a"), call("change", what="b")))
    assert await runtime.run(loop, "q") == ["seen a", "changed b", "end"]
    assert "seen a" in runtime.dispatcher.engine.prompts[-1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (call("nothing"), "error: there is no tool 'nothing'; there are: look, change"),
        ("<tool_call>{oops</tool_call>", "error: the call is not valid JSON"),
        (call("look"), "error: invalid arguments: what"),
        (call("broken"), "error: ValueError: boom"),
        (call("hang"), "error: timed out after 0.05 s"),
        (call("gives_up"), "error: TimeoutError"),
        (call("flaky"), "at last"),
        (call("chatty"), "x" * 10 + "\n… 980 characters cut …\n" + "x" * 10),
    ],
)
async def test_whatever_goes_wrong_is_told_to_the_model(
    open_runtime: Any, said: str, told: str
) -> None:
    runtime: Runtime = await open_runtime(once(said))
    result = await runtime.run(loop, "q")
    assert result[0].startswith(told)
    assert result[-1] == "end"


async def test_a_readonly_tool_starts_while_the_model_still_writes(open_runtime: Any) -> None:
    order: list[str] = []
    runtime: Runtime = await open_runtime(
        once(call("look", what="a"), call("change", what="b"), call("change", what="c")), 0.005
    )

    @agent(tools=TOOLS, max_tokens=300)
    async def watch() -> list[str]:
        chat = Chat().user("q")
        turn = await chat.turn()
        order.extend(ran)
        await chat.run(turn.calls)
        return ran

    await runtime.run(watch)
    assert order == ["look a"], "only the readonly call may start before the turn ends"
    assert sorted(ran) == ["change b", "change c", "look a"]


async def test_a_tool_s_intent_is_committed_before_it_starts(open_runtime: Any) -> None:
    seen: list[str] = []
    runtime: Runtime = await open_runtime(once(call("peek")))

    @tool
    async def peek() -> str:
        (row, *_) = [s for s in await runtime.store.steps(run.id) if s.kind == "tool"]
        seen.append(row.status)
        return "ok"

    @agent(tools=[peek])
    async def work() -> str:
        chat = Chat().user("q")
        await chat.run((await chat.turn()).calls)
        return "done"

    run = await runtime.start(work)
    await run.result()
    assert seen == ["intent"]
    assert [s.status for s in await runtime.store.steps(run.id)] == ["done", "done"]


async def test_steps_hold_what_was_sampled(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda prompt: "42")
    run = await runtime.start(loop, "q")
    await run.result()
    (step,) = await runtime.store.steps(run.id)
    assert runtime.dispatcher.engine.tokenizer.decode(step.detail["output"]) == "42"
    assert step.detail["delta"]
    assert step.detail["state"].startswith("loop:")


async def test_budgets_are_checked_before_anything_is_spent(open_runtime: Any) -> None:
    @agent(tools=TOOLS, budget=Budget(tool_calls=1), max_tokens=300)
    async def two() -> None:
        chat = Chat().user("q")
        await chat.run((await chat.turn()).calls)

    @agent(budget=Budget(llm_calls=2))
    async def endless() -> None:
        chat = Chat()
        while True:
            await chat.user("more").turn()

    @agent(budget=Budget(seconds=0.05))
    async def slow() -> None:
        await asyncio.sleep(10)

    runtime: Runtime = await open_runtime(once(call("change", what="a"), call("change", what="b")))
    for each, words in ((two, "tool_calls"), (endless, "llm_calls"), (slow, "seconds")):
        with pytest.raises(BudgetExceeded, match=words):
            await runtime.run(each)
    assert ran == []


async def test_output_is_cut_to_what_the_budget_has_left(open_runtime: Any) -> None:
    @agent(budget=Budget(output_tokens=5))
    async def talk() -> int:
        return len((await Chat().user("q").turn()).ids)

    runtime: Runtime = await open_runtime(lambda prompt: "1234567890")
    assert await runtime.run(talk) <= 6


class Point(BaseModel):
    x: int


async def test_ask_returns_a_type_and_asks_again_when_it_does_not_fit(open_runtime: Any) -> None:
    answers = iter(["no idea", '```json\n{"x": 3}\n```'])

    @agent
    async def typed() -> int:
        return (await Chat().ask("Where?", Point)).x

    runtime: Runtime = await open_runtime(lambda prompt: next(answers))
    assert await runtime.run(typed) == 3

    @agent
    async def never() -> Point:
        return await Chat().ask("Where?", Point)

    runtime = await open_runtime(lambda prompt: "no")
    with pytest.raises(ToolError, match="no Point"):
        await runtime.run(never)


async def test_stream_gives_the_text_as_it_comes(open_runtime: Any) -> None:
    @agent
    async def talk() -> tuple[int, str]:
        stream, pieces = Chat().user("q").stream(), []
        async for text in stream:
            pieces.append(text)
        assert stream.turn is not None
        assert "".join(pieces) == stream.turn.text
        return len(pieces), stream.turn.text

    runtime: Runtime = await open_runtime(lambda prompt: "1 2 3 4 5 6 7 8", 0.001)
    pieces, text = await runtime.run(talk)
    assert text == "1 2 3 4 5 6 7 8"
    assert pieces > 2


async def test_forks_continue_separately_and_best_of_takes_the_best(open_runtime: Any) -> None:
    @agent
    async def choose() -> int:
        chat = Chat().user("first")
        await chat.turn()

        async def attempt(branch: Chat) -> int:
            return len((await branch.user("more").turn()).text)

        return await best_of(3, attempt, chat, key=lambda n: n)

    texts = iter(["start", "a", "aaaa", "aa"])
    runtime: Runtime = await open_runtime(lambda prompt: next(texts))
    assert await runtime.run(choose) == 4
    assert all("start" in p for p in runtime.dispatcher.engine.prompts[1:])  # type: ignore[attr-defined]


async def test_best_of_stops_the_others_as_soon_as_one_is_good_enough(open_runtime: Any) -> None:
    ended: list[int] = []

    @agent
    async def choose() -> int:
        chat = Chat().user("first")
        await chat.turn()
        order = iter(range(3))

        async def attempt(branch: Chat) -> int:
            mine = next(order)
            await asyncio.sleep(0.01 if mine == 1 else 30)
            ended.append(mine)
            return mine

        return await best_of(3, attempt, chat, key=lambda n: n, until=lambda n: True)

    runtime: Runtime = await open_runtime(lambda prompt: "x")
    assert await runtime.run(choose) == 1
    assert ended == [1]


async def test_branches_are_named_by_place_not_by_who_is_first(open_runtime: Any) -> None:
    @agent
    async def both() -> list[str]:
        async def branch(delay: float) -> str:
            await asyncio.sleep(delay)
            chat = Chat().user(f"{delay}")
            await chat.turn()
            return chat.conversation.split(":")[1]

        return await gather(lambda: branch(0.02), lambda: branch(0.0))

    runtime: Runtime = await open_runtime(lambda prompt: "x")
    assert await runtime.run(both) == ["0.0/0", "0.1/0"]


async def test_cancelling_frees_everything_at_once(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda prompt: "word " * 40, 0.05)
    run = await runtime.start(loop, "q")
    await asyncio.sleep(0.15)
    await run.cancel()
    engine: Any = runtime.dispatcher.engine
    assert (engine.running, engine.conversations) == (0, set())
    with pytest.raises(Cancelled):
        await run.result()
    assert (await runtime.store.program(run.id)).status == "cancelled"


async def test_a_program_that_raises_is_recorded_and_harms_no_other(open_runtime: Any) -> None:
    @agent
    async def bad() -> None:
        await Chat().user("q").turn()
        raise RuntimeError("my own bug")

    runtime: Runtime = await open_runtime(lambda prompt: "fine")
    runs: list[Run[Any]] = [await runtime.start(bad), await runtime.start(loop, "q")]
    results = await asyncio.gather(*(r.result() for r in runs), return_exceptions=True)
    assert isinstance(results[0], RuntimeError)
    assert results[1] == ["fine"]
    row = await runtime.store.program(runs[0].id)
    assert (row.status, row.error) == ("failed", "RuntimeError: my own bug")


async def test_an_engine_failure_is_tried_once_more(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda prompt: "fine")
    engine: Any = runtime.dispatcher.engine
    engine.failures = [EngineError("out of memory")]
    assert await runtime.run(loop, "q") == ["fine"]
    engine.failures = [EngineError("out of memory")] * 2
    with pytest.raises(EngineError, match="out of memory"):
        await runtime.run(loop, "q")


async def test_a_program_that_outlives_a_failed_call_is_at_a_tool_boundary(
    open_runtime: Any,
) -> None:
    @agent
    async def patient() -> bool:
        chat = Chat().user("q")
        with contextlib.suppress(EngineError):
            await chat.turn()
        (found,) = runtime.dispatcher.scheduler.state.programs.values()
        return found.at_tool_boundary

    runtime: Runtime = await open_runtime(lambda prompt: "fine")
    engine: Any = runtime.dispatcher.engine
    engine.failures = [EngineError("out of memory")] * 2
    assert await runtime.run(patient)


async def test_a_call_that_its_agent_gave_up_while_it_was_held_is_forgotten(
    open_runtime: Any,
) -> None:
    @agent(expect_tokens=100_000)
    async def hasty() -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await Chat().user("q").turn()
        (found,) = runtime.dispatcher.scheduler.state.programs.values()
        return found.at_tool_boundary and not runtime.dispatcher._started

    runtime: Runtime = await open_runtime(lambda prompt: "fine", pause=60.0)
    assert await runtime.run(hasty)


async def test_the_scheduler_hears_once_of_all_that_an_engine_step_said(
    open_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @agent
    async def talks(words: int) -> None:
        await Chat().user("q").turn(max_tokens=words)

    runtime: Runtime = await open_runtime(lambda prompt: "a b c d e f g h", pause=0.02)
    heard = list[Decoded]()
    emit = runtime.dispatcher.emit

    def listen(event: Any) -> None:
        if isinstance(event, Decoded):
            heard.append(event)
        emit(event)

    monkeypatch.setattr(runtime.dispatcher, "emit", listen)
    await runtime.run(talks, 8)
    alone, one = len(heard), heard[0].calls[0]
    assert alone >= 2
    contexts = [context for event in heard for _, _, context in event.calls]
    assert contexts == sorted(set(contexts))
    assert one[1].startswith(one[0])
    heard.clear()
    await asyncio.gather(*(runtime.run(talks, 8) for _ in range(3)))
    assert sum(len(event.calls) for event in heard) == 3 * alone
    assert len(heard) < 3 * alone


async def test_the_scheduler_hears_of_a_call_that_gives_way_and_of_its_going_on(
    open_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime: Runtime = await open_runtime(lambda prompt: "a b c d e f g h")
    engine: Any = runtime.dispatcher.engine
    engine.gives_way = True
    emit, pressed = runtime.dispatcher.emit, list[tuple[str, int]]()

    def listen(event: Any) -> None:
        emit(event)
        if isinstance(event, Decoded | Preempted):
            pressed.append(
                (type(event).__name__, len(runtime.dispatcher.scheduler.state.preempted_steps))
            )

    monkeypatch.setattr(runtime.dispatcher, "emit", listen)
    assert await runtime.run(loop, "q") == ["a b c d e f g h"]
    assert pressed[:3] == [("Decoded", 0), ("Preempted", 1), ("Decoded", 0)]


async def test_misuse_is_refused_with_advice(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(lambda prompt: "x")
    with pytest.raises(ConfigError, match="no program runs here"):
        Chat()
    with pytest.raises(ConfigError, match="must be JSON"):
        await runtime.start(loop, object())  # type: ignore[arg-type]

    @agent
    async def silent() -> None:
        await Chat("").turn()

    with pytest.raises(ConfigError, match="nothing is new"):
        await runtime.run(silent)

    @agent
    async def twice() -> None:
        chat = Chat().user("q")
        await asyncio.gather(chat.turn(), chat.turn())

    with pytest.raises(ConfigError, match="middle of a turn"):
        await runtime.run(twice)
    with pytest.raises(ConfigError, match="drawloom, fcfs-lru"):
        Runtime(policy="none")
    with pytest.raises(ConfigError, match="two tools"):
        agent(tools=[look, look])(loop.fn)
    with pytest.raises(ConfigError, match="choose auto"):
        async with Runtime(runtime.dispatcher.engine, sandbox="magic"):
            pass


async def test_direct_calls_of_tools_are_steps_too(open_runtime: Any) -> None:
    @agent(tools=TOOLS)
    async def direct() -> str:
        with pytest.raises(ToolError, match="boom"):
            await broken()
        return await look("x")

    runtime: Runtime = await open_runtime(lambda prompt: "x")
    run = await runtime.start(direct)
    assert await run.result() == "seen x"
    steps = await runtime.store.steps(run.id)
    assert [(s.name, s.detail["ok"]) for s in steps] == [("broken", False), ("look", True)]


async def test_an_environment_that_cannot_be_made_is_told_to_the_model(open_runtime: Any) -> None:
    @tool(env=Env("no-such-image"))
    async def boxed(box: Sandbox) -> str:
        return "never"

    @agent(tools=[boxed])
    async def work() -> str:
        chat = Chat().user("q")
        return (await chat.run((await chat.turn()).calls))[0].content

    runtime: Runtime = await open_runtime(once(call("boxed")))
    assert "no sandbox provider" in await runtime.run(work)


@dataclass
class Notes:
    topic: str
    text: str = ""


async def test_a_declared_graph_runs_and_feeds_the_same_execution_graph(open_runtime: Any) -> None:
    graph: Graph[Notes] = Graph("notes", Notes)

    @graph.node
    async def draft(s: Notes) -> None:
        s.text = await Chat().ask(f"Write about {s.topic}")

    @graph.node
    async def polish(s: Notes) -> None:
        s.text += "!"

    graph.edge(draft, polish, p=1.0)
    runtime: Runtime = await open_runtime(lambda prompt: "words")
    result = await runtime.run(graph_agent(graph), Notes("looms"))
    assert result.text == "words!"
    learned = runtime.dispatcher.scheduler.state.graph("notes")
    assert learned.transitions.probabilities("draft")["polish"] > 0.5
    assert any("draft" in state and ":" in state for state in learned.transitions.nx)


async def test_two_runtimes_live_side_by_side(open_runtime: Any) -> None:
    one: Runtime = await open_runtime(lambda prompt: "1")
    two: Runtime = await open_runtime(lambda prompt: "2")
    first, second = await asyncio.gather(one.run(loop, "q"), two.run(loop, "q"))
    assert (first, second) == (["1"], ["2"])


async def test_events_tell_a_program_s_story(open_runtime: Any) -> None:
    runtime: Runtime = await open_runtime(once(call("change", what="a")))
    run = await runtime.start(loop, "q")
    kinds = [notice.kind async for notice in run.events()]
    assert kinds[0] == "program.submitted"
    assert kinds[-1] == "program.ended"
    assert kinds.index("tool.started") < kinds.index("tool.finished")
