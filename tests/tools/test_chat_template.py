"""Chat templates: what a turn adds equals what rendering the whole chat would say."""

import json
from pathlib import Path

import pytest

from drawloom.errors import CheckpointError, ConfigError
from drawloom.runtime.demo import tasks
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.tools.chat_template import ChatTemplate, Message

SCHEMAS = [tool.schema for tool in tasks.TOOLS]


def test_the_delta_of_a_turn_continues_the_whole() -> None:
    template = ChatTemplate.load(tiny_model())
    past: list[Message] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "said"},
    ]
    new: list[Message] = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    whole = template.render([*past, *new], SCHEMAS).text
    assert whole.endswith("said<|im_end|>" + template.delta(new, SCHEMAS, closed=True).text)
    assert whole.endswith("said" + template.delta(new, SCHEMAS, closed=False).text)


def test_a_hostile_template_cannot_reach_python() -> None:
    template = ChatTemplate("{{ ''.__class__.__mro__ }}")
    with pytest.raises(ConfigError, match="refuses"):
        template.render([{"role": "user", "content": "x"}], [])


def test_a_template_that_refuses_says_why() -> None:
    template = ChatTemplate("{{ raise_exception('no system prompts') }}")
    with pytest.raises(ConfigError, match="no system prompts"):
        template.render([], [])


def test_a_checkpoint_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate.load(tmp_path)


def test_a_template_may_stand_in_the_tokenizer_s_config(tmp_path: Path) -> None:
    about = {"chat_template": "{{ eos_token }}", "eos_token": {"content": "<e>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    assert ChatTemplate.load(tmp_path).render([], []).text == "<e>"


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        '{"chat_template": [1]}',
        '{"chat_template": 3}',
        '{"chat_template": [{"name": 1}]}',
        "\x00\xff",
        '{"chat_template": "{% if"}',
    ],
)
def test_a_broken_config_is_one_clear_error(about: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(about.encode("latin-1"))
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTemplate.load(tmp_path)


def test_chats_with_tools_use_the_template_for_tools(tmp_path: Path) -> None:
    shows = "T{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}{{ tools }}"
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": shows}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path)
    assert template.render([], []).text == "D"
    assert template.render([], SCHEMAS).text.startswith("T")
    (tmp_path / "chat_template.jinja").write_text("E")
    assert ChatTemplate.load(tmp_path).render([], []).text == "E"
