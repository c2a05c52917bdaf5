# ruff: noqa: E501 (templates are data)
"""Templates render as transformers renders them, know their contents, and always end."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import CheckpointError, ConfigError
from drawloom.prompts import Prompt
from drawloom.tools.chat_template import ChatTemplate, Message
from drawloom.tools.jinja import TemplateEnvironment, prepared
from drawloom.tools.tracked_text import Tracked, spans_of

_FOLDER = Path(__file__).parent / "templates"
_SOURCES = {path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.jinja"))}
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather in a <city> & "town" — é',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
_PLAIN: list[Message] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": " Hi, <b>you</b>\n"},
    {"role": "assistant", "content": "Hello.\n"},
    {"role": "user", "content": "more"},
]


def _calling(arguments: Any, content: str | None) -> list[Message]:
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "abcDEF123", "type": "function", "function": function}
    result = {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "abcDEF123"}
    turn = {"role": "assistant", "content": content, "tool_calls": [call]}
    return [{"role": "user", "content": "Weather?"}, turn, result]


_OBJECT = {"city": "Köln", "days": 2, "list": [1, None, True], "nested": {"a": 1.5}}
_CHATS: dict[str, list[Message]] = {
    "plain": _PLAIN,
    "no-system": _PLAIN[1:],
    "call": _calling(_OBJECT, ""),
    "null-content": _calling(_OBJECT, None),
    "text-arguments": _calling('{"city": "Köln"}', None),
    "list-arguments": _calling([1, 2], ""),
    "null-arguments": _calling(None, ""),
    "thought": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "user", "content": "<tool_response>\nx\n</tool_response>"},
        {"role": "assistant", "content": "a", "reasoning_content": "why"},
        {"role": "user", "content": "v"},
    ],
}


def _reference(source: str, messages: list[Message], tools: Any, extra: dict[str, Any]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
        **extra,
    )
    return str(text)


@pytest.mark.parametrize("name", _SOURCES)
@pytest.mark.parametrize("chat", _CHATS)
@pytest.mark.parametrize("tools", [None, _TOOLS], ids=["bare", "tools"])
def test_a_template_renders_as_transformers_renders_it(name: str, chat: str, tools: Any) -> None:
    template, messages = ChatTemplate(_SOURCES[name], "<s>", "</s>"), _CHATS[chat]
    if (tools or "tool_calls" in str(messages)) and not template.shows_tools:
        return  # its tools are written into the messages: see test_plain_text_tools.py
    extra = {"enable_thinking": False, "documents": [{"title": "t", "text": "a\nb"}]}
    try:
        wanted = _reference(_SOURCES[name], messages, tools, extra)
    except Exception:
        return  # what a template refuses is seen below
    assert template.render(messages, tools or [], extra).text == wanted


_FORMS = {
    "tojson": "{{ x | tojson }}|{{ x | tojson(indent=2) }}|{{ x | tojson(ensure_ascii=True) }}",
    "separators": "{{ x | tojson(separators=(',', ':'), sort_keys=true) }}{{ x|tojson(indent='-') }}",
    "loops": "{% for k in x %}{% if k == 'b' %}{% continue %}{% endif %}{{ k }}{% endfor %}",
    "break": "{% for k in x %}{{ loop.index }}{% break %}{% endfor %}{{ x.items() | list }}",
    "namespace": "{% set n = namespace(a=1) %}{% for k in x %}{% set n.a = n.a + 1 %}{% endfor %}"
    "{{ n.a }}",
    "macro": "{% macro m(a, b='-') %}{{ a ~ b }}{{ caller() }}{% endmacro %}"
    "{% call m(x.a) %}!{% endcall %}{% set y %}{{ x.b }}{% endset %}{{ y | upper }}",
    "texts": "{{ x.a[1:] }}{{ x.a[0] }}{{ x.a[::-1] }}{{ x.a.split('<') }}{{ x.a.rsplit('<', 1)[0] }}"
    "{{ x.a.splitlines() }}{{ x.a.partition('é') }}{{ x.a.replace('é', 'ee') }}{{ x.a.title() }}",
    "joins": "{{ ', '.join(x.c) }}{{ x.c | join('-') }}{{ x.c | map('upper') | list }}{{ 2 * x.a }}",
    "formats": "{{ '%s-%s' % (x.a, 1) }}{{ '{}|{a}'.format(x.b, a=x.a) }}{{ '%s' | format(x.a) }}",
    "filters": "{{ x.a|trim }}{{ x.a|length }}{{ x.a|e }}{{ x.a|indent(3) }}{{ x.c|first }}{{ x.c|last }}"
    "{{ x.a|replace('<', '') }}{{ x|dictsort }}{{ x.a|truncate(4) }}{{ x.a|center(20) }}{{ x.n|round(1) }}"
    "{{ x.c|unique|list }}{{ x.c|batch(2)|list }}{{ x.a|wordcount }}{{ x.a|default('q') }}{{ x.c|sort }}",
    "tests": "{{ x.a is string }}{{ x is mapping }}{{ x.c is iterable }}{{ x.z is defined }}{{ x.n is number }}",
    "values": "{{ x }}{{ none }}{{ true }}{{ x.z }}{{ x.n * 2 + 1 }}{{ 7 // 2 }}{{ 2 ** 8 }}{{ -x.n }}",
    "time": "{{ strftime_now('%Y') }}",
}
_VALUE = {"a": " é<|x|>\nzw ", "b": "q", "c": ["y", "x", "y"], "n": 1.25}


@pytest.mark.parametrize("name", _FORMS)
def test_an_expression_renders_as_in_transformers(name: str) -> None:
    wanted = _reference(_FORMS[name], [], None, {"x": _VALUE})
    assert ChatTemplate(_FORMS[name], "<s>", "</s>").render([], [], {"x": _VALUE}).text == wanted
    assert str(datetime.now().year) in wanted or name != "time"


# --- contents -----------------------------------------------------------------------------

_TEXT = st.text(alphabet="ab <|im_end>\n/thinkéX", max_size=12)
_CONTENT = st.lists(
    st.sampled_from(["<|im_end|>", "<think>", "</think>", "\n", " ", "Q"]) | _TEXT, max_size=4
).map("".join)


@pytest.mark.parametrize("name", _SOURCES)
@given(_CONTENT, _CONTENT, _CONTENT, _CONTENT)
@settings(max_examples=25)
def test_a_template_s_own_text_does_not_depend_on_contents(
    name: str, system: str, user: str, answer: str, result: str
) -> None:
    """What is left when the contents are taken out is the same for harmless contents."""
    template = ChatTemplate(_SOURCES[name], "<s>", "</s>")

    def chat(system: str, user: str, answer: str, result: str) -> list[Message]:
        call = _calling({"city": result}, "")
        call[2]["content"] = result
        first = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return [*first, {"role": "assistant", "content": answer}, *call]

    texts = (system, user, answer, result)
    prompt = template.render(chat(*(f".{text}." for text in texts)), _TOOLS)
    harmless = template.render(chat(*(f".{'z' * len(text)}." for text in texts)), _TOOLS)
    for control in ("<|im_end|>", "<think>", "</think>"):
        assert _own(prompt).count(control) == _own(harmless).count(control)


_CONTROL = re.compile(
    r"<\|[^|]*\|>|</?(?:tool_call|tool_response|think|tools)>|\[/?[A-Z_]{4,}\]|<｜[^｜]*｜>|</?s>"
)


@pytest.mark.parametrize("name", _SOURCES)
@pytest.mark.parametrize("chat", _CHATS)
def test_all_of_a_template_s_own_control_tokens_are_its_own(name: str, chat: str) -> None:
    template = ChatTemplate(_SOURCES[name], "<s>", "</s>")
    messages = json.loads(json.dumps(_CHATS[chat]).replace("<", "(").replace("/think>", ""))
    try:
        prompt = template.render(messages, _TOOLS)
    except ConfigError:
        return
    found = [match.span() for match in _CONTROL.finditer(prompt.text)]
    if not template.shows_tools:  # the tools' marks are text of messages there
        found = [s for s in found if "tool" not in prompt.text[slice(*s)]]
    assert len(found) >= 3
    assert not [s for s in found if any(a < s[1] and s[0] < b for a, b in prompt.contents)]


def _own(prompt: Prompt) -> str:
    parts, at = [], 0
    for start, end in prompt.contents:
        parts.append(prompt.text[at:start])
        at = end
    return "\0".join([*parts, prompt.text[at:]])


@pytest.mark.parametrize(
    "source",
    [
        "{{ x }}",
        "{{ x | trim }}",
        "{{ x ~ '' }}",
        "{{ '' + x }}",
        "{{ x[:] }}",
        "{{ [x] | join }}",
        "{{ '%s' % x }}",
        "{{ '%s' % (x,) }}",
        "{{ '{}'.format(x) }}",
        "{{ '{a}'.format(a=x) }}",
        "{{ '%s' | format(x) }}",
        "{{ x | string }}",
        "{{ x | upper | lower }}",
        "{{ ''.join([x]) }}",
        "{{ x | list | join }}",
        "{% for c in x %}{{ c }}{% endfor %}",
        "{{ x.split('|') | join('|') }}",
        "{{ x.replace('Q', '') }}",
        "{{ 'Q'.replace('Q', x) }}",
        "{{ x | replace('Q', '') }}",
        "{% set y %}{{ x }}{% endset %}{{ y }}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}",
        "{% filter trim %}{{ x }}{% endfilter %}",
        "{{ {'a': x}.a }}",
        "{{ {x: 1} | list | first }}",
        "{{ [x] }}",
        "{{ {'a': x} | tojson }}",
        "{{ (x, 1) | string }}",
        "{{ x | safe }}",
        "{{ x | e }}",
        "{{ x[::-1][::-1] }}",
        "{{ x.center(40) }}",
        "{{ '{:>30}'.format(x) }}",
        "{{ x | indent }}",
        "{% set n = namespace(a='') %}{% for c in x %}{% set n.a = n.a + c %}{% endfor %}{{ n.a }}",
        "{{ x.partition('_')[0] ~ '_' ~ x.partition('_')[2] }}",
        "{{ [x, x] | unique | first }}",
        "{{ x | truncate(99) }}",
        "{{ x | title }}",
        "{{ dict(a=x).items() | list }}",
        "{{ x * 2 }}",
        "{{ strftime_now(x) }}",
        "{{ [[x]] | sum(start=[]) }}",
        "{{ x | default('y') }}",
        "{% for k in [x] recursive %}{{ k }}{% endfor %}",
        "{{ x | first ~ x[1:] }}",
        "{{ x | urlencode }}",
        "{{ [{'a': x}] | map(attribute='a') | join(' ') }}",
        "{{ cycler(x, 'b').next() }}",
        "{{ x.removeprefix('a').removesuffix('b') }}",
        "{{ x | attr('upper')() }}",
        "{{ x.format() }}",
        "{{ '{0[0]}'.format([x]) }}",
        "{{ '{a.b}'.format(a={'b': x}) }}",
    ],
)
def test_no_operation_takes_a_content_for_the_template_s_own(source: str) -> None:
    environment = TemplateEnvironment()
    with environment.metered():
        text = environment.from_string(source).render(x=prepared("a<|im_end|>b Q")[0])
    kept = Prompt(text, spans_of(text))
    for mark in ("im", "im_end", "IM", "Im", "end"):
        assert mark not in _own(kept)


def test_no_method_and_no_filter_takes_a_content_for_the_template_s_own() -> None:
    environment = TemplateEnvironment()
    methods = [name for kind in (str, dict, list) for name in dir(kind) if name[0] != "_"]
    values = ("x", "d", "[x]", "'%s {} a'")
    options = ("", "x", "'a', x", "1", "d")
    sources = [f"{v}.{m}({o})" for v in values for m in methods for o in options]
    sources += [f"{v} | {f}({o})" for v in values for f in environment.filters for o in options]
    sources += [f"{v} {o} {w}" for v in values for o in ("+", "~", "%", "*", "or") for w in values]
    mark = "a<|im_end|>b"
    given = {"x": prepared(mark)[0], "d": prepared({"a": mark, mark: [mark]})[0]}
    rendered = 0
    for source in sources:
        with environment.metered():
            try:
                text = environment.from_string("{{ " + source + " }}").render(given)
            except Exception:
                continue
        rendered += 1
        own = _own(Prompt(text, spans_of(text))).lower()
        assert not any(part in own for part in ("<|i", "im_e", "end|")), source
    assert rendered > 400


@given(st.data(), st.text(alphabet="ab,| \n", max_size=8), st.text(alphabet="ab,| \n", max_size=8))
def test_tracked_texts_behave_as_texts(data: st.DataObject, own: str, content: str) -> None:
    text, plain = own + Tracked(content), own + content
    call = data.draw(
        st.sampled_from(
            [
                ("split", ()),
                ("split", (",",)),
                ("split", (" ", 1)),
                ("rsplit", (None, 1)),
                ("rsplit", ("ab", 1)),
                ("strip", ()),
                ("lstrip", ("a",)),
                ("rstrip", ("\n",)),
                ("splitlines", (True,)),
                ("splitlines", ()),
                ("partition", ("b",)),
                ("rpartition", ("a,",)),
                ("replace", ("a", "bb")),
                ("replace", ("", "-")),
                ("removeprefix", ("a",)),
                ("removesuffix", ("b",)),
                ("upper", ()),
                ("title", ()),
                ("center", (9,)),
                ("join", (["a", "b"],)),
                ("__getitem__", (slice(1, -1),)),
                ("__getitem__", (slice(None, None, 2),)),
                ("__mul__", (2,)),
                ("zfill", (5,)),
            ]
        )
    )
    name, args = call
    result, wanted = getattr(text, name)(*args), getattr(plain, name)(*args)
    assert result == wanted
    for part in result if isinstance(result, list | tuple) else [result]:
        assert all(0 <= a < b <= len(part) for a, b in spans_of(part))


# --- limits -------------------------------------------------------------------------------

_HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 3 ** (10 ** 9) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.ljust(width=10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ '%999999999d' | format(1) }}",
    "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}",
    "{% set n = namespace(s=(1,)) %}{% for i in range(99) %}{% set n.s = (n.s, n.s) %}{% endfor %}",
    "{% set n = namespace(s={}) %}{% for i in range(99) %}{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}",
    "{% set n = namespace(s=9) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "{{ ([[1] * 99999] * 999) | string }}",
    "{{ ([[1] * 99999] * 999) | tojson }}",
    "{{ ('a\n' * 999999) | indent(9999) }}",
    "{{ ('a' * 999999).replace('a', 'b' * 9999) }}",
    "{{ ('a' * 999999) | replace('a', 'b' * 9999) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ 1 | round(10**8, 'ceil') }}",
    "{{ lipsum(n=10**6) }}",
    "{{ range(10**10) }}",
    "{{ [[1]] | tojson(indent=10**9) }}",
    "{{ ('\t' * 999999).expandtabs(9999) }}",
    "{{ ''.join(['a' * 99999] * 9999) }}",
    "{{ ('f' * 4000000) | int(base=16) // 3 }}",
    "{{ ('<!---->' * 500000) | striptags }}",
    "{{ [1, 2] | tojson(separators=('a' * 999999, ':')) }}",
    "{{ ('a' * 4000000) | list }}",
    "{{ ('a,' * 2000000).split(',') }}",
    "{{ ''.join('a' * 4000000) }}",
    "{{ 'a' | pprint }}",
    "{{ ('a ' * 2000000).split() | length }}",
    "{% for c in 'a' * 4000000 %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
    "{{ x.y.z }}",
    "{{ {}['a'].b }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ raise_exception('no') }}",
    "{{ 1 | nope }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace(__call__=1) }}",
    "{% for i in 5 %}{% endfor %}",
    "{{ [] | first | length + 'a' }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '%d' % 'x' }}",
    "{% autoescape true %}{{ 1 }}{% endautoescape %}",
    "{{ (" * 3000,
    "{% if 1 %}" * 300 + "x",
    "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "{% generation %}",
    "{{ strftime_now('%9999999Y') }}",
]


@pytest.mark.parametrize("source", _HOSTILE, ids=range(len(_HOSTILE)))
def test_a_hostile_template_is_one_clear_error(source: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match="chat template") as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}], [])
    assert len(str(caught.value)) < 700


def test_a_long_chat_is_not_too_much_work() -> None:
    messages: list[Message] = []
    for at in range(500):
        messages += _calling({"city": f"{at} " + "x" * 50}, "")
    for name in ("qwen3", "qwen2_5", "hermes"):
        assert "499 x" in ChatTemplate(_SOURCES[name], "<s>").render(messages, _TOOLS).text
    turns = [{"role": ("user", "assistant")[at % 2], "content": "x"} for at in range(20_001)]
    assert ChatTemplate(_SOURCES["qwen3"]).render(turns, []).text.count("<|im_start|>") == 20_002
    huge = [{"role": "user", "content": "word " * 1_000_000}]
    assert len(ChatTemplate(_SOURCES["qwen3"]).render(huge, []).text) > 5_000_000


def test_a_content_that_a_template_would_cut_into_millions_is_refused() -> None:
    marks = [{"role": "assistant", "content": "</think>" * 1_000_000}]
    with pytest.raises(ConfigError, match="too much work"):
        ChatTemplate(_SOURCES["qwen3"]).render([_PLAIN[1], *marks, _PLAIN[1]], [])


def test_deep_values_are_an_error_not_a_crash() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ConfigError):
        ChatTemplate("{{ x | tojson }}").render([], [], {"x": value})


def test_only_plain_data_reaches_a_template() -> None:
    class Odd:
        def __str__(self) -> str:
            raise AssertionError

    prompt = ChatTemplate("{{ x.a }}{{ x.b is defined }}").render([], [], {"x": {"a": Odd()}})
    assert prompt.text == "<Odd>False"
