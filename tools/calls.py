"""What a model asks for and what it is told."""

import re
from dataclasses import dataclass
from typing import Any

_COMMANDS = ("command", "cmd", "commands", "script")
_BEFORE = re.compile(r"^\s*(?:(?:cd\s+\S+|export\s+\S+)\s*(?:&&|;)|\w+=\S*\s|sudo\s|exec\s)\s*")
_WORD = re.compile(r"^\s*(?:\S*/)?([\w.-]{1,24})(?=[\s;&|>]|$)")


_LOOKED_AT = 256


def _bare(command: str) -> str:
    """A command without what only prepares it."""
    while (before := _BEFORE.match(command)) is not None and before.end() < len(command):
        command = command[before.end() :]
    return command


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model made. `error` is set when the call could not be understood."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str = ""
    error: str | None = None

    @property
    def kind(self) -> str:
        """What is alike among calls as far as their seconds go: the tool, and of a shell command
        what it runs: ``shell:pytest`` (Continuum's key, arXiv 2511.02230)."""
        for name in _COMMANDS:
            command = self.arguments.get(name)
            if isinstance(command, str):
                word = _WORD.match(_bare(command[:_LOOKED_AT]))
                return f"{self.name}:{word[1]}" if word is not None else self.name
        return self.name


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered; `ok` is False when `content` tells the model of a failure."""

    call_id: str
    name: str
    content: str
    ok: bool = True
    seconds: float = 0.0


__all__ = ["ToolCall", "ToolResult"]
