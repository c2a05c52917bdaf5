"""What a client sends back is the same conversation, however it writes it."""

import asyncio
import copy
import gc
import json
import weakref
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from drawloom.engine.api.engine import Delta, EngineInfo, RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.runtime.server.chat_completions import ChatStep
from drawloom.runtime.server.directory import Caller
from drawloom.runtime.server.history import canonical, read_entry
from drawloom.runtime.server.metrics import Timings
from drawloom.runtime.server.openai_encoding import message
from drawloom.runtime.server.openai_requests import ChatRequest, Message
from drawloom.runtime.server.serving_context import ServingContext
from drawloom.runtime.server.session import Session
from drawloom.runtime.server.sessions import SessionTable
from drawloom.tools.chat_template import ChatTemplate
from drawloom.tools.tool_call import new_call_id
from tests.fakes.scripted_engine import call
from tests.lanes import examples

Json = dict[str, Any]
_FOLDER = Path(__file__).parents[2] / "tools" / "templates"
ENDS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "hermes": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "llama3_2": "<|eot_id|>",
    "mistral": "</s>",
    "deepseek_r1": "<｜end▁of▁sentence｜>",
}
SPECIALS = [
    *dict.fromkeys(ENDS.values()),
    "<|im_start|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<s>",
    "<|end_header_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<tool_call>",
    "</tool_call>",
]
TOOL = {
    "type": "function",
    "function": {"name": "get", "description": "Get.", "parameters": {"type": "object"}},
}


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIALS + alphabet)}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    special = {"<tool_call>": False, "</tool_call>": False}
    library.add_tokens(
        [AddedToken(t, special=special.get(t, True), normalized=False) for t in SPECIALS]
    )
    return Tokenizer(library)


TOKENIZER = _tokenizer()
TEMPLATES = {
    name: ChatTemplate((_FOLDER / f"{name}.jinja").read_text(), eos=end)
    for name, end in ENDS.items()
}


class _Dispatcher:
    """Takes the session of the dispatcher; nothing runs."""

    class engine:
        class info:
            id = "e"

    def emit(self, event: Any) -> None: ...

    def expect_admission(self, program: str) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    async def settle(self) -> None: ...


class _Scripted(SessionTable):
    """Answers each request with `script`."""

    script, closing, reason = "", "", FinishReason.STOP

    async def generate(self, session: Session, *_: Any, **__: Any) -> AsyncGenerator[Delta, None]:
        ids, stream = TOKENIZER.encode(self.script), TOKENIZER.stream()
        for token in ids:
            yield Delta("r", (token,), stream.push(token))
        usage = RequestUsage(
            len(session.tokens),
            0,
            len(ids),
            preemptions=0,
            submitted=0.0,
            started=0.0,
            first=0.0,
            finished=0.0,
        )
        closing = TOKENIZER.encode(self.closing)
        yield Delta("r", tuple(closing), stream.flush(), (), self.reason, usage)


class _Server:
    """A server of one model that says what a test wants."""

    def __init__(self, template: str, reasoning: bool = False) -> None:
        dispatcher: Any = _Dispatcher()
        self.sessions = _Scripted(dispatcher)
        self.end = ENDS[template]
        info = EngineInfo("e", "m", "cpu", 1 << 20, 1 << 20, 16)
        self.context = ServingContext(
            "m",
            TEMPLATES[template],
            TOKENIZER,
            sessions=self.sessions,
            timings=Timings(info),
            max_context=1 << 20,
            reasoning=reasoning,
        )

    async def ask(
        self,
        messages: list[Json],
        said: str,
        caller: Caller | None = None,
        *,
        end: str | None = None,
        finish: FinishReason = FinishReason.STOP,
        **options: Any,
    ) -> tuple[Json, ChatStep]:
        """Return the message that answers `messages`, and the request."""
        asked = ChatRequest.model_validate({"messages": messages, **options})
        self.sessions.script, self.sessions.reason = said, finish
        self.sessions.closing = self.end if end is None else end
        async with ChatStep.open(self.context, asked, caller or Caller()) as job:
            whole = await job.whole()
        return whole["choices"][0]["message"], job


def _run(work: Any) -> None:
    asyncio.run(work)


# --- rewriting ----------------------------------------------------------------------------


def _written(draw: Any, value: Any) -> str:
    """Write JSON in one of its many ways."""
    space = draw(st.sampled_from(["", " ", "\n  "]))
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        parts = [f"{_written(draw, k)}:{space}{_written(draw, v)}" for k, v in items]
        return f"{{{space}{f',{space}'.join(parts)}{space}}}"
    if isinstance(value, list):
        return "[" + f",{space}".join(_written(draw, v) for v in value) + "]"
    if isinstance(value, float):
        forms = [repr(value), f"{value:.17e}", repr(value) + "0" * ("e" not in repr(value))]
        return str(draw(st.sampled_from(forms)))
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def _padded(draw: Any, text: str) -> Any:
    """Write text with other white space around it, as text or as parts."""
    text = draw(st.sampled_from(["", " ", "\n"])) + text.strip() + draw(st.sampled_from(["", "\n"]))
    if not draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    return [{"type": "text", "text": part} for part in (text[:at], text[at:])]


def _rewritten(draw: Any, messages: list[Json]) -> list[Json]:
    return [_again(draw, copy.deepcopy(message)) for message in messages]


def _again(draw: Any, message: Json) -> Json:
    role = message["role"]
    if role == "system":
        message["role"] = draw(st.sampled_from(["system", "developer"]))
    if role == "tool":
        message |= draw(st.sampled_from([{}, {"name": "get"}]))
        with_json = _loaded(message["content"])
        if isinstance(with_json, dict | list):
            message["content"] = _written(draw, with_json)
    elif role == "assistant":
        if draw(st.booleans()):
            message.pop("reasoning_content", None)
        for call in message.get("tool_calls", ()):
            value = _loaded(call["function"]["arguments"])
            if isinstance(value, dict):
                call["function"]["arguments"] = _written(draw, value)
            if draw(st.booleans()):
                call |= {"index": 0, "provider": "x"}
    if message.get("content"):
        message["content"] = _padded(draw, message["content"])
    else:
        message.pop("content", None)
        message |= draw(st.sampled_from([{}, {"content": None}, {"content": ""}, {"content": []}]))
    return message


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=4)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)
WORDS = st.text("ab é\n<{\"'", max_size=8)
RESULTS = WORDS | ARGUMENTS.map(json.dumps)


def _said(draw: Any, format: str, calls: list[Any]) -> str:
    """Write an answer as a model would, in no particular style."""
    content = draw(st.sampled_from(["", "So.", "So.\n\n"]))
    if not calls:
        return f"{draw(WORDS.filter(lambda text: text.strip()))}{draw(st.sampled_from(['', ' ']))}"
    key = "parameters" if format == "llama3_json" else "arguments"
    bodies = [f'{{"name": "get", "{key}": {_written(draw, call)}}}' for call in calls]
    if format == "llama3_json":
        return bodies[0]
    if format == "mistral":
        return f"[TOOL_CALLS][{', '.join(bodies)}]"
    if draw(st.integers(0, 5)) == 0:
        bodies[-1] = bodies[-1][:-1]  # as a model writes it that cannot
    return f"{content}" + "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


@settings(max_examples=examples(60), deadline=None)
@given(
    template=st.sampled_from([name for name in ENDS if name != "deepseek_r1"]),
    named=st.booleans(),
    data=st.data(),
)
def test_a_history_written_anew_is_the_same_conversation(
    template: str, named: bool, data: Any
) -> None:
    draw = data.draw

    async def talk() -> None:
        server, caller = _Server(template), Caller(name="p" if named else None)
        messages: list[Json] = [{"role": "system", "content": "Be brief."}] * draw(st.booleans())
        messages += [{"role": "user", "content": draw(WORDS) + "?"}]
        before: ChatStep | None = None
        for _ in range(3):
            most = 1 if template == "llama3_2" else 2
            calls = draw(st.lists(ARGUMENTS, max_size=most))
            said = _said(draw, server.context.template.calls, calls)
            sent = _rewritten(draw, messages)
            answer, job = await server.ask(sent, said, caller, tools=[TOOL])
            if before is not None:
                known = [*before.prompt.tokens, *before.choices[0].tokens]
                assert job.session.conversation is before.session.conversation
                shown = job.prompt.prompt.text
                if template not in ("hermes", "mistral") or shown.startswith(
                    before.prompt.prompt.text  # these two write the end of a chat otherwise
                ):
                    assert job.prompt.tokens[: len(known)] == known
                    assert job.prompt.known == len(known)
                assert TOKENIZER.decode(job.prompt.tokens, special=True).endswith(shown[-20:])
            before = job
            messages = [*messages, answer]
            for made in answer.get("tool_calls", ()):
                messages.append(
                    {"role": "tool", "content": draw(RESULTS), "tool_call_id": made["id"]}
                )
            if not answer.get("tool_calls"):
                messages.append({"role": "user", "content": draw(WORDS) + "!"})
        assert len(server.sessions) == 1
        await server.sessions.close()

    _run(talk())


# --- what the model sees ------------------------------------------------------------------

CALL = call("get", city="Rome")
QUESTION: Json = {"role": "user", "content": "Where?"}


def _result(answer: Json, text: str = "there") -> Json:
    return {"role": "tool", "content": text, "tool_call_id": answer["tool_calls"][0]["id"]}


def _shown(job: ChatStep) -> str:
    return TOKENIZER.decode(job.prompt.tokens, special=True)


def test_a_thought_that_the_template_leaves_out_is_left_out() -> None:
    async def talk() -> None:
        server = _Server("qwen3", reasoning=True)
        thought = "<think>\nhm\n</think>\n\n"
        answer, first = await server.ask([QUESTION], f"{thought}Here.")
        messages = [QUESTION, answer, {"role": "user", "content": "Why?"}]
        _, second = await server.ask(messages, "Because.")
        assert second.session.conversation is first.session.conversation
        assert second.prompt.known == len(first.prompt.tokens)
        assert "hm" in first.choices[0].text and "hm" not in _shown(second)
        assert _shown(second) == second.prompt.prompt.text
        await server.sessions.close()

    _run(talk())


def test_what_follows_a_stop_string_is_not_in_the_next_prompt() -> None:
    async def talk() -> None:
        server = _Server("qwen2_5")
        told = "Thought: go on.\n"  # what was sampled after it, the client is not told
        answer, first = await server.ask([QUESTION], told, end="Observation: made")
        messages = [QUESTION, answer, {"role": "user", "content": "Observation: 4"}]
        _, second = await server.ask(messages, "So.")
        assert second.session.conversation is first.session.conversation
        assert "made" not in _shown(second)
        assert _shown(second).count("Observation") == 1
        assert second.prompt.known >= len(first.prompt.tokens) + len(TOKENIZER.encode(told))
        await server.sessions.close()

    _run(talk())


@pytest.mark.parametrize("form", ["Do {}", "Do {}STOP", " Do {}\n"])
def test_a_client_may_put_the_stop_string_back(form: str) -> None:
    async def talk() -> None:
        server = _Server("qwen2_5")
        _, first = await server.ask([QUESTION], "Do {}", end="STOP", stop=["STOP"])
        messages = [
            QUESTION,
            {"role": "assistant", "content": form},
            {"role": "user", "content": "4"},
        ]
        _, second = await server.ask(messages, "So.")
        assert second.session.conversation is first.session.conversation
        await server.sessions.close()

    _run(talk())


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "smollm2"])
def test_calls_that_come_back_as_text_are_one_program(template: str) -> None:
    """As smolagents sends them: all in text, results as messages of the user."""

    async def talk() -> None:
        server, messages, before = _Server(template), [QUESTION], None
        for step in range(3):
            answer, job = await server.ask(messages, f"Step.\n{CALL}", tools=[TOOL])
            if before is not None:
                assert job.session.conversation is before.session.conversation
                assert job.prompt.known >= len(before.prompt.tokens)
            before, (call,) = job, answer["tool_calls"]
            function = {"name": "get", "arguments": json.loads(call["function"]["arguments"])}
            told = [{"id": call["id"], "type": "function", "function": function}]
            text = f"{answer['content']}\nCalling tools:\n{told}"
            messages = [
                *messages,
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
                {"role": "user", "content": [{"type": "text", "text": f"Observation:\n{step}"}]},
            ]
        assert len(server.sessions) == 1
        await server.sessions.close()

    _run(talk())


def test_a_step_that_its_client_takes_back_belongs_to_the_program() -> None:
    """As smolagents does when a tool fails: the call is dropped, its error joins the result before
    it."""

    async def talk() -> None:
        server = _Server("qwen2_5")
        answer, first = await server.ask([QUESTION], CALL, tools=[TOOL])
        text = {"role": "assistant", "content": f"Calling tools: {answer['tool_calls']}"}
        messages = [QUESTION, text, {"role": "user", "content": "Observation: 4"}]
        _, second = await server.ask(messages, CALL, tools=[TOOL])
        messages[-1] = {"role": "user", "content": "Observation: 4\nError: no such tool"}
        _, third = await server.ask(messages, CALL, tools=[TOOL])
        assert first.session.program is second.session.program is third.session.program
        assert third.prompt.known >= len(first.prompt.tokens)
        assert _shown(third) == third.prompt.prompt.text
        await server.sessions.close()

    _run(talk())


def test_other_tools_and_another_system_message_are_what_the_model_sees() -> None:
    async def talk() -> None:
        server, caller = _Server("qwen2_5"), Caller(name="p")
        system = {"role": "system", "content": "One."}
        messages: list[Json] = [system, QUESTION]
        answer, _ = await server.ask(messages, CALL, caller, tools=[TOOL])
        messages += [answer, _result(answer)]
        other = copy.deepcopy(TOOL)
        other["function"]["name"] = "put"  # type: ignore[index]
        answer, second = await server.ask(messages, "So.", caller, tools=[TOOL, other])
        assert _shown(second) == second.prompt.prompt.text
        assert '"put"' in _shown(second)
        messages = [{"role": "system", "content": "Two."}, *messages[1:], answer, QUESTION]
        _, third = await server.ask(messages, "So.", caller, tools=[TOOL])
        assert "Two." in _shown(third) and "One." not in _shown(third)
        assert _shown(third) == third.prompt.prompt.text
        assert len(second.session.program.conversations) == 1  # none is left behind
        await server.sessions.close()

    _run(talk())


def test_what_is_kept_of_a_conversation_keeps_no_request() -> None:
    async def talk() -> None:
        server, messages = _Server("qwen3", reasoning=True), [QUESTION]
        jobs = []
        for _ in range(4):
            answer, job = await server.ask(messages, CALL, tools=[TOOL])
            jobs.append(weakref.ref(job))
            messages = [*messages, answer, _result(answer)]
            del job
        gc.collect()
        assert len(server.sessions) == 1
        assert [job() for job in jobs] == [None] * 4
        await server.sessions.close()

    _run(talk())


def test_any_of_several_choices_may_be_gone_on_from() -> None:
    async def talk() -> None:
        server = _Server("qwen2_5")
        _, first = await server.ask([QUESTION], "same", n=2)
        record: Any = first.session.conversation.record
        assert len(record.answers) == 2
        answer = message(first.choices[1])
        _, second = await server.ask([QUESTION, answer, QUESTION], "So.")
        assert second.session.conversation is first.session.conversation
        await server.sessions.close()

    _run(talk())


def test_who_asks_again_takes_up_what_broke_off() -> None:
    async def talk() -> None:
        server = _Server("qwen2_5")
        answer, first = await server.ask([QUESTION], "one")
        messages = [QUESTION, answer, {"role": "user", "content": "two?"}]
        server.sessions.script = "a long answer"
        asked = ChatRequest.model_validate({"messages": messages})
        async with ChatStep.open(server.context, asked, Caller()) as job:
            stream = job.chunks()
            for _ in range(4):
                await anext(stream)
            await stream.aclose()
        _, again = await server.ask(messages, "two")
        assert job.session.conversation is again.session.conversation is first.session.conversation
        said = {"role": "assistant", "content": "two"}
        _, after = await server.ask([*messages, said, QUESTION], "three")
        assert after.session.conversation is first.session.conversation
        await server.sessions.close()

    _run(talk())


def test_a_named_program_keeps_no_conversation_that_was_superseded() -> None:
    async def talk() -> None:
        server, caller = _Server("qwen2_5"), Caller(name="p")
        _, first = await server.ask([QUESTION], "one", caller)
        _, again = await server.ask([QUESTION], "two", caller)
        edited = [QUESTION, {"role": "assistant", "content": "what I made of it"}, QUESTION]
        _, other = await server.ask(edited, "three", caller)
        assert (
            first.session.conversation is again.session.conversation is other.session.conversation
        )
        assert "what I made of it" in _shown(other) and "one" not in _shown(other)
        branch = [QUESTION, edited[1], {"role": "user", "content": "Or?"}]
        _, sibling = await server.ask(branch, "four", caller)
        assert sibling.session.conversation is other.session.conversation
        assert sibling.prompt.known >= len(TOKENIZER.encode("what I made of it"))
        anew = [{"role": "user", "content": "Something else?"}]
        _, last = await server.ask(anew, "five", caller)
        assert last.session.conversation is other.session.conversation
        assert last.session.program.current_conversations == [last.session.conversation]
        await server.sessions.close()

    _run(talk())


def test_a_program_that_goes_on_with_what_it_seemed_to_give_up_has_several_conversations() -> None:
    async def talk() -> None:
        server, caller = _Server("qwen2_5"), Caller(name="p")
        answer, main = await server.ask([QUESTION], "Let me ask.", caller)
        task = [{"role": "user", "content": "A part of it."}]
        result, part = await server.ask(task, "Done.", caller)
        assert (
            part.session.conversation is main.session.conversation
        )  # for all that is known, it is given up
        _, again = await server.ask([QUESTION, answer, QUESTION], "So.", caller)
        assert again.session.conversation is not main.session.conversation
        assert again.prompt.known >= len(main.prompt.tokens)
        _, other = await server.ask([*task, result, QUESTION], "Done again.", caller)
        assert other.session.conversation is part.session.conversation
        _, third = await server.ask([{"role": "user", "content": "And?"}], "Three.", caller)
        assert third.session.program.current_conversations[-1] is third.session.conversation
        assert len(third.session.program.current_conversations) == 3
        await server.sessions.close()

    _run(talk())


def test_requests_at_a_time_are_conversations_of_their_own() -> None:
    async def talk() -> None:
        server, caller = _Server("qwen2_5"), Caller(name="p")
        turns = [[{"role": "user", "content": word}] for word in "abc"]
        asked = [ChatRequest.model_validate({"messages": turn}) for turn in turns]
        async with AsyncExitStack() as stack:
            opening = [ChatStep.open(server.context, one, caller) for one in asked]
            jobs = [await stack.enter_async_context(one) for one in opening]
            for job in jobs:
                await job.whole()
        _, other = await server.ask([QUESTION], "yes", caller)
        assert len({job.session.conversation.name for job in [*jobs, other]}) == 4
        assert len(other.session.program.current_conversations) == 4
        await server.sessions.close()

    _run(talk())


@pytest.mark.parametrize("template", ["qwen2_5", "smollm2", "llama3_2"])
def test_an_answer_that_went_on_past_its_end_stays_as_it_was_sampled(template: str) -> None:
    async def talk() -> None:
        server, end = _Server(template), ENDS[template]
        said = f"Here.{end}\nMore of it{end}\n and"
        answer, first = await server.ask([QUESTION], said, end="", finish=FinishReason.LENGTH)
        assert end not in answer["content"]
        _, second = await server.ask([QUESTION, answer, QUESTION], "So.")
        assert second.session.conversation is first.session.conversation
        assert second.prompt.known == len(first.prompt.tokens) + len(TOKENIZER.encode(said))
        await server.sessions.close()

    _run(talk())


def test_a_nameless_client_that_rewrites_its_answers_is_one_program() -> None:
    async def talk() -> None:
        server, messages, jobs = _Server("qwen2_5"), [QUESTION], []
        for step in range(4):
            _, job = await server.ask(messages, f"Thought {step}. Act: x.\n\nMore.")
            jobs.append(job)
            said = {"role": "assistant", "content": f"Act {step}"}
            messages = [*messages, said, {"role": "user", "content": f"Observation: {step}"}]
        assert len({job.session.conversation.name for job in jobs}) == len(server.sessions) == 1
        _, shorter = await server.ask([*messages[:3], QUESTION], "yes")
        assert shorter.session.conversation is jobs[0].session.conversation
        await server.sessions.close()

    _run(talk())


def test_nameless_clients_that_began_alike_and_rewrite_are_not_taken_for_each_other() -> None:
    async def talk() -> None:
        server = _Server("qwen2_5")
        firsts = [(await server.ask([QUESTION], f"Number {i}."))[1] for i in range(2)]
        edited = [QUESTION, {"role": "assistant", "content": "Act"}, QUESTION]
        _, other = await server.ask(edited, "yes")
        assert other.session.program not in [first.session.program for first in firsts]
        assert len(server.sessions) == 3
        await server.sessions.close()

    _run(talk())


def test_what_is_shared_with_a_busy_conversation_is_known_to_its_fork() -> None:
    async def talk() -> None:
        server, caller = _Server("qwen2_5"), Caller(name="p")
        answer, first = await server.ask([QUESTION], CALL, caller, tools=[TOOL])
        messages = [QUESTION, answer, _result(answer)]
        asked = ChatRequest.model_validate({"messages": messages, "tools": [TOOL]})
        async with AsyncExitStack() as stack:
            opening = [ChatStep.open(server.context, asked, caller) for _ in range(3)]
            jobs = [await stack.enter_async_context(one) for one in opening]
            known = [*first.prompt.tokens, *first.choices[0].tokens]
            assert jobs[0].session.parent is None
            assert [job.session.parent for job in jobs[1:]] == [first.session.conversation] * 2
            assert all(job.prompt.tokens[: len(known)] == known for job in jobs)
            for job in jobs:
                await job.whole()
        await server.sessions.close()

    _run(talk())


# --- what is not the same -----------------------------------------------------------------


def _altered(draw: Any, messages: list[Json]) -> list[Json]:
    """Change what one message means."""
    messages = copy.deepcopy(messages)
    at = draw(st.integers(0, len(messages) - 1))
    message = messages[at]
    ways = ["text", "role", "gone"]
    if message.get("tool_calls"):
        ways += ["name", "arguments", "id", "call gone"]
    way = draw(st.sampled_from(ways))
    if way == "gone":
        del messages[at]
        return messages
    if way == "role":
        role = {"user": "system", "assistant": "user"}.get(message["role"], "user")
        messages[at] = {"role": role, "content": message.get("content") or ""}
        return messages
    if way == "text":
        message["content"] = (message.get("content") or "") + draw(st.sampled_from(["x", " y"]))
        return messages
    call = message["tool_calls"][0]
    if way == "name":
        call["function"]["name"] += "x"
    elif way == "id":
        call["id"] = "aaaaaaaaa"
    elif way == "call gone":
        del message["tool_calls"][0]
        message["content"] = message["content"] or "nothing"
    else:
        arguments = json.loads(call["function"]["arguments"])
        call["function"]["arguments"] = json.dumps(arguments | {"more": 1})
    return messages


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_conversations_that_differ_never_merge(data: Any) -> None:
    draw = data.draw

    async def talk() -> None:
        server = _Server("qwen2_5")
        messages: list[Json] = [{"role": "system", "content": "Be brief."}, QUESTION]
        answer, first = await server.ask(messages, f"So.\n{CALL}\n{CALL}", tools=[TOOL])
        messages += [
            answer,
            *({**_result(answer), "tool_call_id": c["id"]} for c in answer["tool_calls"]),
        ]
        answer, _ = await server.ask(messages, draw(st.sampled_from(["Done.", CALL])), tools=[TOOL])
        history = [*messages, answer]
        new = _result(answer) if answer.get("tool_calls") else QUESTION
        other = _altered(draw, history)
        _, second = await server.ask([*other, new], "x", tools=[TOOL])
        if other[:3] != history[:3]:  # else a branch, behind calls that only it knows
            assert second.session.program is not first.session.program
        sent = [Message.model_validate(message).rendered() for message in [*other, new]]
        assert _shown(second) == server.context.template.render(sent, [TOOL]).text
        _, third = await server.ask([*history, new], "x", tools=[TOOL])
        assert third.session.program is first.session.program
        await server.sessions.close()

    _run(talk())


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.data())
def test_arguments_have_one_form(value: Json, data: Any) -> None:
    written = _written(data.draw, value)
    assert canonical(written) == canonical(json.dumps(value)) == canonical(value)
    assert json.loads(canonical(written)) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.50", "1.5e0", True),
        ("[2.0]", "[2]", True),
        ("1e3", "1000", True),
        ('{"a":"\\u00e9"}', '{"a":"é"}', True),
        ("", "{}", True),
        ("null", "{}", True),
        ('{"a": ', ' {"a":', True),
        ("true", "1", False),
        ("1", '"1"', False),
        ("9007199254740993", "9007199254740992", False),
        ("[1]", "[1, 1]", False),
        ("1e999", "1e998", False),
        ("[" * 9999, "[" * 9998, False),
    ],
)
def test_arguments_are_compared_by_value(one: str, other: str, same: bool) -> None:
    assert (canonical(one) == canonical(other)) is same


def _entry(**message: Any) -> Any:
    return read_entry(Message.model_validate(message))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"role": "system", "content": "a"}, {"role": "developer", "content": " a\r\n"}, True),
        ({"role": "tool", "content": '{"a": 1}'}, {"role": "tool", "content": '{"a":1.0}'}, True),
        ({"role": "tool", "content": "sunny"}, {"role": "tool", "content": '"sunny"'}, True),
        (
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": '[{"type": "text", "text": "sunny"}]'},
            True,
        ),
        (
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "tool", "content": "1", "tool_call_id": "b"},
            False,
        ),
        ({"role": "user", "content": "1.0"}, {"role": "user", "content": "1"}, False),
        ({"role": "user", "content": "a", "name": "x"}, {"role": "user", "content": "a"}, True),
        (
            {"role": "user", "content": "a", "name": "x"},
            {"role": "user", "content": "a", "name": "y"},
            False,
        ),
        (
            {"role": "assistant", "content": "<think>hm</think>\nYes"},
            {"role": "assistant", "content": "Yes"},
            True,
        ),
        (
            {"role": "assistant", "content": "Yes", "reasoning_content": "hm"},
            {"role": "assistant", "content": "<think>\nhm\n</think>Yes"},
            True,
        ),
        (
            {"role": "assistant", "content": "Yes", "reasoning_content": "hm"},
            {"role": "assistant", "content": "Yes", "reasoning_content": "ha"},
            False,
        ),
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}, False),
    ],
)
def test_messages_are_compared_by_meaning(one: Json, other: Json, same: bool) -> None:
    assert _entry(**one).same(_entry(**other)) is _entry(**other).same(_entry(**one)) is same


@given(st.text(max_size=9), st.integers(0, 9))
def test_an_id_is_found_in_text(turn: str, index: int) -> None:
    id = new_call_id(turn, index)
    assert id in _entry(role="assistant", content=f"Calling tools: [{{'id': '{id}'}}]").mentions
