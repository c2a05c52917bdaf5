"""A checkpoint's chat template: messages to text, and what a turn adds to a conversation.

A conversation is kept as token ids, exactly as sampled; only what is new is rendered. What new
messages add after an assistant turn is found by rendering them behind a marked turn and taking
all that follows the mark, so any template that treats turns one after the other will do.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from drawloom.errors import CheckpointError, ConfigError
from drawloom.prompts import Prompt
from drawloom.tools.parsers import detect

Message = dict[str, Any]
_MARK = "\u2402drawloom\u2403"
_GOES_ON = "\u2402…\u2403"


class ChatTemplate:
    """Renders chats for one model. Templates are untrusted: they run in Jinja's sandbox.

    `calls` is the name of the parser that reads what the model writes; by default the one whose
    marks the template has.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "", calls: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"the chat template does not compile: {error}") from None
        self._bos, self.eos = bos, eos
        self.calls = calls or detect(source)

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """From ``chat_template.jinja`` or ``tokenizer_config.json`` of a checkpoint."""
        about: dict[str, Any] = {}
        path, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        if path.exists():
            about = json.loads(path.read_text())
        source = file.read_text() if file.exists() else about.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {t["name"]: t["template"] for t in source}
            source = named.get("tool_use") or named.get("default")
        if not isinstance(source, str):
            raise CheckpointError(f"{folder} has no chat template: use a chat model")
        return cls(source, _token(about.get("bos_token")), _token(about.get("eos_token")))

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> Prompt:
        """A whole chat, up to where the assistant speaks next."""
        return self._render(messages, tools, generate=True)

    def delta(self, new: list[Message], tools: list[dict[str, Any]], closed: bool) -> Prompt:
        """What `new` messages add behind an assistant turn, up to where it speaks next.

        `closed` says that the turn ended by itself, its end-of-turn token sampled.
        """
        past = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK}]
        whole = self._render([*past, *new], tools, generate=True)
        at = whole.text.find(_MARK)
        if at < 0:
            raise ConfigError("the chat template drops assistant turns; it cannot be continued")
        rest = whole.after(at + len(_MARK))
        ended = closed and self.eos and rest.text.startswith(self.eos)
        return rest.after(len(self.eos)) if ended else rest

    def begun(self, new: list[Message], tools: list[dict[str, Any]], closed: bool) -> Prompt:
        """What `new` messages surely add, though the content of the last one may go on."""
        *before, last = new
        marked = {**last, "content": last["content"] + _GOES_ON}
        prompt = self.delta([*before, marked], tools, closed)
        return prompt.before(max(0, prompt.text.find(_GOES_ON)))

    def _render(
        self, messages: list[Message], tools: list[dict[str, Any]], generate: bool
    ) -> Prompt:
        try:
            text = self._template.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=generate,
                bos_token=self._bos,
                eos_token=self.eos,
            )
        except TemplateError as error:
            raise ConfigError(f"the chat template refuses these messages: {error}") from None
        return Prompt(text)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _token(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else value or ""


__all__ = ["ChatTemplate", "Message"]
