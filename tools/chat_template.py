"""A checkpoint's chat template: messages to text, and what a turn adds to a conversation.

A conversation is kept as token ids, exactly as sampled; only what is new is rendered. What new
messages add after an assistant turn is found by rendering them behind a marked turn and taking
all that follows the mark, so any template that treats turns one after the other will do.

Templates are untrusted: they run in a sandbox with limits (`drawloom.tools.jinja`), and whatever
goes wrong in one is a `ConfigError`.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from drawloom.errors import CheckpointError, ConfigError
from drawloom.prompts import Prompt
from drawloom.tools.jinja import TemplateEnvironment, prepared
from drawloom.tools.parsers import detect
from drawloom.tools.plain_text_tools import with_plain_tools
from drawloom.tools.template_limits import WORK
from drawloom.tools.tracked_text import spans_of

Message = dict[str, Any]
_MARK = "\u2402drawloom\u2403"
_GOES_ON = "\u2402…\u2403"
_ROLE = re.compile(r"[a-z_]{1,32}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_LONGEST_SOURCE = 1 << 20
_LONGEST_ERROR = 500
_PROBE_WORK = WORK // 20
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "-",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class _Shows:
    """Describe what a template shows, and the form in which it takes messages.

    Attributes:
        tools: it shows tools, calls and results.
        system: it shows a system message.
        in_system: it shows tools in a system message only.
        text_arguments: it takes the arguments of calls as JSON text.
        null_content: it shows calls only where the content is null.
    """

    tools: bool = True
    system: bool = True
    in_system: bool = False
    text_arguments: bool = False
    null_content: bool = False

    def formed(self, messages: list[Message], objects: bool = False) -> list[Message]:
        """Return messages in the template's form; with `objects` all arguments are objects."""
        return [self._message(m, objects) if m.get("tool_calls") else m for m in messages]

    def _message(self, message: Message, objects: bool) -> Message:
        content = message.get("content") or (None if self.null_content else "")
        calls = [self._call(call, objects) for call in message["tool_calls"]]
        return {**message, "content": content, "tool_calls": calls}

    def _call(self, call: Any, objects: bool) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "arguments" not in function:
            return call
        given = function["arguments"]
        if self.text_arguments and not isinstance(given, str):
            given = json.dumps(given, ensure_ascii=False)
        elif objects and not isinstance(given, Mapping):
            given = {} if given in (None, "") else {"arguments": given}
        return {**call, "function": {**function, "arguments": given}}


class ChatTemplate:
    """Renders chats for one model.

    A template that does not show tools, their calls and their results is given them in the way of
    Hermes, as parts of the messages.

    Args:
        source: the Jinja text.
        bos: the text of the token that begins a sequence, for templates that write it.
        eos: the text of the token that ends a turn.
        calls: the name of the parser that reads what the model writes; by default the one whose
            marks the template has.
        tool_source: another template for chats with tools.

    Raises `CheckpointError` for a template that does not compile.
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", calls: str = "", tool_source: str = ""
    ) -> None:
        self._environment = TemplateEnvironment()
        self._template = self._compiled(source)
        self._for_tools = self._compiled(tool_source) if tool_source else self._template
        self._bos, self.eos = bos, eos
        self._shows = self._probe()
        if calls not in ("", "hermes"):  # whoever names a format knows what the template shows
            self._shows = replace(self._shows, tools=True)
        self.calls = calls or (detect(tool_source or source) if self.shows_tools else "hermes")

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """Read the template of a checkpoint.

        It is in ``chat_template.jinja``, or in ``tokenizer_config.json``.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        path = folder / "tokenizer_config.json"
        try:
            about = json.loads(path.read_text("utf-8")) if path.exists() else {}
            named = about.get("chat_template")
            if isinstance(named, list):
                named = {t["name"]: t["template"] for t in named}
            named = dict(named) if isinstance(named, dict) else {"default": named}
            for name, file in (
                ("default", folder / "chat_template.jinja"),
                ("tool_use", folder / "additional_chat_templates" / "tool_use.jinja"),
            ):
                if file.exists():
                    named[name] = file.read_text("utf-8")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: its chat template cannot be read: {problem}") from None
        source = named.get("default") or named.get("tool_use")
        if not isinstance(source, str):
            raise CheckpointError(f"{folder} has no chat template: use a chat model")
        bos, eos = _token(about.get("bos_token")), _token(about.get("eos_token"))
        return cls(source, bos, eos, tool_source=str(named.get("tool_use") or ""))

    @property
    def shows_tools(self) -> bool:
        """Return whether the template itself shows tools, calls and results."""
        return self._shows.tools

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> Prompt:
        """Return a whole chat, up to where the assistant speaks next.

        Args:
            messages: as OpenAI's API has them, with tool calls' arguments as objects.
            tools: function schemas.
            variables: other values for the template, such as ``documents`` or ``enable_thinking``.
            now: the moment for templates that write the date; by default the present one.

        Raises `ConfigError`.
        """
        if not self.shows_tools:
            messages, tools = with_plain_tools(messages, tools, self._shows.system)
        elif tools and self._shows.in_system and _first_role(messages) != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        return self._render(messages, tools, variables or {}, now)

    def delta(
        self,
        new: list[Message],
        tools: list[dict[str, Any]],
        closed: bool,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> Prompt:
        """Return what `new` messages add behind an assistant turn, up to where it speaks next.

        `closed` says that the turn ended by itself, its end-of-turn token sampled. Raises
        `ConfigError`.
        """
        if not self.shows_tools:
            new, tools = with_plain_tools(new, [], self._shows.system)
        past = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK}]
        whole = self._render([*past, *new], tools, variables or {}, now)
        at = whole.text.find(_MARK)
        if at < 0:
            raise ConfigError("the chat template drops assistant turns; it cannot be continued")
        rest = whole.after(at + len(_MARK))
        ended = closed and self.eos and rest.text.startswith(self.eos)
        return rest.after(len(self.eos)) if ended else rest

    def begun(
        self,
        new: list[Message],
        tools: list[dict[str, Any]],
        closed: bool,
        now: datetime | None = None,
    ) -> Prompt:
        """Return what `new` messages surely add, though the content of the last one may go on."""
        *before, last = new
        marked = {**last, "content": last["content"] + _GOES_ON}
        prompt = self.delta([*before, marked], tools, closed, now=now)
        return prompt.before(max(0, prompt.text.find(_GOES_ON)))

    # --- one rendering --------------------------------------------------------------------

    def _compiled(self, source: str) -> Template:
        if len(source) > _LONGEST_SOURCE:
            raise CheckpointError(f"the chat template has {len(source):,} characters")
        try:
            with self._environment.metered():
                return self._environment.from_string(source)
        except Exception as error:  # any: the source is untrusted
            raise CheckpointError(f"the chat template does not compile: {_reason(error)}") from None

    def _render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any],
        now: datetime | None,
    ) -> Prompt:
        given = self._shows.formed(messages)
        try:
            return self._rendered(given, tools, variables, now=now)
        except Exception as error:  # any: the template is untrusted
            objects = self._shows.formed(messages, objects=True)
            if objects != given:  # the model wrote arguments that are no object
                with suppress(Exception):  # the first error says more
                    return self._rendered(objects, tools, variables, now=now)
            what = "refuses" if isinstance(error, TemplateError) else "fails on"
            raise ConfigError(
                f"the chat template {what} these messages: {_reason(error)}"
            ) from None

    def _rendered(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any],
        work: int = WORK,
        now: datetime | None = None,
    ) -> Prompt:
        (chat, schemas, extra), values, chars = prepared([messages, tools, dict(variables)])
        template = self._for_tools if tools else self._template
        with self._environment.metered(values, chars, work, now):
            text = template.render(
                {
                    "documents": None,
                    **{str(name): value for name, value in extra.items()},
                    "messages": [_trusted(message) for message in chat],
                    "tools": schemas or None,
                    "add_generation_prompt": True,
                    "bos_token": self._bos,
                    "eos_token": self.eos,
                }
            )
        return Prompt(str.__str__(text), spans_of(text))

    # --- what a template can --------------------------------------------------------------

    def _probe(self) -> _Shows:
        """Find out what the template shows, by rendering a chat with a call."""
        system = "probe_system" in self._probed(_Shows(), "probe_system", [], [])
        plain = "probe_tool" in self._probed(_Shows(), "", [], [_TOOL])
        listed = plain or "probe_tool" in self._probed(_Shows(), "probe_system", [], [_TOOL])
        call = {"name": "probe_tool", "arguments": {"a": "probe_argument"}}
        turn: list[Message] = [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "probe0000", "type": "function", "function": call}],
            },
            {
                "role": "tool",
                "content": "probe_result",
                "name": "probe_tool",
                "tool_call_id": "probe0000",
            },
        ]
        for text, null in product((False, True), repeat=2):
            shows = _Shows(True, system, not plain, text, null)
            rendered = self._probed(shows, "probe_system" if not plain else "", turn, [_TOOL])
            if listed and "probe_argument" in rendered and "probe_result" in rendered:
                return shows
        return _Shows(tools=False, system=system)

    def _probed(
        self, shows: _Shows, system: str, turn: list[Message], tools: list[dict[str, Any]]
    ) -> str:
        first = [{"role": "system", "content": system}] if system else []
        messages = [*first, {"role": "user", "content": "-"}, *turn]
        try:
            return self._rendered(shows.formed(messages), tools, {}, _PROBE_WORK).text
        except Exception:  # it refuses such a chat
            return ""


def _trusted(message: Message) -> Message:
    """Mark a message's role as the template's own, and give its reasoning every known name."""
    role = message.get("role")
    if isinstance(role, str) and _ROLE.fullmatch(role):
        message = {**message, "role": str.__str__(role)}
    thought = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if thought is None:
        return message
    return {"thinking": thought, **message, "reasoning_content": thought}


def _first_role(messages: list[Message]) -> Any:
    return messages[0].get("role") if messages else None


def _reason(error: Exception) -> str:
    text = str(error)[:_LONGEST_ERROR]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"


def _token(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


__all__ = ["ChatTemplate", "Message"]
