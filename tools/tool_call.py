"""What a model asks for and what it is told."""

import hashlib
import re
import string
from dataclasses import dataclass
from typing import Any

_COMMANDS = ("command", "cmd", "commands", "script")
_BEFORE = re.compile(r"^\s*(?:(?:cd\s+\S+|export\s+\S+)\s*(?:&&|;)|\w+=\S*\s|sudo\s|exec\s)\s*")
_WORD = re.compile(r"^\s*(?:\S*/)?([\w.-]{1,24})(?=[\s;&|>]|$)")


_LOOKED_AT = 256
_ID_LENGTH = 9
_ID_ALPHABET = string.ascii_letters + string.digits


def new_call_id(turn: str, index: int) -> str:
    """Return the id of a tool call, in a form that every known chat template accepts.

    Mistral's templates refuse any id but nine ASCII letters and digits; the others take any text.
    The id is a hash of its arguments, so a turn that is parsed again gives its calls the same ids.

    Args:
        turn: a name of the turn that makes the call, unique among all turns whose ids may meet.
        index: the place of the call among the calls of its turn, from 0.
    """
    digest = hashlib.blake2b(f"{turn}\0{index}".encode("utf-8", "surrogatepass")).digest()
    value = int.from_bytes(digest)
    places = (value // len(_ID_ALPHABET) ** i for i in range(_ID_LENGTH))
    return "".join(_ID_ALPHABET[place % len(_ID_ALPHABET)] for place in places)


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


__all__ = ["ToolCall", "ToolResult", "new_call_id"]
