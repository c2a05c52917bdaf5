"""What a client gives up of a conversation is given back; what it keeps is found."""

import asyncio
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from drawloom.engine.config import EngineConfig
from drawloom.runtime.scheduler.events import ConversationEnded, StepReady
from drawloom.runtime.sdk.runtime import Runtime
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.chat_completions import ChatStep
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.openai_requests import ChatRequest

Json = dict[str, Any]
BLOCK = 16
SYSTEM: Json = {"role": "system", "content": "You are an agent, and you are brief."}
WAYS = ["goes on", "rewrites", "drops turns", "asks again", "compacts", "begins anew", "branches"]


class _Client:
    """A model of a client with one request at a time, which treats its history as it likes."""

    def __init__(self, subject: str) -> None:
        self.messages: list[Json] = [SYSTEM, {"role": "user", "content": subject}]
        self.turns = 0

    def next(self, way: str, said: str, back: int) -> None:
        """Make the next request after an answer."""
        self.turns += 1
        observed = {"role": "user", "content": f"Observation {self.turns}: it is so."}
        if way == "goes on":
            self.messages += [{"role": "assistant", "content": said}, observed]
        elif way == "rewrites":
            self.messages += [{"role": "assistant", "content": f"As I said: {said[:5]}"}, observed]
        elif way == "drops turns":
            del self.messages[max(2, len(self.messages) - 2 * back) :]
            self.messages[-1] = observed
        elif way == "branches":
            self.messages[-1] = {"role": "user", "content": f"Or {self.turns}?"}
        elif way == "compacts":
            summary = f"So far {self.turns} things were done. Go on."
            self.messages = [SYSTEM, {"role": "user", "content": summary}]
        elif way == "begins anew":
            self.messages = [{"role": "user", "content": f"Another task: {self.turns}."}]


async def _ask(server: Server, client: _Client, caller: Caller) -> tuple[ChatStep, str]:
    asked = {"messages": client.messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    request = ChatRequest.model_validate(asked)
    async with ChatStep.open(server.context, request, caller) as job:
        answer = await job.whole()
    await server.dispatcher.settle()
    return job, str(answer["choices"][0]["message"]["content"])


def _resident(server: Server) -> int:
    """Blocks of the device that belong to conversations that are not over."""
    engine: Any = server.dispatcher.engine
    known = engine._core.cache._index.known.values()
    return sum(bool(entry.users) and entry.block >= 0 for entry in known)


def _common(one: list[Any], other: list[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@settings(max_examples=8, deadline=None, phases=[Phase.reuse, Phase.generate])  # it is slow
@given(
    named=st.booleans(),
    ways=st.lists(st.tuples(st.sampled_from(WAYS), st.integers(1, 3)), min_size=12, max_size=16),
)
def test_a_client_of_one_conversation_at_a_time_holds_one_however_it_treats_its_history(
    named: bool, ways: list[tuple[str, int]]
) -> None:
    async def talk() -> None:
        config = EngineConfig(kv_tokens=4096)
        async with Runtime(sandbox="none", engine=config, record=False) as runtime:
            server = Server(runtime)
            caller = Caller(name="p" if named else None)
            client, held, history = _Client("What is there?"), list[int](), list[Json]()
            told, emit = list[Any](), server.dispatcher.emit
            server.dispatcher.emit = lambda event: (told.append(event), emit(event))[1]  # type: ignore
            for way, back in ways:
                known = len(server.sessions)
                job, said = await _ask(server, client, caller)
                tokens = [*job.prompt.tokens, *job.choices[0].tokens]
                if named:
                    usage = job.usages()[0]
                    found = min(_common(held[:-1], tokens), usage.prompt_tokens - 1)
                    assert usage.cached_tokens >= found // BLOCK * BLOCK, "what it kept is lost"
                    assert len(job.session.program.current_conversations) == 1
                    assert _resident(server) <= -(-len(tokens) // BLOCK) + 1
                    (program,) = server.dispatcher.scheduler.state.programs.values()
                    assert program.tokens == len(tokens)
                else:  # what shares no answer may be another's, for all that can be known
                    shared = history[: _common(history, client.messages)]
                    sure = any(message["role"] == "assistant" for message in shared)
                    assert len(server.sessions) <= known + (not sure)
                held = tokens
                history = [*client.messages, {"role": "assistant", "content": said}]
                client.next(way, said, back)
            if named:
                assert (
                    len({event.conversation for event in told if isinstance(event, StepReady)}) == 1
                )
                assert not any(isinstance(event, ConversationEnded) for event in told)
            await server.close()

    asyncio.run(talk())


async def test_a_client_that_rewrites_takes_nothing_from_one_that_waits() -> None:
    config = EngineConfig(kv_tokens=1024)
    async with Runtime(sandbox="none", engine=config, record=False) as runtime:
        server, waiting, rewriting = Server(runtime), _Client("Wait."), _Client("word " * 60)
        first, said = await _ask(server, waiting, Caller(name="waiting"))
        await server.dispatcher.engine.lease(
            first.session.conversation.name, 0.0, 0.0
        )  # it ends at once
        for turn in range(30):
            await _ask(server, rewriting, Caller(name="rewriting"))
            rewriting.messages[-1] = {"role": "user", "content": f"{turn} " + "word " * 60}
        waiting.next("goes on", said, 0)
        again, _ = await _ask(server, waiting, Caller(name="waiting"))
        assert again.usages()[0].cached_tokens >= len(first.prompt.tokens)
        await server.close()
