# ruff: noqa: E501 (templates are data)
"""Templates that know no tools are given them as text, and stay continuable."""

from pathlib import Path
from typing import Any

import pytest

from drawloom.tools.chat_template import ChatTemplate, Message
from drawloom.tools.parsers import Closed, make_parser

_FOLDER = Path(__file__).parent / "templates"
_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
]
_CALL = {"id": "abcDEF123", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
_RESULTS: list[Message] = [
    {"role": "tool", "content": "sunny", "tool_call_id": "abcDEF123"},
    {"role": "tool", "content": "windy", "tool_call_id": "abcDEF124"},
]
_CHAT: list[Message] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    *_RESULTS,
]
_NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
_SOURCES = {
    "smollm2": (_FOLDER / "smollm2.jinja").read_text(),
    "deepseek-r1": (_FOLDER / "deepseek_r1.jinja").read_text(),
    "no-system": _NO_SYSTEM,
}


@pytest.mark.parametrize("name", _SOURCES)
def test_tools_calls_and_results_are_in_the_prompt(name: str) -> None:
    template = ChatTemplate(_SOURCES[name], "<s>", "<|im_end|>")
    assert not template.shows_tools
    assert template.calls == "hermes"
    text = template.render(_CHAT, _TOOLS).text
    assert '"name": "weather"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>' in text
    assert text.count("<tool_response>") == 2
    assert text.index("sunny") < text.index("windy")


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_join_the_system_message(system: list[Message]) -> None:
    text = ChatTemplate(_SOURCES["smollm2"]).render([*system, *_CHAT], _TOOLS).text
    assert text.count("<|im_start|>system") == 1
    assert ("Be brief.\n\nYou may call" in text) == bool(system)


@pytest.mark.parametrize("name", _SOURCES)
def test_a_turn_is_continued_by_its_delta(name: str) -> None:
    template = ChatTemplate(_SOURCES[name], "<s>", "<|im_end|>")
    past = [_CHAT[0], {"role": "assistant", "content": "SAID"}]
    whole = template.render([*past, *_RESULTS], _TOOLS).text
    assert whole.endswith("SAID" + template.delta(_RESULTS, _TOOLS, closed=False).text)


def test_what_the_prompt_asks_for_is_what_the_parser_reads() -> None:
    text = ChatTemplate(_SOURCES["smollm2"]).render(_CHAT, _TOOLS).text
    written = text[text.rindex("<tool_call>") : text.rindex("</tool_call>") + 12]
    parser = make_parser("hermes")
    (call,) = [p.call for p in [*parser.feed(written), *parser.end()] if isinstance(p, Closed)]
    assert (call.name, call.arguments, call.error) == ("weather", {"city": "Köln"}, None)


def test_a_template_that_shows_tools_with_a_system_message_only_gets_one() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.shows_tools
    assert '"name": "weather"' in template.render(_CHAT, _TOOLS).text
    assert template.render(_CHAT, []).text.startswith("user:")


def test_a_template_that_takes_arguments_as_text_or_null_content_gets_them_so() -> None:
    text = (
        "{{ tools | tojson }}{% for m in messages %}{% if m.content is none %}"
        "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(text)
    assert template.shows_tools
    chat = [_CHAT[0], {**_CHAT[1], "content": ""}, *_RESULTS]
    assert 'weather{"city": "Köln"}' in template.render(chat, _TOOLS).text


@pytest.mark.parametrize("arguments", ["not json", [1], None, "", 3])
def test_arguments_that_are_no_object_never_end_a_conversation(arguments: Any) -> None:
    source = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}"
    )
    call = {"id": "abcDEF123", "function": {"name": "weather", "arguments": arguments}}
    chat = [_CHAT[0], {**_CHAT[1], "tool_calls": [call]}, *_RESULTS]
    for text in (source, *_SOURCES.values()):
        assert "sunny" in ChatTemplate(text).render(chat, _TOOLS).text
